"""edgevlm beside what `transformers.exporters` writes for the same weights, both on ONNX Runtime.

    python tests/benchmarks/peers.py --model SMOLVLM_256M --work FOLDER

The peer is transformers' own exporter (OnnxExporter, dynamic shapes, ort_fusions="cpu"): image
encoder, connector, language model (prefill), lm_head, decode with cache. `export_for_generation`
leaves the encoder out, so encoder and connector come from `decompose_multimodal`. Both sides get
the same pixels, the same rows and all visual tokens (the peer cannot reduce), the same number of
threads, all of ONNX Runtime's optimizations, bound caches. The peer encodes views one at a time or
in batches, whichever is faster here. Measured in rounds, ours and theirs in turn, for 1, 5 and 17
views (64, 320, 1,088 visual tokens) and 32 text tokens:

    vision   pixels of all views to features (ours: with `reduce`, which keeps all)
    prefill  all rows into an empty cache
    logits   one row of scores; ttft is the sum of the three
    decode   one token: embedding row, all layers, scores; the mean of 32 after 352 rows

A comparison counts only if the logits agree (relative error below 1e-3), after prefill and after
the last decoded token.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from _measure import PAUSE_S, Row, bundle, finish, machine, open_loop, parser, report, row, say
from numpy.typing import NDArray
from PIL import Image

from edgevlm.models._checkpoint import find
from edgevlm.recipe import Recipe
from edgevlm.runtimes import images
from edgevlm.runtimes.sequence import Piece
from edgevlm.runtimes.text import TextLoop
from edgevlm.verify import PHOTOS, difference

GRIDS = {1: (1, 1), 5: (2, 2), 17: (4, 4)}
TEXT_TOKENS = 32
DECODE_AT = 5  # views: 352 rows
DECODE_TOKENS = 32
BATCHES = (1, 5)
WARMUPS = 2
LIMIT = 1e-3

Array = NDArray[Any]


def main() -> None:
    """Export what is missing, measure, print."""
    made = parser(__doc__)
    made.add_argument("--views", type=int, nargs="+", default=list(GRIDS), choices=list(GRIDS))
    options = made.parse_args()
    where = machine(options.threads)
    peer = open_peer(options.model, options.work, options.threads)
    picture = images.load(PHOTOS[0])
    rows: list[Row] = []
    errors: dict[str, float] = {}
    for views in options.views:
        recipe = Recipe(model=options.model, tiles=GRIDS[views])
        loop = open_loop(bundle(recipe, options.work), options.threads)
        say(f"measure {views} views")
        case = Case(loop, peer, picture, views)
        errors |= case.parity()
        measured = case.measure(options.repeats)
        report(f"{case.name}, peer in batches of {case.batch}", measured, where, "theirs / ours")
        rows += measured
        del case, loop  # the next bundle takes their memory
    for name, error in errors.items():
        print(f"{name}: relative difference {error:.1e}, at most {LIMIT:.0e}")
    finish(options.json, {"where": where, "rows": rows, "differences": errors})
    if max(errors.values()) > LIMIT:
        raise SystemExit("the two sides do not compute the same: the times do not compare")


@dataclass
class Case:
    """One number of views, ours and theirs."""

    loop: TextLoop
    peer: Peer
    picture: Image.Image
    views: int
    times: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pixels = images.views([self.picture], self.loop.plan.host.image)
        self.batch = min(
            (b for b in BATCHES if b <= self.views), key=lambda b: self._best_view_ms(b)
        )
        tokens = self._see().tokens
        self.text = np.arange(100, 100 + TEXT_TOKENS)
        self.rows = np.concatenate([tokens, self.loop.table[self.text]])
        self.piece = Piece(self.rows, np.arange(len(self.rows), dtype=np.int32))
        self.name = f"{self.views} view{'s' * (self.views > 1)}, {len(self.rows)} rows"

    def parity(self) -> dict[str, float]:
        """Relative differences of features and logits on the same inputs."""
        theirs = self.peer.encode(self.pixels, self.batch)
        found = {f"features, {self.name}": difference(self.rows[: len(theirs)], theirs)[0]}
        ours, peer = self._prefilled()
        found[f"logits, {self.name}"] = difference(ours, peer)[0]
        if self.views == DECODE_AT:
            for token in self._tokens():
                ours, peer = self._our_token(token), self.peer.decode(token)
            found[f"logits after {DECODE_TOKENS} tokens"] = difference(ours, peer)[0]
        return found

    def measure(self, repeats: int) -> list[Row]:
        """Rounds of ours and theirs; table lines in pairs."""
        for index in range(WARMUPS + repeats):
            self._round(keep=index >= WARMUPS)
            say(f"  round {index + 1} of {WARMUPS + repeats}")
        for side in ("edgevlm", "peer"):
            parts = (self.times[f"{part}, {side}"] for part in ("vision", "prefill", "logits"))
            self.times[f"ttft, {side}"] = [sum(ms) for ms in zip(*parts, strict=True)]
        rows = []
        for part in ("vision", "prefill", "logits", "ttft", "decode"):
            if f"{part}, peer" in self.times:
                ours, theirs = self.times[f"{part}, edgevlm"], self.times[f"{part}, peer"]
                rows.append(row(f"{part}, edgevlm, {self.name}", ours, theirs))
                rows.append(row(f"{part}, transformers.exporters, {self.name}", theirs))
        return rows

    def _round(self, keep: bool) -> None:
        actions: dict[str, Callable[[], object]] = {
            "vision, edgevlm": self._see,
            "vision, peer": lambda: self.peer.encode(self.pixels, self.batch),
            "prefill, edgevlm": self._our_prefill,
            "logits, edgevlm": self.loop.logits,
            "prefill, peer": lambda: self.peer.prefill(self.rows),
            "logits, peer": self.peer.logits,
        }
        if self.views == DECODE_AT:
            actions["decode, edgevlm"] = lambda: [self._our_token(t) for t in self._tokens()]
            actions["decode, peer"] = lambda: [self.peer.decode(t) for t in self._tokens()]
        for name, action in actions.items():
            if not name.startswith("logits"):  # scores follow the prefill at once, as in a real run
                time.sleep(PAUSE_S)
            started = time.perf_counter()
            action()
            spent = (time.perf_counter() - started) * 1e3
            if keep:
                each = DECODE_TOKENS if name.startswith("decode") else 1
                self.times.setdefault(name, []).append(spent / each)

    def _see(self) -> Any:
        # `see` would also resize the picture, which the peer does not do.
        loop = self.loop
        for index, view in enumerate(self.pixels):
            loop._pixels[0] = view
            for block in loop.plan.stage("vision"):
                loop.engine.run(block.name, "encode")
            count = loop._view.shape[1]
            loop._features[0, index * count : (index + 1) * count] = loop._view[0]
        loop.engine.run("reduce-0", "reduce")
        return _Tokens(loop._tokens[0].copy())

    def _our_prefill(self) -> None:
        self.loop.reset()
        self.loop.prefill(self.piece)

    def _our_token(self, token: int) -> Array:
        self.loop._step_token(token)
        return self.loop.logits()

    def _prefilled(self) -> tuple[Array, Array]:
        self._our_prefill()
        self.peer.prefill(self.rows)
        return self.loop.logits().copy(), self.peer.logits()

    def _tokens(self) -> range:
        return range(500, 500 + DECODE_TOKENS)

    def _best_view_ms(self, batch: int) -> float:
        spent = []
        for _ in range(2):
            started = time.perf_counter()
            self.peer.encode(self.pixels[:batch], batch)
            spent.append((time.perf_counter() - started) / batch)
        return min(spent)


@dataclass(frozen=True)
class _Tokens:
    tokens: Array


def open_peer(model: str, work: Path, threads: int) -> Peer:
    """The peer's graphs in `work`, exported if they are not there yet."""
    folder = work / "transformers-exporters"
    if not (folder / "text" / "export.json").exists():
        _export_peer(model, folder)
    return Peer(folder, threads, find(model).config.vision_config.patch_size)


