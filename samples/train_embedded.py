"""Train the embedded model: a small LLaVA-OneVision that answers questions about drawn scenes.

    python samples/train_embedded.py RUN --data DATA [--steps 12000] [--hours 2] [--out FOLDER]

RUN is a folder that keeps everything of one training: the tokenizer, state.pt every few minutes
(the same command goes on from it), log.csv and curves.png. DATA holds the real material, unpacked:
`nlvr/`, `sign_digits/` and `emoji_noto/`. `--out` writes the checkpoint that transformers loads.

1. Batches are drawn, not stored: batch number s of seed n is always the same, on any machine and
   with any number of workers. A batch has still pictures, or clips of one length.
2. For the first `--dense-steps` pictures are crowded with items, and the only loss is that of one
   linear layer that names the item, colour and size under each visual token ("dense"): the encoder
   learns to see before there is anything to say. That layer is thrown away in the end.
3. Then every picture comes with up to a dozen questions in one sequence. They share the visual
   tokens; a mask keeps each question from seeing the others and its positions begin where the
   visual tokens end, so that the model sees what it will see when asked once. One picture in five
   is a chat instead: its questions are turns that see those before.
   The loss is cross-entropy of the answers, and still the dense one.
4. One batch in seven has fewer visual tokens: a random part of them, or the means of a coarser
   grid, the plainest ways to remove tokens and to merge them. Otherwise the length of a sequence
   alone would confuse the model, and accuracy against tokens would show that.
5. Muon (arXiv 2502.16982) for matrices of the blocks, AdamW for the rest; the rate rises, stays
   and falls linearly to zero over the last `--decay` of the steps. bfloat16 products, float32
   weights.

Validation is exact match: an answer counts if every token of it is the likeliest one given those
before, which is what greedy decoding gives. The same seed gives the same weights on one machine
with the same number of threads, if it is not stopped; state.pt has all that is needed to go on.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from transformers import AutoConfig, AutoModelForImageTextToText

from edgevlm.datasets import _clips, _scenes
from edgevlm.datasets._drawing import (
    CELL,
    CHARACTERS,
    COLOURS,
    SHAPES,
    SIZE,
    WIDTHS,
    Item,
    background,
    cells,
    draw,
    letter_at,
)
from edgevlm.datasets._material import Material, training_material
from edgevlm.examples import Question

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
# What the dense loss tells apart: items, colours, sizes; 0 is nothing.
WHAT = ["", *SHAPES, *CHARACTERS, *(f"sign {d}" for d in range(10)), "emoji"]
COLOUR, SIZES = ["", *COLOURS], ["", *WIDTHS]
STILL = {"objects": 0.42, "odd": 0.13, "text": 0.27, "sign": 0.12, "nlvr": 0.06}
CLIP_SHARE, FEWER_SHARE = 0.3, 0.14  # of the batches
MEAN, STD = 0.72, 0.25  # of the pixels of drawn scenes
TEXT_TOKENS = 144  # most text of a sequence
IGNORE = -100


def config(vocabulary: int, pad: int, end: int, image: int, video: int) -> dict:
    """config.json of the model: SigLIP and Qwen2 as LLaVA-OneVision joins them."""
    vision = {"model_type": "siglip_vision_model", "hidden_size": 192, "intermediate_size": 768,
        "num_hidden_layers": 6, "num_attention_heads": 6, "image_size": SIZE, "patch_size": CELL,
        "hidden_act": "gelu_pytorch_tanh", "vision_use_head": False}  # fmt: skip
    text = {"model_type": "qwen2", "vocab_size": vocabulary, "hidden_size": 192,
        "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6,
        "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e4,
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
        scene = _scenes.draw_scene(rng, "train", kind)
        asked = _scenes.questions(scene, rng) + _scenes.description(scene, rng)
        if index % 3 == 0:
            kind = _clips.KINDS[index // 3 % 3]
            asked += _clips.draw_clip(rng, "train", kind, 6).questions
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


@dataclass(frozen=True)
class Sample:
    """One picture or clip before it is a tensor."""

    frames: list[Image.Image]
    dense: list[np.ndarray]  # i64 [rows, columns, 3] per frame
    questions: list[Question]
    chat: bool


class Batches(Dataset):
    """Batch number `step` of a seed; the validation batches are those of another name."""

    def __init__(self, tokenizer: Tokenizer, material: Material, seed: int, size: int,
                 split: str = "train", dense_steps: int = 0) -> None:  # fmt: skip
        self.tokenizer, self.material, self.split = tokenizer, material, split
        self.name, self.size = f"edgevlm {split} {seed}", size
        self.dense_steps = dense_steps
        self.ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}

    def __len__(self) -> int:
        return 1 << 31

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rng = Random(f"{self.name} {step}")
        if step < self.dense_steps:
            return self.tensors([self.crowd(rng) for _ in range(2 * self.size)])
        if rng.random() < CLIP_SHARE:
            frames = rng.randint(4, 8)
            samples = [self.clip(rng, frames) for _ in range(max(1, self.size * 3 // 2 // frames))]
        else:
            samples = [self.still(rng) for _ in range(self.size)]
        batch = self.tensors(samples)
        if self.split == "train" and rng.random() < FEWER_SHARE:
            clip = batch["pixels"].shape[1] > 1
            if clip or rng.random() < 0.5:
                tokens = SIDE * SIDE if not clip else (SIDE // 2) ** 2 * batch["pixels"].shape[1]
                kept = round(tokens * 2 ** -rng.uniform(0.2, 3.5))
                chosen = [sorted(rng.sample(range(tokens), kept)) for _ in samples]
                batch["kept"] = torch.tensor(chosen)
            else:
                batch["grid"] = (rng.randint(4, SIDE - 1), rng.randint(4, SIDE - 1))
        return batch

    def crowd(self, rng: Random) -> Sample:
        """Many items and nothing to say: shapes and texts side by side, or a hand."""
        m = self.material
        if rng.random() < 0.15:
            scene = _scenes.draw_scene(rng, self.split, "sign", len(m.photos))
            number = int(scene.items[0].name)
            shown: Any = {number: vary(m.photos[number], rng)}
        else:
            scene, shown = _scenes.crowd(rng, len(m.emoji)), m.emoji
        picture = draw(background(rng), scene.items, shown)
        return Sample([picture], [dense(scene.items, m.digits)], [], False)

    def still(self, rng: Random) -> Sample:
        """A still picture of a random kind."""
        kind = rng.choices(list(STILL), list(STILL.values()))[0]
        if kind == "nlvr":
            return self.sentence(rng)
        m = self.material
        scene = _scenes.draw_scene(rng, self.split, kind, len(m.photos), len(m.emoji))
        asked = _scenes.questions(scene, rng, m.digits)
        if rng.random() < 0.5:
            asked += _scenes.description(scene, rng)
        if kind == "sign":
            number = int(scene.items[0].name)
            photo = m.photos[number]
            if self.split == "train":
                photo = vary(photo, rng)
            picture = draw(background(rng), scene.items, {number: photo})
            labels = dense(scene.items, m.digits)
        else:
            picture = draw(background(rng), scene.items, m.emoji)
            labels = dense(scene.items, ())
        return Sample([picture], [labels], balanced(asked, rng), rng.random() < 0.2)

    def sentence(self, rng: Random) -> Sample:
        """A picture of NLVR with its sentence."""
        chosen = rng.choice(self.material.sentences)
        picture = Image.open(rng.choice(chosen.pictures)).convert("RGB")
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        asked = [Question("nlvr", chosen.prompt, chosen.answer)]
        return Sample([picture], [np.full((SIDE, SIDE, 3), IGNORE)], asked, False)

    def clip(self, rng: Random, frames: int) -> Sample:
        """A clip, or at times a still picture that is shown as one."""
        m = self.material
        if rng.random() < 0.1:
            kind = rng.choice(("objects", "odd", "text"))
            scene = _scenes.draw_scene(rng, self.split, kind, 0, len(m.emoji))
            picture = draw(background(rng), scene.items, m.emoji)
            asked = balanced(_scenes.questions(scene, rng), rng)
            return Sample([picture] * frames, [dense(scene.items, ())] * frames, asked, False)
        clip = _clips.draw_clip(rng, self.split, rng.choice(_clips.KINDS), frames, len(m.emoji))
        ground = background(rng)
        pictures = [draw(ground, items, m.emoji) for items in clip.frames]
        labels = [dense(items, ()) for items in clip.frames]
        asked = list(clip.questions)
        rng.shuffle(asked)
        return Sample(pictures, labels, asked, rng.random() < 0.2)

    def tensors(self, samples: list[Sample]) -> dict[str, Tensor]:
        """Pixels, text with its mask and positions, answers, dense labels.

        The sequence of a sample is user marker, visual tokens, newline, text; `positions` count
        from the newline on, and text sees all that is before it.
        """
        rows = [self.text(s) for s in samples]
        longest = max(len(r[0]) for r in rows)
        count = len(rows)
        ids = torch.full((count, longest), self.ids[PAD])
        labels, place = torch.full((count, longest), IGNORE), torch.zeros(count, longest).long()
        group = torch.full((count, longest), -1)
        for row, (text, answer, position, segment) in enumerate(rows):
            n = len(text)
            ids[row, :n], labels[row, :n] = torch.tensor(text), torch.tensor(answer)
            place[row, :n], group[row, :n] = torch.tensor(position), torch.tensor(segment)
        frames = np.stack([np.stack([np.asarray(f) for f in s.frames]) for s in samples])
        tasks = [[q.task for q in s.questions] for s in samples]
        return {
            "pixels": torch.from_numpy(frames),  # u8 [B, F, h_px, w_px, 3]
            "ids": ids,
            "labels": labels,
            "positions": place,
            "groups": group,  # question of each text token
            "chat": torch.tensor([s.chat for s in samples]),
            "dense": torch.from_numpy(np.stack([np.stack(s.dense) for s in samples])),
            "tasks": tasks,
        }

    def text(self, sample: Sample) -> tuple[list[int], list[int], list[int], list[int]]:
        """Ids, labels, positions from the newline on, and question numbers of one sample."""
        ids: list[int] = []
        labels: list[int] = []
        places: list[int] = []
        groups: list[int] = []
        for number, question in enumerate(sample.questions):
            prompt = [*self.tokenizer.encode(question.prompt).ids, self.ids[ASSISTANT]]
            answer = [*self.tokenizer.encode(question.answer).ids, self.ids[END]]
            if sample.chat and number:
                prompt.insert(0, self.ids[USER])
            if ids and len(ids) + len(prompt) + len(answer) > TEXT_TOKENS:
                del sample.questions[number:]
                break
            start = len(places) if sample.chat else 0
            ids += prompt + answer
            # Each token predicts the next: the marker the first of the answer, and so on.
            labels += [IGNORE] * (len(prompt) - 1) + answer + [IGNORE]
            places += range(start, start + len(prompt) + len(answer))
            groups += [number] * (len(prompt) + len(answer))
        return ids, labels, places, groups


def balanced(asked: list[Question], rng: Random) -> list[Question]:
    """At most 20 questions in rounds, one of each task a round: no task drowns the others."""
    by_task: dict[str, list[Question]] = defaultdict(list)
    for question in asked:
        by_task[question.task].append(question)
    turns = [(rank + rng.random(), q) for of in by_task.values() for rank, q in enumerate(of)]
    return [q for _, q in sorted(turns, key=lambda t: t[0])[:20]]


def dense(items: tuple[Item, ...], digits: tuple[str, ...] | list[str]) -> np.ndarray:
    """Item, colour and size under each visual token, i64 [rows, columns, 3]."""
    found = np.zeros((SIDE, SIDE, 3), np.int64)
    under = cells(items)
    for row, column in zip(*np.nonzero(under >= 0), strict=True):
        item = items[under[row, column]]
        if item.kind == "text":
            what = letter_at(item, (column + 0.5) * CELL)
        elif item.kind == "photo":
            what = f"sign {digits[int(item.name)]}"
        else:
            what = "emoji" if item.kind == "emoji" else item.name
        found[row, column] = WHAT.index(what), COLOUR.index(item.colour), SIZES.index(item.size)
    return found


def vary(photo: Image.Image, rng: Random) -> Image.Image:
    """A photograph as another hand before another wall might look: turned, cut, mirrored, lit."""
    if rng.random() < 0.5:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    photo = photo.rotate(
        rng.uniform(-20, 20), Image.Resampling.BILINEAR, fillcolor=photo.getpixel((2, 2))
    )
    w, h = photo.size
    share = rng.uniform(0.78, 1.0)
    ratio = rng.uniform(0.88, 1.14)
    cw, ch = min(w, w * share * ratio), min(h, h * share / ratio)
    x, y = rng.uniform(0, w - cw), rng.uniform(0, h - ch)
    photo = photo.crop((round(x), round(y), round(x + cw), round(y + ch)))
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        photo = enhancer(photo).enhance(rng.uniform(0.65, 1.4))
    return photo


class Trainee(nn.Module):
    """The model with the dense layer; gives logits of the text and of the dense labels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        width = model.config.vision_config.hidden_size
        self.dense = nn.Linear(width, len(WHAT) + len(COLOUR) + len(SIZES))

    def see(self, pixels: Tensor) -> Tensor:
        """u8 [B, F, h_px, w_px, 3] -> features of the encoder [B*F, tokens, D]."""
        x = (pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
        tower = self.model.model.vision_tower
        return tower(pixel_values=x, output_hidden_states=True).hidden_states[-1]

    def forward(self, batch: dict[str, Tensor], dense_only: bool) -> tuple[Tensor, Tensor | None]:
        """Dense logits [B*F, tokens, classes] and text logits [B, T, V], or None."""
        features = self.see(batch["pixels"])
        named = self.dense(features)
        if dense_only:
            return named, None
        core = self.model.model
        visual = core.multi_modal_projector(features)
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
            use_cache=False,
        ).last_hidden_state[:, before:]  # fmt: skip
        return named, self.model.lm_head(hidden)


