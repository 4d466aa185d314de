"""Write a Hugging Face checkpoint folder with seeded random weights, to try every command offline.

    python samples/make_checkpoint.py --like smolvlm-256m OUT [--seed 0] [--force]

The folder has the published architecture at its true size (or a tiny one of the same family), a
byte-level BPE tokenizer trained on the spot on the text of Python's standard library, and the
family's image processor and chat template. It answers nonsense, at the speed of the real one.
SigLIP, SigLIP 2 and CLIP have no chat template: they give embeddings of images and of texts.

Weights. A tensor is drawn from normal(0, std) by a generator seeded with `seed` and its name, so
neither the order nor the number of tensors matters. `std` is gain / sqrt(fan_in), gains in `GAINS`:

- query and key 1.4: attention scores spread over about 2, so attention picks some tokens and
  averages few; with uniform attention an image of 1,088 tokens would average to nothing.
- value and output 1.5: what attention brings outweighs what the last token already holds.
- patch 3, position table 0.5: neighbouring patches differ by content first, then by place.
- the text embedding has std 1, the connector's output too: visual tokens are as loud as words.
- norms are 1, but the last norm of the text model is -1: a head tied to the embedding then pushes
  down the token just read, which it would repeat for ever otherwise. Biases have std 0.1.
- the factor and the shift of SigLIP's and CLIP's likenesses are 10 and -1, so that scores of random
  embeddings are neither 0 nor 1.
- rows of special tokens are 1/4 as long and rows past the tokenizer 0: greedy text has words, and
  almost never ends by itself.

Limits: same bytes for the same seed, Python (its texts train the tokenizer) and numpy generator.
One file, a little long, so that it runs wherever it is copied to.
"""

# ruff: noqa: C408 -- presets read better as dict(name=value)

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

GAINS = {"q_proj": 1.4, "k_proj": 1.4, "v_proj": 1.5, "o_proj": 1.5, "out_proj": 1.5,
         "gate_proj": 1.5, "up_proj": 1.0, "down_proj": 1.0, "fc1": 1.5, "fc2": 1.0,
         "patch_embedding": 3.0, "modality_projection": 1.0,
         "linear_1": 1.5, "linear_2": 1.0, "in_proj_weight": 1.5, "head": 1.0,
         "visual_projection": 1.0, "text_projection": 1.0}  # fmt: skip
ABSOLUTE_STD = {"embed_tokens": 1.0, "lm_head": 1.0, "position_embedding": 0.5,
                "class_embedding": 0.5, "image_newline": 1.0, "bias": 0.1, "token_embedding": 1.0,
                "probe": 1.0, "in_proj_bias": 0.1}  # fmt: skip
CONSTANTS = {"logit_scale": math.log(10), "logit_bias": -1.0}
CHUNK = 1 << 22  # numbers drawn at a time: 16 MB, whatever the size of the tensor
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

SMOLVLM_TEXT = dict(model_type="llama", vocab_size=49280, head_dim=64, hidden_act="silu",
    max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=100000.0, tie_word_embeddings=True,
    bos_token_id=1, eos_token_id=2, pad_token_id=2)  # fmt: skip
SMOLVLM_VISION = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
    num_attention_heads=12, image_size=512, patch_size=16,
    hidden_act="gelu_pytorch_tanh")  # fmt: skip
TINY_VISION = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, hidden_act="gelu_pytorch_tanh")  # fmt: skip
TINY_CLIP = dict(num_hidden_layers=3, image_size=56, patch_size=4, hidden_act="quick_gelu")
TINY_TEXT = dict(hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, vocab_size=1024)  # fmt: skip
QWEN2_TEXT = dict(model_type="qwen2", vocab_size=152000, hidden_act="silu", rms_norm_eps=1e-6,
    max_position_embeddings=32768, rope_theta=1000000.0, tie_word_embeddings=True,
    bos_token_id=151643, eos_token_id=151645)  # fmt: skip
LLAMA_TEXT = SMOLVLM_TEXT | dict(max_position_embeddings=4096, tie_word_embeddings=False)
BASE = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
TINY_WORDS = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    vocab_size=1024, max_position_embeddings=16)  # fmt: skip
SIGLIP_IDS = dict(pad_token_id=0, eos_token_id=1, bos_token_id=2)

