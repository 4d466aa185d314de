"""What a quarter of a clip's tokens answers: methods over frames, smaller pictures, fewer frames.

    python tests/benchmarks/clips.py --model embedded --work FOLDER [--rows NAME …] [--held-out]

Each row is a bundle of the embedded model, asked all questions about clips of the embedded dataset:
what `edgevlm evaluate BUNDLE --only clip` asks. A bundle of fewer frames sees some frames of the
same clips of 8: even in time, or drawn at random with a seed for each clip. `resize` makes the
pictures smaller before the encoder: a copy of the checkpoint for that size, its position embedding
interpolated (bicubic, as transformers does it for another size). Prints the table of docs/video.md;
a method has two accuracies, with what is left numbered anew and with `positions=original`.

`--held-out` asks clips that are not in the dataset, drawn by the same rules with further numbers:
options are chosen on these, and the table is of the others.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from _measure import bundle, finish, machine, parser, say
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate

from edgevlm.evaluation.answerers import BundleAnswerer
from edgevlm.evaluation.datasets import embedded
from edgevlm.evaluation.datasets.shared.material import packaged_material
from edgevlm.evaluation.evaluate import Evaluation, evaluate, find_dataset
from edgevlm.evaluation.examples import Example
from edgevlm.models.checkpoint import find
from edgevlm.recipe import MethodChoice, Recipe

FRAMES, TOKENS = 8, 98  # of a clip of 8 x 49 tokens
RANDOM = "random"
FURTHER = range(embedded.CLIPS, 2 * embedded.CLIPS)  # numbers of clips outside the dataset


@dataclass(frozen=True)
class Case:
    """A line of the table: a method, or clips that are made smaller before the encoder.

    Attributes:
        method: As `--method` takes it; empty keeps all tokens.
        frames: Frames that the bundle takes.
        picked: Of fewer frames: `even` in time, or `random`.
        side: Pixels of a picture's sides; 0 is the model's.
    """

    method: str = ""
    frames: int = FRAMES
    picked: str = "even"
    side: int = 0

    @property
    def name(self) -> str:
        """As the table has it."""
        size = f"`resize` to {self.side} x {self.side} pixels" if self.side else ""
        order = f"{self.picked} " if self.picked == RANDOM else ""
        fewer = f"{self.frames} {order}frames" if self.frames < FRAMES else ""
        smaller = ", ".join(filter(None, (size, fewer)))
        return f"`{self.method}`" if self.method else smaller or "all"


def owned(method: str) -> str:
    """A method whose tokens keep their positions."""
    return f"{method}{',' if ':' in method else ':'}{OWN}"


METHODS = (
    "random", "strided", "average_pool", "average_pool:frames=2", "aim", "divprune", "dpc_knn",
    "evs", "frame_merge", "holitom", "k_medoids:segments=2", "streamingtom", "timechat",
)  # fmt: skip
OWN = "positions=original"
BEST = f"frame_merge:{OWN},calibrate=size"  # of clips outside the dataset
CASES = (
    Case(),
    Case(BEST),
    *(Case(own) for name in METHODS for own in (name, owned(name))),
    Case(frames=2),
    Case(frames=2, picked=RANDOM),
    Case(side=72),
    Case(side=84, frames=6),
    Case(side=84),
)


def main() -> None:
    """Export what is missing, ask, print."""
    made = parser(__doc__)
    made.add_argument("--rows", nargs="+", help="rows by their names, or further methods")
    made.add_argument("--held-out", action="store_true", help="clips outside the dataset")
    options = made.parse_args()
    where = machine(options.threads)
    known = {case.name.replace("`", ""): case for case in CASES}
    cases = CASES if not options.rows else [known.get(name) or Case(name) for name in options.rows]
    found, views = dict[str, Evaluation](), dict[bytes, dict[str, Any]]()
    for case in cases:
        path = bundle(recipe(case, options.model, options.work), folder(case, options.work)).path
        clips = held_out() if options.held_out else find_dataset("embedded", ("clip",)).examples(
            FRAMES, None
        )
        who = BundleAnswerer(path, threads=options.threads)
        remember(who, views)
        found[case.name] = evaluate(who, shown(clips, case), case.name, "embedded")
        say(line(case.name, found[case.name], found.get("all")))
    print("\n" + "\n".join(table(found)))
    (n, *_) = [result.n for result in found.values()]
    print(f"\n{n} questions; {where['date']}, {where['processor']}, {where['threads']} threads")
    finish(options.json, {"where": where, "rows": found})


def remember(who: BundleAnswerer, views: dict[bytes, dict[str, Any]]) -> None:
    """Encode each view once for all rows: methods of site `tokens` leave the encoder as it is.

    Args:
        who: A bundle.
        views: What the encoder gave of each view, by the hash of its pixels.
    """
    loop: Any = who._loop
    encode, given = loop._encode_view, loop.arrays.view

    def once(view: Any) -> None:
        known = views.setdefault(hashlib.sha256(view.tobytes()).digest(), {})
        if given.keys() <= known.keys():
            for name, values in given.items():
                values[:] = known[name]
            return
        encode(view)
        known.update({name: values.copy() for name, values in given.items()})

    loop._encode_view = once


def recipe(case: Case, model: str, work: Path) -> Recipe:
    """What is exported of a case."""
    name = smaller(find(model).folder, case.side, work) if case.side else model
    if not case.method:
        return Recipe(model=str(name), frames=case.frames)
    choice = MethodChoice.parse(case.method)
    return Recipe(model=str(name), frames=case.frames, tokens=TOKENS, methods=(choice,))


def folder(case: Case, work: Path) -> Path:
    """Where the case's bundle is kept."""
    return work / f"{case.frames}-frames-{case.side or 'own'}"