def fewer(visual: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Visual tokens [B, N, C] -> those of `kept`, or the means of a grid, or all."""
    if "kept" in batch:
        return visual.gather(1, batch["kept"][..., None].expand(-1, -1, visual.shape[-1]))
    if "grid" in batch:
        square = visual.transpose(1, 2).unflatten(2, (SIDE, SIDE))
        return functional.adaptive_avg_pool2d(square, batch["grid"]).flatten(2).transpose(1, 2)
    return visual


def attention(batch: dict[str, Tensor], before: int) -> tuple[Tensor, Tensor]:
    """Additive mask [B, 1, S, S] and positions [B, S]: each question alone, or a chat in turn."""
    groups, chat = batch["groups"], batch["chat"]
    count, text = groups.shape
    length = before + text
    seen = torch.ones(length, length, dtype=torch.bool, device=groups.device).tril()
    seen = seen.expand(count, length, length).clone()
    same = (groups[:, :, None] == groups[:, None, :]) | chat[:, None, None]
    seen[:, before:, before:] &= same
    first = torch.arange(before, device=groups.device).expand(count, before)
    positions = torch.cat((first, before + batch["positions"]), 1)
    return torch.where(seen, 0.0, -1e4)[:, None], positions


def losses(trainee: Trainee, batch: dict[str, Tensor], dense_only: bool) -> tuple[Tensor, ...]:
    """Loss of the answers, loss of the dense labels, right answers [B, T] (True where no label)."""
    named, logits = trainee(batch, dense_only)
    target, start, dense_loss = batch["dense"].flatten(0, 1).flatten(1, 2), 0, 0.0
    for part, size in enumerate((len(WHAT), len(COLOUR), len(SIZES))):
        scores = named[..., start : start + size].float().flatten(0, 1)
        wanted = target[..., part].flatten()
        # Most tokens see nothing: they count as much as the others together.
        weight = torch.ones(size, device=scores.device)
        weight[0] = 0.25
        dense_loss = dense_loss + functional.cross_entropy(
            scores, wanted, weight, ignore_index=IGNORE
        )
        start += size
    if logits is None:
        return torch.zeros((), device=named.device), dense_loss, torch.ones(())
    logits = logits.float()
    loss = functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE
    )
    right = (logits.argmax(-1) == batch["labels"]) | (batch["labels"] == IGNORE)
    return loss, dense_loss, right


def optimizers(trainee: Trainee, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else."""
    inside = [p for n, p in trainee.named_parameters() if p.ndim == 2 and ".layers." in n]
    chosen = {id(p) for p in inside}
    others = [p for p in trainee.parameters() if id(p) not in chosen and p.requires_grad]
    return [
        torch.optim.Muon(inside, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True),
    ]


def rate_at(step: int, steps: int, warmup: int, decay: float) -> float:
    """Share of the full rate at a step: up, flat, down to zero."""
    down = max(1.0, steps * decay)
    return min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / down))