PRESETS = {
    "smolvlm-256m": dict(family="smolvlm", dtype="bfloat16", scale_factor=4, vision=SMOLVLM_VISION,
        text=SMOLVLM_TEXT | dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3)),
    "smolvlm-500m": dict(family="smolvlm", dtype="bfloat16", scale_factor=4, vision=SMOLVLM_VISION,
        text=SMOLVLM_TEXT | dict(hidden_size=960, intermediate_size=2560, num_hidden_layers=32,
            num_attention_heads=15, num_key_value_heads=5)),
    "llava-onevision-0.5b": dict(family="llava_onevision", dtype="bfloat16",
        vision=dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=26,
            num_attention_heads=16, image_size=384, patch_size=14,
            hidden_act="gelu_pytorch_tanh"),
        text=QWEN2_TEXT | dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
            num_attention_heads=14, num_key_value_heads=2)),
    "tiny-smolvlm": dict(family="smolvlm", dtype="float32", scale_factor=2,
        vision=TINY_VISION | dict(image_size=128, patch_size=8), text=SMOLVLM_TEXT | TINY_TEXT),
    "tiny-llava-onevision": dict(family="llava_onevision", dtype="float32",
        vision=TINY_VISION | dict(image_size=56, patch_size=4), text=QWEN2_TEXT | TINY_TEXT),
    "tiny-llava-next": dict(family="llava_next", dtype="float32",
        vision=TINY_VISION | TINY_CLIP, text=LLAMA_TEXT | TINY_TEXT),
    "tiny-idefics3": dict(family="idefics3", dtype="float32", scale_factor=2,
        vision=TINY_VISION | dict(image_size=128, patch_size=8), text=SMOLVLM_TEXT | TINY_TEXT),
    "siglip2-base-patch16-224": dict(family="siglip", dtype="bfloat16",
        vision=BASE | dict(image_size=224, patch_size=16, hidden_act="gelu_pytorch_tanh"),
        text=BASE | SIGLIP_IDS | dict(vocab_size=256000, max_position_embeddings=64,
            hidden_act="gelu_pytorch_tanh")),
    "clip-vit-base-patch32": dict(family="clip", dtype="bfloat16", projection_dim=512,
        vision=BASE | dict(image_size=224, patch_size=32, hidden_act="quick_gelu"),
        text=dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=12,
            num_attention_heads=8, vocab_size=49408, max_position_embeddings=77,
            hidden_act="quick_gelu")),
    "tiny-siglip": dict(family="siglip", dtype="float32",
        vision=TINY_VISION | dict(image_size=64, patch_size=8), text=TINY_WORDS | SIGLIP_IDS),
    "tiny-siglip2": dict(family="siglip2", dtype="float32", max_num_patches=64,
        vision=TINY_VISION | dict(patch_size=8, num_patches=16), text=TINY_WORDS | SIGLIP_IDS),
    "tiny-clip": dict(family="clip", dtype="float32", projection_dim=32,
        vision=TINY_VISION | dict(image_size=56, patch_size=8, hidden_act="quick_gelu"),
        text=TINY_WORDS | dict(hidden_size=48, hidden_act="quick_gelu")),
}  # fmt: skip
EMBEDDERS = {"siglip": "Siglip", "siglip2": "Siglip2", "clip": "CLIP"}
CLASSES = {"smolvlm": "SmolVLM", "idefics3": "Idefics3",
           "llava_onevision": "LlavaOnevision", "llava_next": "LlavaNext"}  # fmt: skip

SMOLVLM_SPECIAL = ["<global-img>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
    "<fake_token_around_image>", "<image>"]  # fmt: skip
LLAMA_SPECIAL = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
QWEN2_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]

