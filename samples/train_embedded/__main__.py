"""Train the embedded model: a small LLaVA-OneVision that answers questions about drawn scenes.

    python samples/train_embedded RUN --data DATA [--steps 12000] [--hours 2] [--out FOLDER]

RUN is a folder that keeps everything of one training: the tokenizer, state.pt every few minutes
(the same command goes on from it), log.csv and curves.png. DATA holds the real material, unpacked:
`nlvr/`, `sign_digits/` and `emoji_noto/`. `--out` writes the checkpoint that transformers loads.

1. Batches are drawn, not stored: batch number s of seed n is always the same, on any machine and
   with any number of workers. A batch has still pictures, or clips of one length.
2. In the first part (`--dense-steps`) pictures are crowded with items, and the only loss is that of
   one linear layer that names the item, colour and size under each visual token, where the
   middle of the item is, and the number of a letter in its text ("dense"): the encoder learns to
   see before there is anything to say. That layer is thrown away in the end.
3. In the second part (`--focus-steps`) the encoder rests. Every picture comes with up to twenty
   questions in one sequence. They share the visual tokens; a mask keeps each question from seeing
   the others and its positions begin where the visual tokens end, so that the model sees what it
   will see when asked once. One picture in five is a chat instead: its questions are turns that
   see those before. Most tokens that see nothing are left out, so that there is less to search.
   A second loss wants each visual token to be like the words that name what it sees, and the dense
   one is asked of the projected tokens too, so that places reach the language model. A third one
   asks the last token of each phrase of a question what it refers to, where and how many.
4. In the third part all is trained, the encoder slowly, on all visual tokens; one batch in seven
   has a random part of them, or the means of a coarser grid, the plainest ways to remove tokens
   and to merge them. Otherwise the length of a sequence alone would confuse the model, and
   accuracy against tokens would show that.
5. Muon (arXiv 2502.16982) for matrices of the blocks, AdamW for the rest; the rate rises, stays
   and falls linearly to zero over the last `--decay` of the steps, once for the first part and
   once for the others. bfloat16 products, float32
   weights.

Validation is exact match: an answer counts if every token of it is the likeliest one given those
before, which is what greedy decoding gives. The same seed gives the same weights on one machine
with the same number of threads, if it is not stopped; state.pt has all that is needed to go on.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from batches import IGNORE, Batches
from model import REFERRED, SEEN, USER, Trainee, build, prepare, word_targets, write_checkpoint
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from edgevlm.evaluation.datasets.shared import clips, questions
from edgevlm.evaluation.datasets.shared.material import training_material

SCORES = ("all", *questions.IMAGE_TASKS, *clips.CLIP_TASKS, "describe", "nlvr")
LOSSES = ("answer_loss", "dense_loss", "word_loss", "phrase_loss")
COLUMNS = ("step", "seconds", "pictures", "rate", *LOSSES, *SCORES)
SAVE_SECONDS = 240
ENCODER_RATE = 0.2  # of the rate, in the third part


def losses(trainee: Trainee, batch: dict, dense_only: bool) -> tuple[Tensor, ...]:
    """Loss of the answers, dense loss, of the words and of the phrases; right answers [B, T].

    Where there is no label the answer counts as right.
    """
    logits = trainee(batch, dense_only)
    target = batch["dense"].flatten(0, 1).flatten(1, 2)  # [B*F, tokens, SEEN]
    dense_loss = torch.stack([seen_loss(scores, target) for scores in logits.seen]).sum()
    if logits.text is None or logits.words is None:
        zero = torch.zeros_like(dense_loss)
        return zero, dense_loss, zero, zero, zero
    seen = target[..., 0] > 0
    likely = logits.words[seen].float().log_softmax(-1)
    rows = sum(table[target[..., part][seen]] for part, table in enumerate(batch["words"]))
    word_loss = -(rows * likely).sum(-1).mean() / 3
    meant = batch["referred"]
    meant = meant[meant.amax(-1) >= 0]
    phrase_loss = torch.stack([referred_loss(scores, meant) for scores in logits.referred]).sum()
    text, labels = logits.text.float(), batch["labels"]
    loss = functional.cross_entropy(text.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    right = (text.argmax(-1) == labels) | (labels == IGNORE)
    return loss, dense_loss, word_loss, phrase_loss, right


def seen_loss(scores: Tensor, target: Tensor) -> Tensor:
    """Loss of logits [B*F, tokens, classes] for what each token sees [B*F, tokens, SEEN]."""
    loss = torch.zeros((), device=scores.device)
    for part, logits in enumerate(scores.float().flatten(0, 1).split(SEEN, -1)):
        # Most tokens see nothing: they count as much as the others together.
        weight = torch.ones(SEEN[part], device=scores.device)
        weight[0] = 0.25
        wanted = target[..., part].flatten()
        found = functional.cross_entropy(logits, wanted, weight, ignore_index=IGNORE)
        loss = loss + (found if part < 3 else found / 2)
    return loss


def referred_loss(scores: Tensor, target: Tensor) -> Tensor:
    """Mean loss of logits [phrases, classes] for what each phrase means [phrases, REFERRED]."""
    found = [
        functional.cross_entropy(logits, target[:, part], ignore_index=IGNORE, reduction="sum")
        for part, logits in enumerate(scores.float().split(REFERRED, -1))
    ]
    return torch.stack(found).sum() / (target >= 0).sum().clamp(min=1)


def optimizers(trainee: Trainee, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else; the encoder in its group."""
    matrices: tuple[list, list] = ([], [])
    others: tuple[list, list] = ([], [])
    for name, parameter in trainee.named_parameters():
        inside = parameter.ndim == 2 and ".layers." in name
        (matrices if inside else others)["vision_tower" in name].append(parameter)
    groups = [[{"params": p, "encoder": e} for e, p in enumerate(x)] for x in (matrices, others)]
    return [
        torch.optim.Muon(groups[0], lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups[1], lr=rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True),
    ]


