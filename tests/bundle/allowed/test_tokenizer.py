"""A tokenizer.json that would abort a process or fill its memory is refused."""

from __future__ import annotations

import json

import pytest

from edgevlm.bundle.allowed.tokenizer import read_tokenizer
from edgevlm.errors import BundleError

MODEL = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
PADDING = {
    "strategy": {"Fixed": 2**33}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
    "pad_type_id": 0, "pad_token": "a",
}  # fmt: skip


@pytest.fixture
def written(tmp_path):
    def write(**changes):
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps({"version": "1.0", "model": MODEL} | changes), "utf-8")
        return path

    return write


def replacement(content, pattern="a"):
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def test_padding_and_truncation_are_taken_off(written):
    tokenizers = pytest.importorskip("tokenizers")
    text = read_tokenizer(written(padding=PADDING, truncation={"max_length": 0}))
    assert tokenizers.Tokenizer.from_str(text).encode("ab").ids == [0, 1]


def test_published_kinds_pass(written):
    split = {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Isolated", "invert": False}
    read_tokenizer(
        written(
            normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, replacement("▁")]},
            pre_tokenizer={"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel"}]},
            decoder={"type": "Sequence", "decoders": [{"type": "Strip", "start": 1, "stop": 0}]},
        )
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "the step 'FixedLength'"),
        ({"decoder": {"type": "CTC"}}, "the step 'CTC'"),
        ({"model": {"type": "Other", "vocab": {}}}, "the step 'Other'"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [replacement("aaaa")] * 4}},
            "256 times as long",
        ),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 40}}, "41 steps"),
        ({"normalizer": replacement("a" * 1000)}, "a replacement puts in"),
        ({"normalizer": replacement("a", "")}, "an empty pattern"),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}}, "has prepend"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}}, "map"),
        ({"decoder": {"type": "Strip", "content": "a", "start": 2**40, "stop": 0}}, "strips"),
        ({"added_tokens": [{"id": 5, "content": ""}]}, "an empty token"),
        ({"added_tokens": [{"id": 5, "content": "q"}] * 70_000}, "more than 65536"),
        ({"model": None}, "another type"),
        ({"normalizer": 5}, "another type"),
    ],
)
def test_what_no_tokenizer_needs_is_refused(written, changes, said):
    with pytest.raises(BundleError, match=r"^'tokenizer\.json' is not valid: .*") as refused:
        read_tokenizer(written(**changes))
    assert said in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_vocabulary_without_end_is_refused(written):
    many = {str(n): n for n in range(2**20 + 1)}
    with pytest.raises(BundleError, match=r"^'tokenizer\.json' is not valid: .*model\.vocab"):
        read_tokenizer(written(model=MODEL | {"vocab": many}))


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_what_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BundleError, match="it is no JSON"):
        read_tokenizer(tmp_path / "tokenizer.json")