def smaller(source: Path, side: int, work: Path) -> Path:
    """A copy of a checkpoint of LLaVA-OneVision for pictures of `side` pixels."""
    target = work / f"model-{side}"
    if target.exists():
        return target
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    vision = config["vision_config"]
    grid, old = side // vision["patch_size"], vision["image_size"] // vision["patch_size"]
    vision["image_size"], config["image_grid_pinpoints"] = side, [[side, side]]
    (target / "config.json").write_text(json.dumps(config))
    for name, values in (
        ("preprocessor_config.json", {"size": {"height": side, "width": side}}),
        ("processor_config.json", {"num_image_tokens": grid * grid}),
    ):
        document = json.loads((target / name).read_text()) | values
        if "image_grid_pinpoints" in document:
            document["image_grid_pinpoints"] = [[side, side]]
        (target / name).write_text(json.dumps(document))
    weights = load_file(target / "model.safetensors")
    (key,) = [name for name in weights if re.search(r"vision.*position_embedding", name)]
    table = weights[key].to(torch.float32).reshape(1, old, old, -1).permute(0, 3, 1, 2)
    table = interpolate(table, size=(grid, grid), mode="bicubic", align_corners=False)
    table = table.permute(0, 2, 3, 1).reshape(grid * grid, -1)
    weights[key] = table.to(weights[key].dtype).contiguous()
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def held_out() -> Iterator[Example]:
    """Clips outside the dataset."""
    material = packaged_material()
    for index in FURTHER:
        yield embedded.clip(index, material, FRAMES)


def shown(clips: Iterator[Example], case: Case) -> Iterator[Example]:
    """Clips of 8 frames with as many as the case's bundle takes."""
    for example in clips:
        places = [round(i * (FRAMES - 1) / (case.frames - 1)) for i in range(case.frames)]
        if case.picked == RANDOM:
            places = sorted(Random(f"frames of {example.scene}").sample(range(FRAMES), case.frames))
        yield replace(example, frames=tuple(example.frames[place] for place in places))


def table(found: dict[str, Evaluation]) -> Iterator[str]:
    """A line for each row, a method's two accuracies side by side, the best first."""
    own = {name: owned(name.strip("`")) for name in found}
    pairs = {name: (result, found.get(f"`{own[name]}`")) for name, result in found.items()}
    seconds = {f"`{own[name]}`" for name, (_, second) in pairs.items() if second is not None}
    ranked = sorted(
        ((name, *pair) for name, pair in pairs.items() if name not in seconds),
        key=lambda row: -max(result.accuracy for result in row[1:] if result),
    )
    yield f"| | tokens | right, % | with `{OWN}` |"
    yield "|---|---:|---:|---:|"
    for name, first, second in ranked:
        cells = [spelled(result) if result else "" for result in (first, second)]
        yield f"| {name} | {first.visual_tokens} | {cells[0]} | {cells[1]} |"


def spelled(result: Evaluation) -> str:
    """Right answers in per cent, with their interval."""
    value, low, high = (100 * number for number in (result.accuracy, result.low, result.high))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def line(name: str, result: Evaluation, whole: Evaluation | None) -> str:
    """What was found of a row."""
    share = math.nan if whole is None else 100 * result.accuracy / whole.accuracy
    parts = [f"{task} {100 * score.accuracy:.0f}" for task, score in result.tasks.items()]
    return f"{name}: {spelled(result)}, {share:.1f} % of all; {', '.join(parts)}"


if __name__ == "__main__":
    main()
