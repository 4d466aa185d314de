"""A clip's frames, times and duration, and one line for what is no clip."""

from __future__ import annotations

import json
import struct
import wave
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.runtimes.loops.images import clips, load_clip, reader

av = pytest.importorskip("av")
PHOTO = Path(__file__).resolve().parents[3] / "edgevlm" / "photos" / "flower.jpg"
RATE = 10


def write(path, frames, codec="mpeg4", **options):
    """A clip of frames [h, w, 3], RATE a second, with one key frame unless options say more."""
    frames = iter(frames)
    first = next(frames)
    height, width, _ = first.shape
    with av.open(str(path), "w", **options.pop("container", {})) as container:
        settings = {"sc_threshold": "1000000000"} | options
        stream = container.add_stream(codec, rate=RATE, options=settings)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for pixels in chain([first], frames):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.fromarray(pixels))))
        container.mux(stream.encode())
    return path


def greys(count=30, size=(48, 64)):
    """Frame i is grey of value 8 i."""
    return [np.full((*size, 3), 8 * index % 256, np.uint8) for index in range(count)]


def shades(clip, frames):
    """The mean of each frame."""
    return [np.asarray(picture).mean() for picture in load_clip(clip, frames)[0]]


@pytest.fixture
def clip(tmp_path):
    """30 frames at 10 a second; frame i is grey of value 8 i."""
    return write(tmp_path / "clip.mp4", greys())


def test_frames_are_spread_evenly_with_their_times(clip):
    pictures, times, duration = load_clip(clip, 4)
    assert [round(t, 2) for t in times] == [0.0, 1.0, 1.9, 2.9]
    assert round(duration, 2) == 3.0
    np.testing.assert_allclose(shades(clip, 4), [0, 80, 152, 232], atol=6)
    assert {p.size for p in pictures} == {(64, 48)}


def test_times_and_duration_are_those_of_transformers(clip):
    """Of which prompts tell: SmolVLM's says how long a clip is, Qwen2.5-VL's positions hold it."""
    video_utils = pytest.importorskip("transformers.video_utils")
    _, times, duration = load_clip(clip, 4)
    spread = np.linspace(0, 29, 4).round().astype(int)
    _, own = video_utils.read_video_pyav(str(clip), lambda metadata, **options: spread)
    np.testing.assert_allclose(times, own.timestamps, atol=1e-9)
    assert duration == pytest.approx(own.duration) == 3.0


def test_all_frames_can_be_asked_for_but_not_more(clip):
    assert len(load_clip(clip, 30)[0]) == 30
    with pytest.raises(InputError, match=r"has 30 frames, the bundle needs 31$"):
        load_clip(clip, 31)


def test_a_cut_off_clip_is_one_line(clip):
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError) as error:
        load_clip(clip, 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: None, "no video at"),
        (lambda p: p.write_bytes(b""), "cannot be read as a video"),
        (lambda p: p.write_text("not a video"), "cannot be read as a video"),
        (lambda p: p.write_bytes(PHOTO.read_bytes()), "has 1 frames, the bundle needs 4"),
        (lambda p: p.mkdir(), "is a folder, expected a video"),
    ],
)
def test_what_is_no_clip_is_one_line(tmp_path, make, text):
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(InputError, match=text):
        load_clip(path, 4)