def rate_at(step: int, steps: int, warmup: int, decay: float) -> float:
    """Share of the full rate at a step of a part: up, flat, down to zero."""
    down = max(1.0, steps * decay)
    return min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / down))


def to_device(batch: dict, device: str, fixed: dict) -> dict:
    """The batch's tensors on a device, with what is the same for all batches."""
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    return moved | fixed


@torch.no_grad()
def validate(trainee: Trainee, batches: list[dict], autocast: torch.autocast) -> dict[str, float]:
    """Exact match per task over fixed batches; `all` is the mean over questions."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for batch in batches:
        with autocast:
            right = losses(trainee, batch, False)[-1]
        for row, tasks in enumerate(batch["tasks"]):
            for number, task in enumerate(tasks):
                hits[task].append(bool(right[row][batch["groups"][row] == number].all()))
    found = {task: float(np.mean(of)) for task, of in sorted(hits.items())}
    return {"all": float(np.mean([h for of in hits.values() for h in of])), **found}


def main() -> None:
    """Train, or go on."""
    arguments = options()
    run: Path = arguments.run
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    autocast = torch.autocast(device, torch.bfloat16)
    material = training_material(arguments.data, "train")
    tokenizer = prepare(run, material, arguments.start)
    trainee = Trainee(build(run, arguments.start)).to(device)
    optimisers = optimizers(trainee, arguments.rate)
    at = load(run, trainee, optimisers, device)
    words = tuple(table.to(device) for table in word_targets(tokenizer))
    fixed = {"user": tokenizer.token_to_id(USER), "words": words}
    size, dense_steps = arguments.batch, arguments.dense_steps
    data = Batches(
        tokenizer, material, arguments.seed, size, "train", dense_steps, arguments.focus_steps
    )
    check = Batches(
        tokenizer, training_material(arguments.data, "validation"), 0, size, "validation"
    )
    held = [to_device(check[i], device, fixed) for i in range(arguments.check)]
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=range(at["step"], arguments.steps),
        num_workers=arguments.workers,
        prefetch_factor=4 if arguments.workers else None,
    )
    last = last_saved = time.perf_counter()
    stop = last + arguments.hours * 3600
    seen: list[Tensor] = []
    for batch in loader:
        dense_only = at["step"] < dense_steps
        before, end = (0, dense_steps) if dense_only else (dense_steps, arguments.steps)
        share = rate_at(at["step"] - before, end - before, 150, arguments.decay)
        frozen = dense_steps <= at["step"] < dense_steps + arguments.focus_steps
        trainee.model.model.vision_tower.requires_grad_(not frozen)
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            slow = group["encoder"] and not dense_only
            group["lr"] = arguments.rate * share * (ENCODER_RATE if slow else 1)
        with autocast:
            found = losses(trainee, to_device(batch, device, fixed), dense_only)
        (found[0] + arguments.dense_weight * sum(found[1:4])).backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        seen.append(torch.stack(found[:4]).detach().float().cpu())
        now = time.perf_counter()
        at["step"] += 1
        at["pictures"] += len(batch["pixels"])
        at["seconds"], last = at["seconds"] + now - last, now
        done = at["step"] == arguments.steps or now > stop
        if at["step"] % arguments.every == 0 or done:
            mean = torch.stack(seen).mean(0).tolist()
            numbers = {**at, "rate": share, **dict(zip(LOSSES, mean, strict=True))}
            log(run / "log.csv", numbers, {} if dense_only else validate(trainee, held, autocast))
            seen, last = [], time.perf_counter()
        if now - last_saved > SAVE_SECONDS or done:
            last_saved = now
            save(run, trainee, optimisers, at)
            draw_curves(run)
        if done:
            break
    if arguments.out:
        write_checkpoint(run, trainee, arguments.out)


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
    parser.add_argument("--focus-steps", type=int, default=3000)
    parser.add_argument("--dense-weight", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=250, help="steps between validations")
    parser.add_argument("--check", type=int, default=24, help="batches of a validation")
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def load(run: Path, trainee: Trainee, optimisers: list, device: str) -> dict[str, float]:
    """Take up the state of a run; where it is: steps, seconds and pictures."""
    state = run / "state.pt"
    if not state.is_file():
        return {"step": 0, "seconds": 0.0, "pictures": 0}
    kept = torch.load(state, map_location=device, weights_only=True)
    trainee.load_state_dict(kept["trainee"])
    for optimiser, content in zip(optimisers, kept["optimisers"], strict=True):
        optimiser.load_state_dict(content)
    return {name: kept[name] for name in ("step", "seconds", "pictures")}


def save(run: Path, trainee: Trainee, optimisers: list, at: dict[str, float]) -> None:
    """Keep the state, complete or not at all."""
    content = {"trainee": trainee.state_dict(), "optimisers": [o.state_dict() for o in optimisers]}
    torch.save(content | at, run / "state.new")
    (run / "state.new").replace(run / "state.pt")


def log(path: Path, numbers: dict[str, float], scores: dict[str, float]) -> None:
    """A row of log.csv, and a line on the screen."""
    row = {name: round(value, 4) for name, value in (numbers | scores).items()}
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
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
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5))

    def line(axes, name: str, **style) -> None:
        points = [(int(row["pictures"]), float(row[name])) for row in rows if row[name]]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, **style)

    for name in LOSSES:
        line(left, name)
    line(right, "all", color="black", linewidth=2.5)
    for index, name in enumerate(SCORES[1:]):
        line(right, name, color=f"C{index % 10}", linestyle="-" if index < 10 else "--")
    left.set(xlabel="pictures and clips seen", ylabel="loss", yscale="log")
    right.set(xlabel="pictures and clips seen", ylabel="exact match, validation", ylim=(0, 1))
    left.legend()
    right.legend(ncols=3, fontsize=8)
    figure.tight_layout()
    figure.savefig(run / "curves.png", dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
