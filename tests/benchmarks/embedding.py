"""How long one embedding takes, in float32 and in other schemes, beside PyTorch.

    python tests/benchmarks/embedding.py --model SIGLIP2 --work FOLDER [--quantize none w8a8s]

A view through the image encoder, and a text through the text encoder, each scheme's bundle on ONNX
Runtime and the checkpoint's own model in PyTorch, in rounds; the ratio is float32 of the bundle /
this.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from _measure import bundle, finish, machine, parser, report, rounds, row
from transformers import AutoModel

from edgevlm.bundle.files import Bundle
from edgevlm.exporters.contract import find_target
from edgevlm.parity.verify import PHOTOS
from edgevlm.recipe import Recipe
from edgevlm.runtimes.loading import load_loop
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.encoder import EncoderLoop

TEXT = "a photo of a flower"
SCENES = "8"  # to calibrate with


def main() -> None:
    """Export what is missing, measure, print."""
    made = parser(__doc__)
    made.add_argument("--quantize", nargs="+", default=["none", "w8a8s"])
    options = made.parse_args()
    where, cases = machine(options.threads), dict[str, Callable[[], object]]()
    calibrated = find_target("onnx").calibrated
    for scheme in options.quantize:
        calibrate = SCENES if scheme in calibrated else None
        recipe = Recipe(model=options.model, quantize=scheme, calibrate=calibrate)
        found = bundle(recipe, options.work)
        loop = load_loop(found.path, threads=options.threads)
        assert isinstance(loop, EncoderLoop)
        size = f"{_bytes(found) / 1e6:.0f} MB"
        cases[f"image, {scheme}, {size}"] = lambda loop=loop: _image(loop)
        cases[f"text, {scheme}, {size}"] = lambda loop=loop: _text(loop)
    cases |= _pytorch(options.model, loop, options.threads)
    times = rounds(cases, options.repeats)
    first = {name.partition(",")[0]: times[name] for name in reversed(times) if "none" in name}
    rows = [row(name, ms, first.get(name.partition(",")[0])) for name, ms in times.items()]
    ordered = sorted(rows, key=lambda each: each.name.partition(",")[0])
    report("Embeddings", ordered, where | {"dtype": "as named"}, "float32 / this")
    finish(options.json, {"where": where, "rows": ordered})


def _image(loop: EncoderLoop) -> None:
    """A view that is there already."""
    for block in loop.plan.stage("vision"):
        loop.blocks.run(block.name, "encode")


def _text(loop: EncoderLoop) -> None:
    loop.forget()
    loop.embed_text(TEXT)


def _pytorch(model: str, loop: EncoderLoop, threads: int) -> dict[str, Callable[[], object]]:
    """The same view and the same tokens through transformers' own model."""
    torch.set_num_threads(threads)
    own = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    pixels = torch.from_numpy(images.views([images.load(PHOTOS[0])], loop.plan.host.image))
    ids = torch.tensor([loop.token_ids(TEXT)])

    @torch.no_grad()
    def image() -> None:
        own.get_image_features(pixels)

    @torch.no_grad()
    def text() -> None:
        own.get_text_features(ids)

    return {"image, PyTorch": image, "text, PyTorch": text}


def _bytes(found: Bundle) -> int:
    return find_target("onnx").weights_bytes(found.plan.files)


if __name__ == "__main__":
    main()
