"""The encoder loop: embeddings and scores are transformers' own; texts are cut and filled up."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import edgevlm  # noqa: E402
from edgevlm.errors import BundleError, InputError  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.parity.verify import PHOTOS  # noqa: E402
from edgevlm.runtimes.loading import load_loop  # noqa: E402
from edgevlm.runtimes.loops import images  # noqa: E402
from edgevlm.runtimes.loops.encoder import EncoderLoop  # noqa: E402
from edgevlm.runtimes.loops.tables import Words  # noqa: E402

NAMES = ["tiny-siglip", "tiny-clip", "tiny-siglip2"]
LABELS = ["a flower", "A DOG!", ""]


def opened(embedder, name, **options) -> EncoderLoop:
    """The loop over a tiny bundle."""
    loop = load_loop(embedder(name).bundle.path, threads=1, **options)
    assert isinstance(loop, EncoderLoop)
    return loop


@pytest.mark.parametrize("name", ["tiny-siglip", "tiny-clip"])
def test_embedding_and_scores_are_those_of_transformers(embedder, preset, name):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder = preset(name)
    found = opened(embedder, name).classify(images.load(PHOTOS[0]), LABELS)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    seen = AutoImageProcessor.from_pretrained(folder, backend="pil")(
        images.load(PHOTOS[0]), return_tensors="pt"
    )
    words = AutoTokenizer.from_pretrained(folder)(
        LABELS, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        own = model(input_ids=words.input_ids, pixel_values=seen.pixel_values)
        embedding = model.get_image_features(seen.pixel_values).pooler_output[0].numpy()
    logits = own.logits_per_image[0]
    expected = logits.sigmoid() if name == "tiny-siglip" else logits.softmax(-1)
    assert np.abs(np.asarray(found.embedding) - embedding).max() <= 1e-4
    assert [label.score for label in found.labels] == pytest.approx(expected.tolist(), abs=1e-5)
    assert found.nearest == max(found.labels, key=lambda label: label.score)
    assert found.shown.splitlines()[0] == found.nearest.label
    assert found.vision_ms > 0
    assert found.text_ms > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_long_text_keeps_its_end_and_a_short_one_is_filled_up(embedder, name):
    loop = opened(embedder, name)
    host = loop.plan.host.text
    long, short = loop.token_ids("word " * 100), loop.token_ids("word")
    assert len(long) == len(short) == host.tokens
    assert long[-1] == host.end_id
    assert short[-1] == host.pad_id
    assert host.end_id in short


def test_naflex_reads_lower_case(embedder):
    loop = opened(embedder, "tiny-siglip2")
    assert loop.token_ids("A DOG") == loop.token_ids("a dog")


def test_texts_are_encoded_once(embedder):
    loop = opened(embedder, "tiny-clip")
    first = loop.embed_text("a dog")
    loop.arrays.text[:] = 0  # would be what comes out, if nothing ran
    assert loop.embed_text("a dog") is first
    loop.forget()
    assert np.array_equal(loop.embed_text("a dog"), first)
    assert loop.embed_text("a dog") is not first


def test_words_of_the_tokenizer_stay_words(embedder):
    loop = opened(embedder, "tiny-clip")
    assert loop.token_ids("<|endoftext|> dog").count(loop.plan.host.text.end_id) < 14


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["a dog, a cat; ", "x", "naïve 東京 ", "    ", "<eos> "])
def test_a_very_long_text_is_cut_before_it_is_read(embedder, name, text):
    words = opened(embedder, name)._words
    plain, read = words._tokenizer, []
    long = text * (4_000 // len(text))
    whole = plain.encode(long.lower() if words.host.lower_case else long).ids
    words._tokenizer = SimpleNamespace(encode=lambda t: read.append(len(t)) or plain.encode(t))
    tokens, end = words.host.tokens, words.host.end_id
    cut = [*whole[: tokens - 1], end] if len(whole) > tokens else whole
    assert words.ids(long)[: len(cut)] == cut
    if len(whole) > 200:
        assert max(read) <= 32 * tokens  # twice the beginning, of 4,000 letters


def test_numbers_that_are_not_finite_are_an_error(embedder, monkeypatch):
    loop = opened(embedder, "tiny-clip")
    for array, ask in (
        (loop.arrays.embedding, lambda: loop.classify(PHOTOS[0])),
        (loop.arrays.text, lambda: loop.embed_text("a")),
    ):
        monkeypatch.setattr(loop.blocks, "run", lambda *_, array=array: array.fill(np.nan))
        with pytest.raises(BundleError, match="gives numbers that are not finite"):
            ask()


@pytest.mark.parametrize("end", [0, 1, None])
def test_a_text_ends_as_the_manifest_says(embedder, end):
    bundle = embedder("tiny-siglip" if end is None else "tiny-clip").bundle
    host = replace(bundle.plan.host.text, end_id=end)
    with pytest.raises(BundleError, match=f"manifest has host.text.end_id {end}; export"):
        Words(bundle, host)


def test_a_label_is_one_line(embedder):
    found = opened(embedder, "tiny-clip").classify(PHOTOS[0], ["a\nb", "c\x1b[31m"])
    assert [line.split()[0] for line in found.shown.splitlines()[1:]] == ["a?b", "c?[31m"]
    assert [label.label for label in found.labels] == ["a\nb", "c\x1b[31m"]
    assert found.image == str(PHOTOS[0])


def test_within_a_budget_embeddings_are_the_same(embedder):
    """As far as two ways to load a matrix round alike: measured 4e-7."""
    plain, streamed = (opened(embedder, "tiny-clip", memory=m) for m in (None, "2GB"))
    picture = images.load(PHOTOS[0])
    assert difference(streamed.embed([picture]), plain.embed([picture]))[0] < 1e-5
    assert difference(streamed.embed_text("a dog"), plain.embed_text("a dog"))[0] < 1e-5
    streamed.blocks.close()


def test_scores_of_a_zero_embedding_are_finite(embedder):
    loop = opened(embedder, "tiny-clip")
    scores = loop.scores(np.zeros(32, np.float32), [np.ones(32, np.float32)] * 2)
    assert scores.tolist() == [0.5, 0.5]


def test_python_api(embedder, exported):
    model = edgevlm.load(embedder("tiny-siglip").bundle.path, threads=1)
    assert len(model.embed(PHOTOS[0]).embedding) == model.plan.host.size
    assert [label.label for label in model.classify(PHOTOS[0], ["a", "b"]).labels] == ["a", "b"]
    for ask in (lambda: model.generate(PHOTOS[0], "what?"), lambda: model.chat("what?")):
        with pytest.raises(InputError, match="gives embeddings of images or clips; give --image F"):
            ask()
    other = edgevlm.load(exported.bundle.path, threads=1)
    with pytest.raises(InputError, match="the bundle answers questions; give --prompt TEXT"):
        other.embed(PHOTOS[0])
