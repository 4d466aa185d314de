"""CLIP."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from checkpoints.shared.embedders import embedder_config, embedder_files
from checkpoints.shared.letters import learn
from checkpoints.shared.presets import BASE, CLIP_MEAN, CLIP_STD, TINY_VISION, TINY_WORDS, tiny
from checkpoints.shared.texts import texts

PRESETS = {
    "clip-vit-base-patch32": dict(dtype="bfloat16", projection_dim=512,
        vision=BASE | dict(image_size=224, patch_size=32, hidden_act="quick_gelu"),
        text=dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=12,
            num_attention_heads=8, vocab_size=49408, max_position_embeddings=77,
            hidden_act="quick_gelu")),
    "tiny-clip": dict(dtype="float32", projection_dim=32,
        vision=TINY_VISION | dict(image_size=56, patch_size=8, hidden_act="quick_gelu"),
        text=TINY_WORDS | dict(hidden_size=48, hidden_act="quick_gelu")),
}  # fmt: skip
START, END = SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
# CLIP's way to cut words: letters, single digits, runs of marks; blanks are left out.
CUT = (r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]"
       r"|[^\s\p{L}\p{N}]+")  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """Bytes, lower case, the end of a word marked, start and end around a text."""
    size, few, suffix = preset["text"]["vocab_size"], tiny(preset), "</w>"
    cut = pre_tokenizers.Split(Regex(CUT), behavior="removed", invert=True)
    cut = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trained = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    trained.pre_tokenizer, trained.normalizer = cut, normalizers.Lowercase()
    alphabet, most = pre_tokenizers.ByteLevel.alphabet(), 300 if few else 3000
    learned = learn(trained, texts(few), size - len(SPECIAL), alphabet, most, suffix)
    words = sorted(learned["vocab"], key=learned["vocab"].get)
    words += [f"▁{1000 + i}" for i in range(size - len(SPECIAL) - len(words))]
    vocab = {word: i for i, word in enumerate([*words, *SPECIAL])}
    merges = [tuple(pair) for pair in learned["merges"]]
    made = Tokenizer(models.BPE(vocab, merges, unk_token=END, end_of_word_suffix=suffix))
    blank = normalizers.Replace(Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), blank, normalizers.Lowercase()])
    made.add_special_tokens(SPECIAL)
    made.pre_tokenizer, made.decoder = cut, decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing(
        (END, vocab[END]), (START, vocab[START]), False, False
    )
    return made


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json."""
    start, end = (tokenizer.token_to_id(token) for token in SPECIAL)
    text = dict(preset["text"], bos_token_id=start, eos_token_id=end, pad_token_id=end)
    projected = {"projection_dim": preset["projection_dim"]}
    return embedder_config("CLIP", "clip", preset, text) | projected


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder."""
    side = preset["vision"]["image_size"]
    image = {
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,  # BICUBIC
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
    }
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    return embedder_files("CLIP", preset, image, {"tokenizer_class": "CLIPTokenizer"}, special)