MESSAGES = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- set parts = [{'type': 'text', 'text': content}] if content is string else content %}
"""
SMOLVLM_CHAT = "<|im_start|>\n" + MESSAGES + """\
    {{- message.role | capitalize + (':' if parts[0].type == 'image' else ': ') }}
    {%- for part in parts %}
        {{- part.text if part.type == 'text' else '<' + part.type + '>' }}
    {%- endfor %}
    {{- '<end_of_utterance>\\n' }}
{%- endfor %}
{{- 'Assistant:' if add_generation_prompt else '' }}"""  # fmt: skip
LLAVA_ONEVISION_CHAT = MESSAGES + """\
    {{- '<|im_start|>' + message.role + ' ' }}
    {%- for kind in ['image', 'video'] %}
        {%- for part in parts if part.type == kind %}{{- '<' + kind + '>' }}{%- endfor %}
    {%- endfor %}
    {%- for part in parts if part.type == 'text' %}{{- '\\n' + part.text }}{%- endfor %}
    {{- '<|im_end|>' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"""  # fmt: skip
LLAVA_NEXT_CHAT = MESSAGES + """\
    {{- message.role | upper + ': ' }}
    {%- for part in parts %}
        {{- '<image>\\n' if part.type == 'image' else part.text + ' ' }}
    {%- endfor %}
{%- endfor %}
{{- 'ASSISTANT:' if add_generation_prompt else '' }}"""  # fmt: skip
SIGLIP_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
CLIP_SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
CHATS = {"llava_onevision": LLAVA_ONEVISION_CHAT, "llava_next": LLAVA_NEXT_CHAT}

# GPT-2's way to cut words, as Qwen2 has it: digits one by one, at most one mark before a word.
QWEN2_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
               r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")  # fmt: skip

# CLIP's way: letters, single digits, runs of marks; blanks are left out.
CLIP_WORDS = (r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]"
              r"|[^\s\p{L}\p{N}]+")  # fmt: skip


def make_checkpoint(like: str, out: Path, seed: int = 0, force: bool = False) -> Path:
    """Write the checkpoint folder `out` of the preset `like`, complete or not at all.

    Raises:
        FileExistsError: `out` exists and `force` is not set.
    """
    if out.exists() and not force:
        raise FileExistsError(f"'{out}' exists: choose another folder, or add --force")
    preset = PRESETS[like]
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    embedder = preset["family"] in EMBEDDERS
    tokenizer = train_words(preset) if embedder else train_tokenizer(preset)
    config = embedder_config(preset, tokenizer) if embedder else model_config(preset, tokenizer)
    tokenizer.save(str(partial / "tokenizer.json"))
    files = embedder_files(preset) if embedder else small_files(preset, config)
    for name, content in {"config.json": config, **files}.items():
        write_json(partial / name, content)
    if not embedder:
        (partial / "chat_template.jinja").write_text(CHATS.get(preset["family"], SMOLVLM_CHAT))
    write_weights(partial / "model.safetensors", config, tokenizer, seed)
    if out.exists():
        shutil.rmtree(out)
    return partial.rename(out)


def train_tokenizer(preset: dict) -> Tokenizer:
    """Train byte-level BPE, with the family's special tokens at the ids of the published ones.

    SmolVLM and Llama have three special tokens first, the others after the words; Qwen2 has all
    after. Llama puts <s> in front of a text. Where the texts at hand yield too few words, numbers
    fill the vocabulary: never encoded, decodable.
    """
    vocab_size, tiny = preset["text"]["vocab_size"], preset["dtype"] == "float32"
    cut = pre_tokenizers.Digits(individual_digits=True)
    if preset["family"] == "llava_onevision":
        first, last = [], QWEN2_SPECIAL
        cut = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
    elif preset["family"] == "llava_next":
        first, last = LLAMA_SPECIAL[:3], LLAMA_SPECIAL[3:]
    else:
        reserved = [] if tiny else [f"<|reserved_special_token_{i}|>" for i in range(88)]
        first = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        last = [*SMOLVLM_SPECIAL, *reserved, "<end_of_utterance>"]
    words = vocab_size - len(last) if tiny or first else 151643
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(first))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts(tiny),
        trainers.BpeTrainer(vocab_size=words, special_tokens=first, min_frequency=1,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )  # fmt: skip
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    vocab |= {f"Ġ{1000 + i}": i for i in range(len(vocab), words)}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens(last)
    if "<s>" in first:
        start = [("<s>", first.index("<s>"))]
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=start)
    return tokenizer


def texts(tiny: bool) -> Iterator[str]:
    """The files of Python's standard library, or a few of them."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    for pattern in ["pydoc_data/*.py"] if tiny else ["*.py", "[a-z]*/*.py"]:
        for file in sorted(stdlib.glob(pattern)):
            if file.parent.name != "site-packages":
                yield file.read_text(encoding="utf-8", errors="ignore")


def train_words(preset: dict) -> Tokenizer:
    """Train the tokenizer of an encoder of texts, built as the published ones.

    CLIP: bytes, lower case, the end of a word marked, <|startoftext|> and <|endoftext|> around a
    text. SigLIP 2: Gemma's, letters with bytes for what is unknown, blanks as marks, <eos> after a
    text; `tiny-siglip` also has SigLIP's lower case without punctuation.
    """
    size, tiny = preset["text"]["vocab_size"], preset["dtype"] == "float32"
    if clip := preset["family"] == "clip":
        first, last, suffix = [], CLIP_SPECIAL, "</w>"
        cut = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
        cut = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        blank = normalizers.Replace(Regex(r"\s+"), " ")
        clean = normalizers.Sequence([normalizers.NFC(), blank, normalizers.Lowercase()])
    else:
        first, last, suffix = SIGLIP_SPECIAL + [f"<0x{i:02X}>" for i in range(256)], [], ""
        cut = pre_tokenizers.Metaspace(prepend_scheme="never")
        clean = normalizers.Replace(" ", "▁")
        if preset["family"] == "siglip" and tiny:
            marks = normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), "")
            strip = normalizers.Strip(left=True, right=True)
            clean = normalizers.Sequence([normalizers.Lowercase(), marks, strip, clean])
    trained = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    trained.pre_tokenizer, trained.normalizer = cut, normalizers.Lowercase() if clip else None
    alphabet = pre_tokenizers.ByteLevel.alphabet() if clip else []
    trained.train_from_iterator(
        texts(tiny),
        trainers.BpeTrainer(vocab_size=size - len(first) - len(last), end_of_word_suffix=suffix,
            min_frequency=1, initial_alphabet=alphabet, show_progress=False,
            limit_alphabet=300 if tiny else 3000),
    )  # fmt: skip
    learned = json.loads(trained.to_str())["model"]
    words = [*first, *sorted(learned["vocab"], key=learned["vocab"].get)]
    words += [f"▁{1000 + i}" for i in range(size - len(last) - len(words))]
    vocab = {word: i for i, word in enumerate([*words, *last])}
    merges = [tuple(pair) for pair in learned["merges"]]
    made = Tokenizer(models.BPE(vocab, merges, unk_token=last[1] if clip else "<unk>",
        end_of_word_suffix=suffix, byte_fallback=not clip, fuse_unk=not clip))  # fmt: skip
    made.normalizer = clean
    made.add_special_tokens(last or SIGLIP_SPECIAL)
    if clip:
        made.pre_tokenizer, made.decoder = cut, decoders.ByteLevel()
        made.post_processor = processors.RobertaProcessing(
            (last[1], vocab[last[1]]), (last[0], vocab[last[0]]), False, False
        )
    else:
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
            decoders.Fuse()])  # fmt: skip
        made.post_processor = processors.TemplateProcessing("$A <eos>", None, [("<eos>", 1)])
    return made