class Peer:
    """The exporter's graphs, driven as its own runner drives them: everything bound, no copies."""

    def __init__(self, folder: Path, threads: int, patch: int) -> None:
        self.patch = patch
        settings = ort.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.log_severity_level = 3
        names = {
            "vision": ("image_encoder", "connector"),
            "text": ("language_model", "lm_head", "decode"),
        }
        self.sessions = {
            name: ort.InferenceSession(part, settings, ["CPUExecutionProvider"])
            for group, members in names.items()
            for name in members
            if (part := folder / group / f"{name}.onnx")
        }
        self.past: list[Any] = []
        self.length = 0
        self.columns = int(self.sessions["lm_head"].get_inputs()[0].shape[-1])
        self.bytes = sum(  # of one language model; `decode` holds head and embedding too
            path.stat().st_size for path in (folder / "text").glob("decode.onnx*")
        )

    def encode(self, pixels: Array, batch: int) -> Array:
        """Features [P*N, C] of views [P, 3, h_px, w_px], `batch` views at a time."""
        parts = []
        for first in range(0, len(pixels), batch):
            views = np.ascontiguousarray(pixels[first : first + batch])
            side = views.shape[2] // self.patch
            given = {
                "pixel_values": views,
                "patch_attention_mask": np.ones((len(views), side, side), bool),
            }
            (hidden,) = self._run("image_encoder", given)
            (out,) = self._run("connector", {"image_hidden_states": hidden})
            parts.append(out.numpy().reshape(-1, out.shape()[-1]))
        return np.concatenate(parts)

    def prefill(self, rows: Array) -> None:
        """Write rows [S, C] into an empty cache."""
        positions = np.arange(len(rows), dtype=np.int64)[None]
        given = {"inputs_embeds": rows[None], "position_ids": positions}
        hidden, *self.past = self._run("language_model", given)
        self.length = len(rows)
        self._last = np.ascontiguousarray(hidden.numpy()[:, -1:])

    def logits(self) -> Array:
        """Scores [V] after the last row of the prefill."""
        (out,) = self._run("lm_head", {"input": self._last})
        return out.numpy()[0, 0]

    def decode(self, token: int) -> Array:
        """Scores [V] after one more token."""
        given: dict[str, Any] = {
            "input_ids": np.asarray([[token]], np.int64),
            "position_ids": np.asarray([[self.length]], np.int64),
        }
        names = [node.name for node in self.sessions["decode"].get_inputs()]
        caches = [name for name in names if name not in given]
        given |= dict(zip(caches, self.past, strict=True))
        out, *self.past = self._run("decode", given)
        self.length += 1
        return out.numpy()[0, 0]

    def _run(self, name: str, given: dict[str, Any]) -> list[Any]:
        session = self.sessions[name]
        binding = session.io_binding()
        for node in session.get_inputs():
            value = given[node.name]
            if isinstance(value, np.ndarray):
                value = ort.OrtValue.ortvalue_from_numpy(value)
            binding.bind_ortvalue_input(node.name, value)
        for node in session.get_outputs():
            binding.bind_output(node.name)
        session.run_with_iobinding(binding)
        return list(binding.get_outputs())


def _export_peer(model: str, folder: Path) -> None:
    """Write the peer's graphs; takes minutes."""
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.exporters.base import ExportedModel
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter
    from transformers.exporters.utils import decompose_multimodal

    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    vision = loaded.config.vision_config
    patches = vision.image_size // vision.patch_size
    tokens = (patches // loaded.config.scale_factor) ** 2
    views = 2  # with one view the exporter would fix the batch at 1
    ids = torch.cat(
        [
            torch.full((1, views * tokens), loaded.config.image_token_id),
            torch.arange(100, 100 + TEXT_TOKENS)[None],
        ],
        1,
    )
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, views, 3, vision.image_size, vision.image_size),
    }
    exporter, config = OnnxExporter(), OnnxConfig(dynamic=True, ort_fusions="cpu")
    say("export the peer's encoder and connector")
    parts = decompose_multimodal(loaded, inputs)
    components = {
        name: exporter._export_component(*parts[name], config)
        for name in ("image_encoder", "connector")
    }
    ExportedModel(components, exporter.export_format).save_pretrained(folder / "vision")
    say("export the peer's language model")
    exporter.export_for_generation(loaded, inputs, config).save_pretrained(folder / "text")


if __name__ == "__main__":
    main()
