"""The model in training: configuration, tokenizer, first weights, and the checkpoint at the end."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageTextToText

from edgevlm.evaluation.datasets.shared import clips, questions, scenes
from edgevlm.evaluation.datasets.shared.drawing import (
    CELL,
    CHARACTERS,
    COLOURS,
    SHAPES,
    SIZE,
    WIDTHS,
)
from edgevlm.evaluation.datasets.shared.material import Material

SIDE = SIZE // CELL  # visual tokens a side
PAD, END, USER, ASSISTANT, IMAGE, VIDEO = SPECIAL = (
    "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<image>", "<video>")  # fmt: skip
# A word with its space, a capital or digit alone (texts are read letter by letter), or marks.
WORDS = r" ?[A-Z]?[a-z]+| ?[A-Z0-9]|\s+| ?[^\sA-Za-z0-9]+"
CHAT = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- set parts = [{'type': 'text', 'text': content}] if content is string else content %}
    {{- '<|user|>' if message.role == 'user' else '<|assistant|>' }}
    {%- for kind in ['image', 'video'] %}
        {%- for part in parts if part.type == kind %}{{- '<' + kind + '>' }}{%- endfor %}
    {%- endfor %}
    {%- for part in parts if part.type == 'text' %}{{- part.text }}{%- endfor %}
    {{- '<|end|>' if message.role == 'assistant' else '' }}
{%- endfor %}
{{- '<|assistant|>' if add_generation_prompt else '' }}"""
# What the dense loss tells apart under each visual token; 0 is nothing.
WHAT = ["", *SHAPES, *CHARACTERS, *(f"sign {d}" for d in range(10)), "emoji"]
COLOUR, SIZES = ["", *COLOURS], ["", *WIDTHS]
# Classes of: item or letter, colour, size, row and column of its middle, number of the letter in
# its text, whether the middle is here. The last is what can be counted.
SEEN = (len(WHAT), len(COLOUR), len(SIZES), SIDE + 1, SIDE + 1, 5, 3)
FRAMES = 3  # first, middle and last: where a phrase's item of a clip is
# Classes of what a phrase refers to: item, colour, size, row and column in the first, the middle
# and the last frame, number of items, frame in which it comes.
REFERRED = (len(WHAT), len(COLOUR), len(SIZES), *[SIDE] * 2 * FRAMES, 10, 16)
REFERRED_LAYERS = (2, 4)  # of the language model, after which phrases are asked
MEAN, STD = 0.72, 0.25  # of the pixels of drawn scenes