def corners():
    """Red, green, blue and white corners, wider than high."""
    pixels = np.full((48, 64, 3), 255, np.uint8)
    pixels[:24, :32], pixels[:24, 32:], pixels[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return pixels


def turned(path, matrix):
    """The same file with another display matrix a, b, c, d in its track header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # after version, times, track, layer and volume
    a, b, c, d = (value * 65536 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


# What a player shows of a frame, as numpy does it.
SHOWN = {
    (1, 0, 0, 1): lambda a: a,
    (0, 1, -1, 0): lambda a: np.rot90(a, -1),
    (-1, 0, 0, -1): lambda a: np.rot90(a, 2),
    (0, -1, 1, 0): lambda a: np.rot90(a),
    (-1, 0, 0, 1): lambda a: a[:, ::-1],
    (1, 0, 0, -1): lambda a: a[::-1],
    (0, 1, 1, 0): lambda a: a.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda a: np.rot90(a, 2).transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", SHOWN)
def test_a_clip_is_turned_as_its_container_says(tmp_path, matrix):
    path = turned(write(tmp_path / "clip.mp4", [corners()] * 4), matrix)
    expected = SHOWN[matrix](corners())
    for picture in load_clip(path, 2)[0]:
        pixels = np.asarray(picture, float)
        assert pixels.shape == expected.shape
        assert np.abs(pixels - expected).mean() < 12  # colours bleed at the borders


def test_an_odd_angle_keeps_the_size(tmp_path):
    path = tmp_path / "clip.mp4"
    write(path, [corners()] * 4)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 56756, 32768, 0, -32768, 56756, 0, 0, 0, 1 << 30)  # 30°
    path.write_bytes(data)
    expected = Image.fromarray(corners()).rotate(-30, Image.Resampling.BILINEAR)
    for picture in load_clip(path, 2)[0]:
        assert picture.size == (64, 48)
        assert np.abs(np.asarray(picture, float) - np.asarray(expected, float)).mean() < 12


def test_a_clip_may_be_bytes_or_an_open_file(clip):
    expected = shades(clip, 4)
    assert shades(clip.read_bytes(), 4) == shades(str(clip), 4) == expected
    with clip.open("rb") as file:
        assert shades(file, 4) == expected
        assert not file.closed
    with pytest.raises(InputError, match=r"^expected a video: a path, bytes or an open file, got"):
        load_clip(None, 4)


def test_what_an_edit_list_cuts_off_is_not_shown(clip, tmp_path):
    path, cut = tmp_path / "trim.mp4", 10
    whole = av.open(str(clip))
    with whole, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = (
                    t - cut * packet.duration for t in (packet.pts, packet.dts)
                )
                packet.stream = stream
                container.mux(packet)
    pictures, times, duration = load_clip(path, 4)
    np.testing.assert_allclose(
        [np.asarray(p).mean() for p in pictures], [80, 128, 184, 232], atol=6
    )
    assert [round(t, 2) for t in times] == [0.0, 0.6, 1.3, 1.9]
    assert round(duration, 2) == 2.0
    with pytest.raises(InputError, match=r"has 20 frames, the bundle needs 21$"):
        load_clip(path, 21)


def test_a_stream_without_time_stamps_is_counted(tmp_path):
    path = write(tmp_path / "raw.m4v", greys(), container={"format": "m4v"})
    np.testing.assert_allclose(shades(path, 4), [0, 80, 152, 232], atol=6)


def test_frames_whose_stamps_are_all_equal_are_spread_by_their_rate(clip, tmp_path):
    path = tmp_path / "equal.nut"
    whole = av.open(str(clip))
    with whole, av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.pts = packet.dts = 0
                packet.stream = stream
                container.mux(packet)
    pictures, times, duration = load_clip(path, 4)
    assert len(pictures) == 4
    assert 0 == times[0] < times[1] < times[2] < times[3] < duration


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_a_long_clip_is_not_decoded_whole(tmp_path, ending, monkeypatch):
    path = write(tmp_path / f"long.{ending}", greys(300, (16, 16)), g="12")
    expected = [8 * i % 256 for i in np.linspace(0, 299, 4).round().astype(int)]
    decoded, decode = [], reader.Reader.decode

    def counting(*arguments):
        for frame in decode(*arguments):
            decoded.append(1)
            yield frame

    monkeypatch.setattr(reader.Reader, "decode", counting)
    monkeypatch.setattr(clips, "_counted", lambda *a: pytest.fail("decoded whole"))
    np.testing.assert_allclose(shades(path, 4), expected, atol=6)
    assert len(decoded) < 80


def test_frames_are_even_in_time_where_their_rate_varies(tmp_path):
    """20 frames in the first second, then one a second, as a recording of a screen has them."""
    moments = [round(index * 50) for index in range(20)] + [
        1000 * second for second in range(1, 10)
    ]
    path = tmp_path / "varying.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for grey, moment in zip(greys(29), moments, strict=True):
            frame = av.VideoFrame.from_image(Image.fromarray(grey))
            frame.pts, frame.time_base = moment, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    pictures, times, _ = load_clip(path, 4)
    assert [round(t, 2) for t in times] == [0.0, 3.0, 6.0, 9.0]
    means = [np.asarray(picture).mean() for picture in pictures]
    np.testing.assert_allclose(means, [0, 8 * 22, 8 * 25, 8 * 28], atol=6)


def test_of_a_clip_without_its_end_there_is_the_beginning(tmp_path):
    path = write(tmp_path / "whole.mkv", greys(60, (48, 64)), g="5")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    pictures, times, duration = load_clip(path, 4)
    assert len(pictures) == 4
    assert 2 < times[-1] < duration < 4
    np.testing.assert_allclose(np.asarray(pictures[0]).mean(), 0, atol=6)


# White and a mid grey of BT.2408: 203 cd/m2 are 75 % of HLG and 58 % of PQ, 26 are 38 % of both.
@pytest.mark.parametrize(("transfer", "white", "grey"), [(18, 0.75, 0.38), (16, 0.5807, 0.38)])
def test_high_dynamic_range_is_shown_as_the_same_scene_in_srgb(tmp_path, transfer, white, grey):
    path = tmp_path / "hdr.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=RATE, options={"x265-params": "log-level=0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = 9, transfer, 9
        for level in (white, grey, 0.0, 1.0):
            frame = av.VideoFrame(64, 64, "yuv420p10le")
            for plane, code in zip(frame.planes, (64 + 876 * level, 512, 512), strict=True):
                plane.update(np.full(plane.buffer_size // 2, round(code), "<u2").tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    shown = [np.asarray(picture)[32, 32] for picture in load_clip(path, 4)[0]]
    assert all(np.ptp(pixel) <= 3 for pixel in shown)  # grey stays grey
    bright, middle, black, peak = (int(pixel.mean()) for pixel in shown)
    assert 235 <= bright <= 250
    assert 85 <= middle <= 112  # 26 of 203 cd/m2 are 0.128, which sRGB codes as 101
    assert black <= 2
    assert bright < peak <= 255


def test_a_format_that_is_not_known_is_named(tmp_path):
    write(tmp_path / "clip.avi", greys(4))
    data = (tmp_path / "clip.avi").read_bytes()
    assert b"FMP4" in data
    with pytest.raises(InputError, match="in a format that FFmpeg cannot decode; convert it to H"):
        load_clip(data.replace(b"FMP4", b"zzzz"), 2)


def test_a_song_with_a_cover_has_no_video(tmp_path):
    path = tmp_path / "song.wav"
    with wave.open(str(path), "wb") as song:
        song.setnchannels(1)
        song.setsampwidth(2)
        song.setframerate(8000)
        song.writeframes(bytes(16000))
    with pytest.raises(InputError, match=r"song.wav' has no video, only audio$"):
        load_clip(path, 4)


def test_a_playlist_opens_no_other_file(clip, tmp_path):
    write(tmp_path / "part.ts", greys())
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\npart.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(text)
    with pytest.raises(InputError, match=r"^'.*list.m3u8' cannot be read as a video: Invalid data"):
        load_clip(tmp_path / "list.m3u8", 4)


@pytest.mark.slow
def test_ten_minutes_take_the_memory_of_ten_seconds(command, tmp_path):
    """Peak of the process, of the embedded model with 8 frames; within 5 % either way."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("torch")
    from edgevlm import api
    from edgevlm.recipe import Recipe

    bundle, peaks = api.export(Recipe(frames=8), tmp_path / "b.edgevlm").path, {}
    rows, columns = np.arange(360)[:, None], np.arange(640)[None]

    def moving(count):
        for index in range(count):
            red, green = np.broadcast_arrays((rows + 2 * index) % 256, (columns + index) % 256)
            yield np.stack([red, green, red ^ green], -1).astype(np.uint8)

    for seconds in (10, 600):
        clip = write(tmp_path / f"{seconds}.mp4", moving(seconds * RATE))
        asked = ("run", bundle, "--video", clip, "--prompt", "Which way does it move?", "--json")
        each = []
        for _ in range(3):
            done = command(*asked, "--threads", "1")
            assert done.code == 0, done.err
            each.append(json.loads(done.out.splitlines()[-1])["peak_rss_bytes"])
        peaks[seconds] = sorted(each)[1]
    assert peaks[600] == pytest.approx(peaks[10], rel=0.05), peaks