def embedder_config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json of a model that gives embeddings."""
    family, text = preset["family"], dict(preset["text"])
    if family == "clip":
        start, end = (tokenizer.token_to_id(token) for token in CLIP_SPECIAL)
        text |= {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = {"model_type": family, "dtype": preset["dtype"]}
    config |= {"architectures": [f"{EMBEDDERS[family]}Model"]}
    config |= {name: preset[name] for name in ("projection_dim",) if name in preset}
    return config | {
        "text_config": {"model_type": f"{family}_text_model", **text},
        "vision_config": {"model_type": f"{family}_vision_model", **preset["vision"]},
    }


def embedder_files(preset: dict) -> dict[str, dict]:
    """The other JSON files of such a folder: image processor and tokenizer, as published."""
    family, vision = preset["family"], preset["vision"]
    name = EMBEDDERS[family]
    side = vision.get("image_size", 0)
    image = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True}
    image |= {"image_processor_type": f"{name}ImageProcessor", "rescale_factor": 1 / 255}
    image |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}  # BILINEAR
    image |= {"processor_class": f"{name}Processor"}
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    special |= {"unk_token": "<unk>"}
    if family == "clip":
        image |= {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3}  # BICUBIC
        image |= {"size": {"shortest_edge": side}, "do_center_crop": True}
        image |= {"crop_size": {"height": side, "width": side}}
        special = dict(bos_token=CLIP_SPECIAL[0], eos_token=CLIP_SPECIAL[1])
        special |= {"pad_token": CLIP_SPECIAL[1], "unk_token": CLIP_SPECIAL[1]}
    elif family == "siglip":
        image |= {"size": {"height": side, "width": side}}
    else:
        patches = preset["max_num_patches"]
        image |= {"max_num_patches": patches, "patch_size": vision["patch_size"]}
    kinds = {"clip": "CLIPTokenizer", "siglip": "PreTrainedTokenizerFast"}
    # SigLIP reads padding as it reads words, so its published tokenizers give no mask.
    inputs = {} if family == "clip" else {"model_input_names": ["input_ids"]}
    return {
        "preprocessor_config.json": image,
        "tokenizer_config.json": {
            "tokenizer_class": kinds.get(family, "Siglip2Tokenizer"),
            "processor_class": f"{name}Processor",
            "model_max_length": preset["text"]["max_position_embeddings"],
            "padding_side": "right",
            "clean_up_tokenization_spaces": False,
            **inputs,
            **special,
        },
        "special_tokens_map.json": special,
    }


def model_config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    family, dtype, text = preset["family"], preset["dtype"], dict(preset["text"])
    config = {"model_type": family, "dtype": dtype}
    config |= {"architectures": [f"{CLASSES[family]}ForConditionalGeneration"]}
    config |= {"tie_word_embeddings": text["tie_word_embeddings"]}
    vision = {"model_type": f"{family}_vision", **preset["vision"]}
    if family == "llava_onevision":
        ids = [tokenizer.token_to_id(token) for token in QWEN2_SPECIAL]
        text |= {"bos_token_id": ids[0], "eos_token_id": ids[2], "pad_token_id": ids[0]}
        vision |= {"model_type": "siglip_vision_model", "vision_use_head": False}
        config |= {"video_token_index": ids[4], "vision_aspect_ratio": "anyres_max_9"}
        config |= {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    elif family == "llava_next":
        vision |= {"model_type": "clip_vision_model"}
        config |= {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    else:
        config |= {"image_token_id": tokenizer.token_to_id("<image>")}
        config |= {"scale_factor": preset["scale_factor"], "pad_token_id": 2}
    if family.startswith("llava"):
        config |= {"image_grid_pinpoints": pinpoints(family, vision["image_size"])}
        config |= {"image_token_index": tokenizer.token_to_id("<image>")}
        config |= {"projector_hidden_act": "gelu"}
    return config | {"text_config": text, "vision_config": vision}


def small_files(preset: dict, config: dict) -> dict[str, dict]:
    """The other JSON files of the folder: processors, tokenizer and generation, as published."""
    text, family = config["text_config"], preset["family"]
    name, image_size = CLASSES[family], preset["vision"]["image_size"]
    patches = image_size // preset["vision"]["patch_size"]
    image = {"do_convert_rgb": True, "do_resize": True, "do_rescale": True, "do_normalize": True}
    image |= {"rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    image |= {"image_processor_type": f"{name}ImageProcessor", "do_pad": True}
    processor = {"processor_class": f"{name}Processor"}
    if family.startswith("llava"):
        image |= {"resample": 3, "image_grid_pinpoints": config["image_grid_pinpoints"]}  # BICUBIC
        strategy = config["vision_feature_select_strategy"]
        processor |= {"image_token": "<image>", "vision_feature_select_strategy": strategy}
        generation = {f"{k}_token_id": text[f"{k}_token_id"] for k in ("bos", "eos", "pad")}
    if family == "llava_onevision":
        image |= {"size": {"height": image_size, "width": image_size}}
        processor |= {"num_image_tokens": patches**2, "video_token": "<video>"}
        processor |= {"vision_aspect_ratio": "anyres_max_9"}
        special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        extra = QWEN2_SPECIAL[1:]
    elif family == "llava_next":
        image |= {"size": {"shortest_edge": image_size}, "image_mean": CLIP_MEAN}
        image |= {"crop_size": {"height": image_size, "width": image_size}, "image_std": CLIP_STD}
        processor |= {"patch_size": image_size // patches, "num_additional_image_tokens": 1}
        special = {"bos_token": "<s>", "eos_token": "</s>"}
        special |= {"pad_token": "<pad>", "unk_token": "<unk>"}
        extra = LLAMA_SPECIAL[3:]
    else:
        image |= {"resample": 1, "do_image_splitting": True}  # LANCZOS
        image |= {"size": {"longest_edge": 4 * image_size}}
        image |= {"max_image_size": {"longest_edge": image_size}}
        processor |= {"image_seq_len": (patches // preset["scale_factor"]) ** 2}
        special = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>"}
        special |= {"pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
        generation = {"bos_token_id": 0, "eos_token_id": text["vocab_size"] - 1, "pad_token_id": 2}
        extra = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    return {
        "preprocessor_config.json": image | {"processor_class": processor["processor_class"]},
        "processor_config.json": processor,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": processor["processor_class"],
            "model_max_length": text["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "additional_special_tokens": extra,
            **special,
        },
        "special_tokens_map.json": {"additional_special_tokens": extra, **special},
        "generation_config.json": generation,
    }


def write_weights(path: Path, config: dict, tokenizer: Tokenizer, seed: int) -> None:
    """Write model.safetensors tensor by tensor; holds no more than `CHUNK` numbers at a time."""
    parts = {name: dict(config[name]) for name in ("text_config", "vision_config")}
    with torch.device("meta"):
        auto = AutoModel if config["model_type"] in EMBEDDERS else AutoModelForImageTextToText
        model = auto.from_config(AutoConfig.for_model(**config | parts))
    shapes = {published_name(name, config): tuple(p.shape) for name, p in model.named_parameters()}
    short, item = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}[config["dtype"]]
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(shapes):
        begin, end = end, end + math.prod(shapes[name]) * item
        header[name] = {"dtype": short, "shape": shapes[name], "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in sorted(shapes):
            for numbers in draw(name, shapes[name], seed, tokenizer):
                tensor = torch.from_numpy(numbers).to(getattr(torch, config["dtype"]))
                file.write(tensor.view(torch.uint8).numpy().data)


def draw(name: str, shape: tuple, seed: int, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Yield the float32 numbers of one tensor, flat, in whole rows, by the rules above."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
    layer, kind = name.split(".")[-2:] if "." in name else (name, name)
    if kind in CONSTANTS:
        yield np.full(1, CONSTANTS[kind], np.float32)
        return
    row = math.prod(shape[1:])
    if "norm" in layer and kind == "weight":
        yield np.full(shape, -1.0 if layer == "norm" else 1.0, np.float32)
        return
    std = next((s for key, s in ABSOLUTE_STD.items() if key in (layer, kind)), None)
    if std is None:
        std = next(g for key, g in GAINS.items() if key in name.split(".")) / math.sqrt(row)
    rows_per_chunk = max(1, CHUNK // row)
    for start in range(0, shape[0], rows_per_chunk):
        rows = min(rows_per_chunk, shape[0] - start)
        numbers = generator.standard_normal((rows, row), dtype=np.float32) * np.float32(std)
        if layer in ("embed_tokens", "lm_head"):
            quiet = [i - start for i in tokenizer.get_added_tokens_decoder()]
            numbers[[i for i in quiet if 0 <= i < rows]] *= 0.25
            numbers[max(0, tokenizer.get_vocab_size() - start) :] = 0
        yield numbers.reshape(-1)


def published_name(name: str, config: dict) -> str:
    """The published tensor name: the files of both LLaVAs keep an older layout of their modules."""
    if not config["model_type"].startswith("llava"):
        return name
    if name.startswith("lm_head"):
        return f"language_model.{name}"
    name = name.removeprefix("model.").replace("vision_tower.", "vision_tower.vision_model.")
    return name.replace("language_model.", "language_model.model.")


def pinpoints(family: str, image_size: int) -> list[list[int]]:
    """The published grids of tiles, [height, width] in pixels: OneVision has all of 1..6 x 1..6."""
    every = [(r, c) for r in range(1, 7) for c in range(1, 7)]
    grids = every if family == "llava_onevision" else [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    return [[r * image_size, c * image_size] for r, c in grids]


def write_json(path: Path, content: dict) -> None:
    """Write indented JSON with sorted keys."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--like", required=True, choices=PRESETS, help="which model to imitate")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--seed", type=int, default=0, help="other seed, other weights (default 0)")
    parser.add_argument("--force", action="store_true", help="replace the folder if it exists")
    arguments = parser.parse_args()
    try:
        print(make_checkpoint(**vars(arguments)))
    except FileExistsError as error:
        sys.exit(str(error))