def config(vocabulary: int, pad: int, end: int, image: int, video: int) -> dict:
    """config.json of the model: SigLIP and Qwen2 as LLaVA-OneVision joins them."""
    vision = {"model_type": "siglip_vision_model", "hidden_size": 192, "intermediate_size": 768,
        "num_hidden_layers": 6, "num_attention_heads": 6, "image_size": SIZE, "patch_size": CELL,
        "hidden_act": "gelu_pytorch_tanh", "vision_use_head": False}  # fmt: skip
    text = {"model_type": "qwen2", "vocab_size": vocabulary, "hidden_size": 192,
        "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6,
        "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "max_position_embeddings": 4096, "tie_word_embeddings": True, "bos_token_id": pad,
        "eos_token_id": end, "pad_token_id": pad}  # fmt: skip
    grids = [[r * SIZE, c * SIZE] for r in range(1, 4) for c in range(1, 4)]
    return {"model_type": "llava_onevision", "tie_word_embeddings": True, "dtype": "float16",
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "image_token_index": image, "video_token_index": video, "image_grid_pinpoints": grids,
        "projector_hidden_act": "gelu", "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        "vision_config": vision, "text_config": text}  # fmt: skip


def train_tokenizer(material: Material) -> Tokenizer:
    """Byte-level BPE on the task's language: questions, answers and the sentences of NLVR."""
    rng, texts = Random("edgevlm tokenizer"), [s.prompt for s in material.sentences]
    for index in range(6000):
        kind = ("objects", "odd", "text")[index % 3]
        scene = scenes.draw_scene(rng, "train", kind)
        asked = questions.questions(scene, rng) + questions.description(scene, rng)
        if index % 3 == 0:
            kind = clips.KINDS[index // 3 % 3]
            asked += clips.draw_clip(rng, "train", kind, 6).questions
        texts += [q.prompt for q in asked] + [q.answer for q in asked if q.task != "read"]
    texts += ["Which digit does the hand show?", "What number is the hand signing?"] * 200
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(SPECIAL),
        min_frequency=3,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Trainee(nn.Module):
    """The model with the layers that only training has."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        width = model.config.vision_config.hidden_size
        self.dense = nn.Linear(width, sum(SEEN))
        width = model.config.text_config.hidden_size
        self.projected = nn.Linear(width, sum(SEEN))
        self.referred = nn.ModuleList(nn.Linear(width, sum(REFERRED)) for _ in REFERRED_LAYERS)

    def see(self, pixels: Tensor) -> Tensor:
        """u8 [B, F, h_px, w_px, 3] -> features of the encoder [B*F, tokens, D]."""
        x = (pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
        tower = self.model.model.vision_tower
        return tower(pixel_values=x, output_hidden_states=True).hidden_states[-1]

    def words(self, visual: Tensor) -> Tensor:
        """Logits of the words that each visual token is like, before the language model."""
        size = visual.float().square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        return self.model.lm_head(visual * size)

    def forward(self, batch: dict[str, Tensor], dense_only: bool) -> Logits:
        """What the model says about a batch."""
        features = self.see(batch["pixels"])
        seen = [self.dense(features)]
        if dense_only:
            return Logits(seen)
        core = self.model.model
        projected = visual = core.multi_modal_projector(features)
        seen.append(self.projected(projected))
        count, frames = batch["pixels"].shape[:2]
        if frames > 1:
            visual = core.apply_pooling(visual)
        visual = fewer(visual.reshape(count, -1, visual.shape[-1]), batch)
        table = core.language_model.embed_tokens
        user = table(torch.full((count, 1), batch["user"], device=visual.device))
        newline = core.image_newline.expand(count, 1, -1)
        text = table(batch["ids"])
        rows = torch.cat([part.to(text.dtype) for part in (user, visual, newline, text)], 1)
        before = visual.shape[1] + 2
        mask, positions = attention(batch, before)
        hidden = core.language_model(
            inputs_embeds=rows, attention_mask=mask.to(rows.dtype), position_ids=positions,
            use_cache=False, output_hidden_states=True,
        )  # fmt: skip
        phrases = batch["referred"].amax(-1) >= 0
        referred = [
            layer(hidden.hidden_states[depth][:, before:][phrases])
            for depth, layer in zip(REFERRED_LAYERS, self.referred, strict=True)
        ]
        text = self.model.lm_head(hidden.last_hidden_state[:, before:])
        return Logits(seen, text, self.words(projected), referred)


@dataclass(frozen=True)
class Logits:
    """What the model says about a batch; in the first part only what its encoder sees.

    Attributes:
        seen: [B*F, tokens, classes of `SEEN`] of the encoder's features and of the projected ones.
        text: [B, T, V].
        words: Visual tokens as words, [B*F, tokens, V].
        referred: [phrases, classes of `REFERRED`] after each of `REFERRED_LAYERS`.
    """

    seen: list[Tensor]
    text: Tensor | None = None
    words: Tensor | None = None
    referred: list[Tensor] = field(default_factory=list)


def word_targets(tokenizer: Tokenizer) -> tuple[Tensor, ...]:
    """For each class of item, colour and size the words that name it: f32 [classes, V] each.

    A word counts with and without the space before it; a row adds up to one, or is zero.
    """
    made = []
    for names in (WHAT, COLOUR, SIZES):
        rows = torch.zeros(len(names), tokenizer.get_vocab_size())
        for row, name in zip(rows, names, strict=True):
            for text in {name.removeprefix("sign "), " " + name.removeprefix("sign ")}:
                ids = tokenizer.encode(text).ids
                if name and len(ids) == 1:
                    row[ids[0]] = 1
            row /= row.sum().clamp(min=1)
        made.append(rows)
    return tuple(made)


def fewer(visual: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Visual tokens [B, N, C] -> those of `kept`, or the means of a grid, or all."""
    if "kept" in batch:
        return visual.gather(1, batch["kept"][..., None].expand(-1, -1, visual.shape[-1]))
    if "grid" in batch:
        square = visual.transpose(1, 2).unflatten(2, (SIDE, SIDE))
        return functional.adaptive_avg_pool2d(square, batch["grid"]).flatten(2).transpose(1, 2)
    return visual


def attention(batch: dict[str, Tensor], before: int) -> tuple[Tensor, Tensor]:
    """Additive mask [B, 1, S, S] and positions [B, S]: each question alone, or a chat in turn.

    Visual tokens that are some `of` many keep the positions that they have among all.
    """
    groups, chat = batch["groups"], batch["chat"]
    count, text = groups.shape
    length = before + text
    seen = torch.ones(length, length, dtype=torch.bool, device=groups.device).tril()
    seen = seen.expand(count, length, length).clone()
    same = (groups[:, :, None] == groups[:, None, :]) | chat[:, None, None]
    seen[:, before:, before:] &= same
    first = torch.arange(before, device=groups.device).repeat(count, 1)
    if "of" in batch:
        first[:, 1:-1], first[:, -1] = batch["kept"] + 1, batch["of"] + 1
    positions = torch.cat((first, first[:, -1:] + 1 + batch["positions"]), 1)
    return torch.where(seen, 0.0, -1e4)[:, None], positions


def prepare(run: Path, material: Material, start: Path | None) -> Tokenizer:
    """The run's tokenizer: that of the checkpoint to begin with, or one that is trained once."""
    path = run / "tokenizer.json"
    if not path.is_file():
        given = start and Tokenizer.from_file(str(start / "tokenizer.json"))
        (given or train_tokenizer(material)).save(str(path))
    return Tokenizer.from_file(str(path))


def build(run: Path, start: Path | None) -> nn.Module:
    """The model, with seeded noise or the weights of a checkpoint."""
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    if start:
        return AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32)
    ids = [tokenizer.token_to_id(name) for name in (PAD, END, IMAGE, VIDEO)]
    content = config(tokenizer.get_vocab_size(), *ids)
    parts = {name: dict(content[name]) for name in ("text_config", "vision_config")}
    model = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(**content | parts), dtype=torch.float32
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and (".layers." in name or "projector" in name):
                nn.init.normal_(parameter, 0, parameter.shape[1] ** -0.5)
            elif "patch_embedding.weight" in name:
                nn.init.normal_(parameter, 0, parameter[0].numel() ** -0.5)
            elif "position_embedding" in name:
                parameter.copy_(sine_positions(parameter.shape[1]))
            elif "image_newline" in name:
                nn.init.normal_(parameter, 0, 0.3)
            elif "embed_tokens" in name:
                nn.init.normal_(parameter, 0, 0.05)
        # Equal query and key: at the start a token looks at those like it. In the encoder these are
        # its neighbours, in the language model the visual tokens that stand for the same word.
        for layer in model.model.vision_tower.encoder.layers:
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
        for layer in model.model.language_model.layers:
            attn, groups = layer.self_attn, layer.self_attn.num_key_value_groups
            key = attn.k_proj.weight.unflatten(0, (-1, attn.head_dim))
            attn.q_proj.weight.mul_(0.5)
            attn.q_proj.weight.add_(key.repeat_interleave(groups, 0).flatten(0, 1))
            nn.init.zeros_(attn.q_proj.bias)
            nn.init.zeros_(attn.k_proj.bias)
    return model


def sine_positions(width: int) -> Tensor:
    """Sines and cosines of row and column, so that neighbours are alike: [rows*columns, D]."""
    rates = 10.0 ** -torch.linspace(0, 1.5, width // 4)
    angles = torch.arange(SIDE)[:, None] * rates
    waves = torch.cat((angles.sin(), angles.cos()), 1)  # [side, D/2]
    rows, columns = waves[:, None].expand(-1, SIDE, -1), waves[None].expand(SIDE, -1, -1)
    return torch.cat((rows, columns), -1).flatten(0, 1)


def write_checkpoint(run: Path, trainee: Trainee, out: Path) -> None:
    """The checkpoint folder: weights in float16, configs, tokenizer and chat template."""
    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(trainee.model).half().save_pretrained(out)
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    tokenizer.save(str(out / "tokenizer.json"))
    content = config(tokenizer.get_vocab_size(), ids[PAD], ids[END], ids[IMAGE], ids[VIDEO])
    image = {"image_processor_type": "LlavaOnevisionImageProcessor", "do_convert_rgb": True,
        "do_resize": True, "do_rescale": True, "do_normalize": True, "do_pad": True,
        "rescale_factor": 1 / 255, "image_mean": [MEAN] * 3, "image_std": [STD] * 3, "resample": 3,
        "size": {"height": SIZE, "width": SIZE}, "processor_class": "LlavaOnevisionProcessor",
        "image_grid_pinpoints": content["image_grid_pinpoints"]}  # fmt: skip
    special = {"eos_token": END, "pad_token": PAD, "bos_token": PAD}
    extra = list(SPECIAL[1:])
    files = {
        "config.json": content,
        "preprocessor_config.json": image,
        "processor_config.json": {"processor_class": "LlavaOnevisionProcessor",
            "image_token": IMAGE, "video_token": VIDEO, "num_image_tokens": SIDE * SIDE,
            "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "LlavaOnevisionProcessor", "model_max_length": 4096,
            "clean_up_tokenization_spaces": False, "additional_special_tokens": extra, **special},
        "special_tokens_map.json": {"additional_special_tokens": extra, **special},
        "generation_config.json": {"bos_token_id": ids[PAD], "eos_token_id": ids[END],
            "pad_token_id": ids[PAD]},
    }  # fmt: skip
    for name, document in files.items():
        (out / name).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    (out / "chat_template.jinja").write_text(CHAT)
