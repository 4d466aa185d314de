"""Rows of a prompt with their rotary positions, and the tables of these."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgevlm.bundle.host import ImageSpec, Layout, LayoutItem, Rope, raster
from edgevlm.runtimes.loops.sequence import assemble, rotary_tables, text_positions, text_rows
from edgevlm.runtimes.loops.spelling import Visual
from edgevlm.runtimes.loops.tables import Rows

# Words 7 and 9 around a picture of 2x3 tokens.
IMAGE = (
    LayoutItem("ids", ids=(7,)),
    LayoutItem("visual", start=0, stop=6, places=raster(1, 2, 3), span=3),
    LayoutItem("ids", ids=(9,)),
)
PROMPT = (LayoutItem("ids", ids=(1, 2)), LayoutItem("image"), LayoutItem("ids", ids=(3, 4, 5)))


def plan_of(rope, positions="original"):
    layout = Layout(PROMPT, IMAGE, (), ())
    host = SimpleNamespace(
        per_layer=None, rope=rope, ropes=(rope,), positions=positions, layout=layout, mask="causal"
    )
    return SimpleNamespace(host=host)


def rows_of(plan, kept=range(6), images=1, first=0):
    """The prompt, with these visual tokens of each picture."""
    visual = Visual(np.full((len(kept), 1), -1, np.float32), np.array(kept, np.int32))
    table = np.arange(10, dtype=np.float32)[:, None]
    return assemble(plan, PROMPT, table, None, "", [visual] * images, first)


def test_a_table_closes_its_file(tmp_path):
    path = tmp_path / "table.bin"
    path.write_bytes(np.arange(6, dtype=np.float32).tobytes())
    rows = Rows(path, np.float32, (3, 2))
    file = rows._file
    assert rows[1].tolist() == [2, 3]
    assert not file.closed
    del rows
    assert file.closed


AXES = Rope((1.0, 0.1, 0.01, 0.001), 1.0, (2, 1, 1))


def test_a_token_of_a_picture_lies_at_its_place_in_the_grid():
    rows = rows_of(plan_of(AXES), first=10)
    assert rows.positions.T.tolist() == [
        [10, 11, 12, 13, 13, 13, 13, 13, 13, 16, 17, 18, 19],
        [10, 11, 12, 13, 13, 13, 14, 14, 14, 16, 17, 18, 19],
        [10, 11, 12, 13, 14, 15, 13, 14, 15, 16, 17, 18, 19],
    ]
    assert rows.next == 20


def test_what_is_kept_keeps_its_place_and_the_text_goes_on_as_behind_all():
    rows = rows_of(plan_of(AXES), kept=(1, 5))
    assert rows.positions[3:6].tolist() == [[3, 3, 4], [3, 4, 5], [6, 6, 6]]
    assert rows.next == rows_of(plan_of(AXES)).next == 10


def clip_rows(duration, kept=range(4)):
    """A clip of four groups of two frames, two positions a second, and a word behind it."""
    tokens = LayoutItem("visual", start=0, stop=4, places=raster(4, 1, 1), span=1, per_second=2.0)
    plan = plan_of(AXES)
    plan.host.layout = Layout(PROMPT[:2], (tokens, IMAGE[2]), (), ())
    plan.host.image = ImageSpec(4, 4, 1, 1, "last", 7, "bilinear", (0.5,) * 3, (0.5,) * 3, depth=2)
    visual = Visual(np.zeros((len(kept), 1), np.float32), np.array(kept, np.int32), (), duration)
    return assemble(plan, PROMPT[:2], np.zeros((10, 1), np.float32), None, "", [visual], 0)


def test_groups_of_frames_go_on_in_time_and_text_does_not():
    rows = clip_rows(7.0)  # two seconds a group
    assert rows.positions.tolist() == [
        [0] * 3, [1] * 3, [2, 2, 2], [6, 2, 2], [10, 2, 2], [14, 2, 2], [3] * 3,
    ]  # fmt: skip
    assert rows.next == clip_rows(7.0, kept=(0, 2)).next == 15
    assert clip_rows(2.1).positions[2:6, 0].tolist() == [2, 3, 4, 5]  # steps of 1.2, rounded down
    assert clip_rows(0.7).next == 4  # behind the word


def test_a_clip_of_any_length_has_positions():
    for duration in (1e30, 1e300):
        assert clip_rows(duration).positions[2:6, 0].tolist() == [2, *[2 + 2**24] * 3]


def test_marks_of_a_picture_have_places_and_words_may_join_it():
    """A canvas at position 2: marks at its corners, a spread overview, ids 3 and 4 behind it."""
    image = (
        LayoutItem("ids", ids=(7,), places=((0,), (-3,), (-1,))),
        LayoutItem("visual", start=0, stop=4, places=((0,), (0, 3), (1, 5))),
        LayoutItem("ids", ids=(9,), places=((0,), (4,), (6,)), span=7, joins=(4, 3)),
    )
    plan = plan_of(AXES)
    plan.host.layout = Layout(PROMPT, image, (), ())
    rows = rows_of(plan, kept=(0, 1, 3))
    assert rows.positions.T.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 2, 9],
        [0, 1, 0, 2, 2, 5, 6, 2, 2, 9],
        [0, 1, 1, 3, 7, 7, 8, 2, 2, 9],
    ]
    assert rows.next == 10


def test_what_follows_a_shared_prefix_keeps_positions_and_next():
    rows = rows_of(plan_of(AXES))
    rest = rows.after(5)
    assert rest.positions.tolist() == rows.positions[5:].tolist()
    assert (rest.next, rest.visual, rest.ids) == (rows.next, (0, 1, 2, 3), rows.ids[5:])


def test_words_alone():
    rows = text_rows(plan_of(AXES), np.zeros((3, 1), np.float32), 5)
    assert rows.positions.tolist() == [[5] * 3, [6] * 3, [7] * 3]
    assert rows.next == 8
    one = plan_of(Rope((1.0, 0.1), 1.0))
    assert text_positions(one, 5, 2).tolist() == [[5], [6]]
    assert rotary_tables(one, text_positions(one, 5, 2))[0].shape == (2, 4)


def test_frequencies_by_section_and_in_turns():
    frequencies = (1.0,) * 9
    assert Rope(frequencies, 1.0).frequency_axes == (0,) * 9
    assert Rope(frequencies, 1.0, (4, 3, 2)).frequency_axes == (0, 0, 0, 0, 1, 1, 1, 2, 2)
    turns = Rope(frequencies, 1.0, (4, 3, 2), interleaved=True)
    assert turns.frequency_axes == (0, 1, 2, 0, 1, 2, 0, 1, 0)


@pytest.mark.parametrize(("name", "interleaved"), [("qwen2_5_vl", False), ("qwen3_vl", True)])
def test_tables_are_those_of_the_published_models(name, interleaved):
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    sections = (3, 3, 2)
    config = transformers.AutoConfig.for_model(
        f"{name}_text", hidden_size=64, num_attention_heads=4, head_dim=16,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [*sections]},
    )  # fmt: skip
    model = getattr(transformers.models, name)
    module = getattr(model, f"modeling_{name}")
    kind = "Qwen2_5_VLRotaryEmbedding" if name == "qwen2_5_vl" else "Qwen3VLTextRotaryEmbedding"
    own = getattr(module, kind)(config)
    positions = np.random.default_rng(0).integers(0, 3000, (40, 3), dtype=np.int32)
    plan = plan_of(Rope(tuple(own.inv_freq.tolist()), 1.0, sections, interleaved))
    expected = own(torch.zeros(1), torch.from_numpy(positions).long().T[:, None])
    for ours, theirs in zip(rotary_tables(plan, positions), expected, strict=True):
        np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-6)
