"""Batches, drawn when they are needed: batch number s of a seed is the same on every machine."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from model import ASSISTANT, COLOUR, END, PAD, REFERRED, SEEN, SIDE, SIZES, SPECIAL, USER, WHAT
from PIL import Image, ImageEnhance
from referents import IGNORE, Phrases, in_clip, in_scene, marks
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from edgevlm.evaluation.datasets.shared import clips, questions, scenes
from edgevlm.evaluation.datasets.shared.drawing import (
    CELL,
    SIZE,
    Item,
    background,
    cells,
    draw,
    letters,
)
from edgevlm.evaluation.datasets.shared.material import Material
from edgevlm.evaluation.examples import Question

STILL = {"objects": 0.37, "odd": 0.28, "text": 0.23, "sign": 0.08, "nlvr": 0.04}
CLIPS = {"move": 0.3, "turn": 0.2, "order": 0.5}
CLIP_SHARE, FEWER_SHARE = 0.42, 0.14  # of the batches
CLIP_FRAMES = 2.5, 1.5  # frames of a batch of clips for each of its pictures, in parts 2 and 3
HANDS_SHARE = 0.25  # of the crowded pictures
FOCUS_SHARE, FOCUS_TOKENS = 0.8, (56, 112)  # of the batches of the second part; tokens kept
TEXT_TOKENS = 208  # most text of a sequence
SOON = ("colour", "shape", "size")


@dataclass(frozen=True)
class Sample:
    """One picture or clip before it is a tensor."""

    frames: list[Image.Image]
    dense: list[np.ndarray]  # i64 [rows, columns, SEEN] per frame
    questions: list[Question]
    phrases: Phrases
    chat: bool


class Batches(Dataset):
    """Batch number `step` of a seed; the validation batches are those of another name."""

    def __init__(self, tokenizer: Tokenizer, material: Material, seed: int, size: int,
                 split: str = "train", dense_steps: int = 0,
                 focus_steps: int = 0) -> None:  # fmt: skip
        self.tokenizer, self.material, self.split = tokenizer, material, split
        self.name, self.size = f"edgevlm {split} {seed}", size
        self.dense_steps, self.focus_steps = dense_steps, dense_steps + focus_steps
        self.ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}

    def __len__(self) -> int:
        return 1 << 31

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rng = Random(f"{self.name} {step}")
        if step < self.dense_steps:
            return self.tensors([self.crowd(rng) for _ in range(2 * self.size)])
        if rng.random() < CLIP_SHARE:
            frames = rng.randint(4, 8)
            most = CLIP_FRAMES[step >= self.focus_steps] * self.size
            samples = [self.clip(rng, frames) for _ in range(max(1, int(most / frames)))]
        else:
            samples = [self.still(rng) for _ in range(self.size)]
        batch = self.tensors(samples)
        if step < self.focus_steps and rng.random() < FOCUS_SHARE:
            batch["kept"], batch["of"] = focus(batch["dense"][..., 0], rng)
        elif self.split == "train" and rng.random() < FEWER_SHARE:
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
        """Many items and nothing to say: shapes and texts side by side, or one or four hands."""
        m = self.material
        if rng.random() < HANDS_SHARE:
            scene = scenes.hands(rng, len(m.photos), rng.choice((1, 4)))
            shown: Any = {}
            for number in (int(item.name) for item in scene.items):
                shown[number] = vary(m.photos[number], rng)
        else:
            scene, shown = scenes.crowd(rng, len(m.emoji)), m.emoji
        picture = draw(background(rng), scene.items, shown)
        return Sample([picture], [dense(scene.items, m.digits)], [], {}, False)

    def still(self, rng: Random) -> Sample:
        """A still picture of a random kind."""
        kind = rng.choices(list(STILL), list(STILL.values()))[0]
        if kind == "nlvr":
            return self.sentence(rng)
        m = self.material
        scene = scenes.draw_scene(rng, self.split, kind, len(m.photos), len(m.emoji))
        asked = questions.questions(scene, rng, m.digits)
        if rng.random() < 0.5:
            asked += questions.description(scene, rng)
        if self.split == "train":
            asked += located(scene)
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
        chosen = balanced(asked, rng)
        return Sample([picture], [labels], chosen, in_scene(scene), rng.random() < 0.2)

    def sentence(self, rng: Random) -> Sample:
        """A picture of NLVR with its sentence."""
        chosen = rng.choice(self.material.sentences)
        picture = Image.open(rng.choice(chosen.pictures)).convert("RGB")
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        asked = [Question("nlvr", chosen.prompt, chosen.answer)]
        return Sample([picture], [np.full((SIDE, SIDE, len(SEEN)), IGNORE)], asked, {}, False)

    def clip(self, rng: Random, frames: int) -> Sample:
        """A clip, or at times a still picture that is shown as one."""
        m = self.material
        if rng.random() < 0.1:
            kind = rng.choice(("objects", "odd", "text"))
            scene = scenes.draw_scene(rng, self.split, kind, 0, len(m.emoji))
            picture = draw(background(rng), scene.items, m.emoji)
            asked = balanced(questions.questions(scene, rng), rng)
            labels = [dense(scene.items, ())] * frames
            return Sample([picture] * frames, labels, asked, in_scene(scene), False)
        kind = rng.choices(list(CLIPS), list(CLIPS.values()))[0]
        clip = clips.draw_clip(rng, self.split, kind, frames, len(m.emoji))
        ground = background(rng)
        pictures = [draw(ground, items, m.emoji) for items in clip.frames]
        labels = [dense(items, ()) for items in clip.frames]
        asked = list(clip.questions)
        rng.shuffle(asked)
        return Sample(pictures, labels, asked, in_clip(clip), rng.random() < 0.2)

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
        referred = torch.full((count, longest, len(REFERRED)), IGNORE)
        for row, (text, answer, position, segment, meant) in enumerate(rows):
            n = len(text)
            ids[row, :n], labels[row, :n] = torch.tensor(text), torch.tensor(answer)
            place[row, :n], group[row, :n] = torch.tensor(position), torch.tensor(segment)
            for token, classes in meant.items():
                referred[row, token] = torch.tensor(classes)
        frames = np.stack([np.stack([np.asarray(f) for f in s.frames]) for s in samples])
        tasks = [[q.task for q in s.questions] for s in samples]
        return {
            "pixels": torch.from_numpy(frames),  # u8 [B, F, h_px, w_px, 3]
            "ids": ids,
            "labels": labels,
            "positions": place,
            "groups": group,  # question of each text token
            "referred": referred,  # what a phrase that ends here stands for
            "chat": torch.tensor([s.chat for s in samples]),
            "dense": torch.from_numpy(np.stack([np.stack(s.dense) for s in samples])),
            "tasks": tasks,
        }

    def text(
        self, sample: Sample
    ) -> tuple[list[int], list[int], list[int], list[int], dict[int, list[int]]]:
        """Ids, labels, positions from the newline on, question numbers; phrases by last token."""
        ids: list[int] = []
        labels: list[int] = []
        places: list[int] = []
        groups: list[int] = []
        meant: dict[int, list[int]] = {}
        for number, question in enumerate(sample.questions):
            encoded = self.tokenizer.encode(question.prompt)
            prompt = [*encoded.ids, self.ids[ASSISTANT]]
            answer = [*self.tokenizer.encode(question.answer).ids, self.ids[END]]
            if sample.chat and number:
                prompt.insert(0, self.ids[USER])
            if ids and len(ids) + len(prompt) + len(answer) > TEXT_TOKENS:
                del sample.questions[number:]
                break
            start = len(places) if sample.chat else 0
            ends = marks(sample.phrases, question.prompt)
            first = len(ids) + len(prompt) - len(encoded.ids) - 1
            for token, (_, end) in enumerate(encoded.offsets, first):
                if end in ends:
                    meant[token] = ends[end]
            ids += prompt + answer
            # Each token predicts the next: the marker the first of the answer, and so on.
            labels += [IGNORE] * (len(prompt) - 1) + answer + [IGNORE]
            places += range(start, start + len(prompt) + len(answer))
            groups += [number] * (len(prompt) + len(answer))
        return ids, labels, places, groups, meant


def focus(what: Tensor, rng: Random) -> tuple[Tensor, int]:
    """The tokens that see an item, and some that do not: i64 [B, K], ascending; of how many.

    Args:
        what: Item under each patch, i64 [B, F, rows, columns]; 0 is nothing.
        rng: Chooses K and what is left out.
    """
    there = what != 0
    if there.shape[1] > 1:  # a token of a clip is the mean of 2 x 2 patches
        there = there.unflatten(3, (-1, 2)).any(4).unflatten(2, (-1, 2)).any(3)
    there = there.flatten(1)
    count = there.shape[1]
    kept = round(rng.uniform(*FOCUS_TOKENS) * count / (SIDE * SIDE))
    noise = torch.rand(there.shape, generator=torch.Generator().manual_seed(rng.getrandbits(32)))
    return (there + noise).topk(kept).indices.sort().values, count


def located(scene: scenes.Scene) -> list[Question]:
    """In which ninth of the picture each item is: a step towards where two are to each other."""
    third = SIZE / 3
    asked = []
    for item, name, _ in questions.names(scene.items):
        if all(6 < v % third < third - 6 for v in (item.x, item.y)):
            place = questions.PLACES[int(item.y / third)][int(item.x / third)]
            asked.append(Question("locate", f"Where is the {name}?", place))
    return asked


def balanced(asked: list[Question], rng: Random) -> list[Question]:
    """At most 20 questions in rounds, one of each task a round: no task drowns the others.

    Of tasks that are learned soon there is one in two rounds.
    """
    by_task: dict[str, list[Question]] = defaultdict(list)
    for question in asked:
        by_task[question.task].append(question)
    turns = [
        (rank * (1 + (task in SOON)) + rng.random(), question)
        for task, of in by_task.items()
        for rank, question in enumerate(of)
    ]
    return [q for _, q in sorted(turns, key=lambda t: t[0])[:20]]


def dense(items: tuple[Item, ...], digits: tuple[str, ...] | list[str]) -> np.ndarray:
    """What each visual token sees, i64 [rows, columns, one for each of `SEEN`]."""
    found = np.zeros((SIDE, SIDE, len(SEEN)), np.int64)
    under = cells(items)
    for row, column in zip(*np.nonzero(under >= 0), strict=True):
        item = items[under[row, column]]
        what, middle, order = item.name, item.x, 0
        if item.kind == "text":
            spans = letters(item)
            x = (column + 0.5) * CELL
            order = next((n for n, span in enumerate(spans, 1) if x < span[2]), len(spans))
            what, left, right = spans[order - 1]
            middle = (left + right) / 2
        elif item.kind == "photo":
            what = f"sign {digits[int(item.name)]}"
        elif item.kind == "emoji":
            what = "emoji"
        place = tuple(min(SIDE - 1, int(v / CELL)) for v in (item.y, middle))
        names = WHAT.index(what), COLOUR.index(item.colour), SIZES.index(item.size)
        found[row, column] = *names, place[0] + 1, place[1] + 1, order, 1 + (place == (row, column))
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