def to_device(batch: dict, device: str, user: int) -> dict:
    """The batch's tensors on a device, with the id of the user marker."""
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    return moved | {"user": user}


@torch.no_grad()
def validate(trainee: Trainee, batches: list[dict], autocast: torch.autocast) -> dict[str, float]:
    """Exact match per task over fixed batches; `all` is the mean over questions."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for batch in batches:
        with autocast:
            right = losses(trainee, batch, False)[2]
        for row, tasks in enumerate(batch["tasks"]):
            for number, task in enumerate(tasks):
                hits[task].append(bool(right[row][batch["groups"][row] == number].all()))
    found = {task: float(np.mean(of)) for task, of in sorted(hits.items())}
    return {"all": float(np.mean([h for of in hits.values() for h in of])), **found}


def main() -> None:
    """Train, or go on."""
    arguments = options()
    arguments.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    autocast = torch.autocast(device, torch.bfloat16)
    material = training_material(arguments.data, "train")
    tokenizer = prepare(arguments.run, material)
    trainee = Trainee(build(arguments.run, arguments.start)).to(device)
    optimisers = optimizers(trainee, arguments.rate)
    step, seconds, pictures = 0, 0.0, 0
    state = arguments.run / "state.pt"
    if state.is_file():
        kept = torch.load(state, map_location=device, weights_only=True)
        trainee.load_state_dict(kept["trainee"])
        for optimiser, content in zip(optimisers, kept["optimisers"], strict=True):
            optimiser.load_state_dict(content)
        step, seconds, pictures = kept["step"], kept["seconds"], kept["pictures"]
    user = tokenizer.token_to_id(USER)
    data = Batches(
        tokenizer, material, arguments.seed, arguments.batch, dense_steps=arguments.dense_steps
    )
    ahead = training_material(arguments.data, "validation")
    check = Batches(tokenizer, ahead, 0, arguments.batch, "validation")
    held = [to_device(check[i], device, user) for i in range(arguments.check)]
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=range(step, arguments.steps),
        num_workers=arguments.workers,
        prefetch_factor=4 if arguments.workers else None,
    )
    last, last_saved = time.perf_counter(), time.perf_counter()
    stop = time.perf_counter() + arguments.hours * 3600
    seen = torch.zeros(2)
    since = 0
    for batch in loader:
        share = rate_at(step, arguments.steps, 150, arguments.decay)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = arguments.rate * share
        dense_only = step < arguments.dense_steps
        batch = to_device(batch, device, user)
        with autocast:
            answer_loss, dense_loss, _ = losses(trainee, batch, dense_only)
        (answer_loss + arguments.dense_weight * dense_loss).backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        step += 1
        since += 1
        pictures += len(batch["pixels"])
        seen += torch.stack([answer_loss, dense_loss]).detach().float().cpu()
        now = time.perf_counter()
        seconds, last = seconds + now - last, now
        done = step == arguments.steps or now > stop
        if (step % arguments.every == 0 and not dense_only) or done:
            scores = validate(trainee, held, autocast)
            log(
                arguments.run / "log.csv",
                step,
                seconds,
                pictures,
                share,
                (seen / since).tolist(),
                scores,
            )
            seen.zero_()
            since = 0
            last = time.perf_counter()
        if now - last_saved > 240 or done:
            last_saved = now
            save(state, trainee, optimisers, step, seconds, pictures)
            draw_curves(arguments.run)
        if done:
            break
    if arguments.out:
        write_checkpoint(arguments.run, trainee, arguments.out)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--start", type=Path, help="checkpoint to begin with instead of noise")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--hours", type=float, default=1e6, help="stop, to go on another time")
    parser.add_argument("--batch", type=int, default=16, help="pictures of a batch")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.25, help="share of the steps")
    parser.add_argument("--dense-steps", type=int, default=1000)
    parser.add_argument("--dense-weight", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=250, help="steps between validations")
    parser.add_argument("--check", type=int, default=24, help="batches of a validation")
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def prepare(run: Path, material: Material) -> Tokenizer:
    """The run's tokenizer, trained once."""
    path = run / "tokenizer.json"
    if not path.is_file():
        train_tokenizer(material).save(str(path))
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
        for layer in model.model.vision_tower.encoder.layers:
            # Equal query and key: at the start a token looks at those like it, its neighbours.
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    return model


def sine_positions(width: int) -> Tensor:
    """Sines and cosines of row and column, so that neighbours are alike: [rows*columns, D]."""
    rates = 10.0 ** -torch.linspace(0, 1.5, width // 4)
    angles = torch.arange(SIDE)[:, None] * rates
    waves = torch.cat((angles.sin(), angles.cos()), 1)  # [side, D/2]
    rows, columns = waves[:, None].expand(-1, SIDE, -1), waves[None].expand(SIDE, -1, -1)
    return torch.cat((rows, columns), -1).flatten(0, 1)


def save(
    path: Path, trainee: Trainee, optimisers: list, step: int, seconds: float, pictures: int
) -> None:
    """The state, complete or not at all."""
    content = {"trainee": trainee.state_dict(), "optimisers": [o.state_dict() for o in optimisers],
               "step": step, "seconds": seconds, "pictures": pictures}  # fmt: skip
    torch.save(content, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def log(path: Path, step: int, seconds: float, pictures: int, share: float, loss: list[float],
        scores: dict[str, float]) -> None:  # fmt: skip
    """A row of log.csv, and a line on the screen."""
    row = {"step": step, "seconds": round(seconds), "pictures": pictures, "rate": round(share, 4),
           "answer_loss": round(loss[0], 4), "dense_loss": round(loss[1], 4),
           **{k: round(v, 4) for k, v in scores.items()}}  # fmt: skip
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(" ".join(f"{k} {v}" for k, v in row.items()), flush=True)


def draw_curves(run: Path) -> None:
    """curves.png: losses and accuracies of log.csv against pictures seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path = run / "log.csv"
    if not path.is_file():
        return
    rows = list(csv.DictReader(path.open()))
    x = [int(row["pictures"]) for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5))
    for name in ("answer_loss", "dense_loss"):
        left.plot(x, [float(row[name]) for row in rows], label=name)
    tasks = [key for key in rows[0] if key not in
             ("step", "seconds", "pictures", "rate", "answer_loss", "dense_loss")]  # fmt: skip
    for index, name in enumerate(tasks):
        style = {"color": f"C{index % 10}", "linestyle": "-" if index < 10 else "--"}
        wide = {"color": "black", "linewidth": 2.5} if name == "all" else style
        right.plot(x, [float(row[name]) for row in rows], label=name, **wide)
    left.set(xlabel="pictures and clips seen", ylabel="loss", yscale="log")
    right.set(xlabel="pictures and clips seen", ylabel="exact match, validation", ylim=(0, 1))
    left.legend()
    right.legend(ncols=3, fontsize=8)
    figure.tight_layout()
    figure.savefig(run / "curves.png", dpi=110)
    pyplot.close(figure)


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
        "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3,
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


if __name__ == "__main__":
    main()
