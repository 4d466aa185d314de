"""Arrays between the blocks of a diffusion model, allocated once and bound to every function."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.bundle.functions import Block
from edgevlm.bundle.kinds.diffusion import DiffusionPlan
from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.engine import Blocks
from edgevlm.runtimes.loops.buffers import chain


@dataclass(frozen=True)
class Arrays:
    """Arrays that the loop writes and reads between runs.

    Attributes:
        hidden: Rows of a text's tokens [1, S, Ct].
        mask: Which of them are words [1, S].
        text: Embeddings of a text [1, S, Ct].
        step: Inputs of the denoiser by name.
        between: For each of its blocks but the first, arrays that enter it, by name.
        velocity: What the denoiser gives.
        latents: One latent frame of a tile, of `first` and of `next`.
        pixels: Frames of it, of `first` and of `next`.
        caches: Pairs of what the video decoder gives for the next latent frame and takes of it.
    """

    hidden: Array
    mask: Array
    text: Array
    step: dict[str, Array]
    between: list[dict[str, Array]]
    velocity: Array
    latents: dict[str, Array]
    pixels: dict[str, Array]
    caches: list[tuple[Array, Array]]


def bind(plan: DiffusionPlan, blocks: Blocks) -> Arrays:
    """Allocate the arrays of a plan and bind them."""
    fed, results, _ = chain(plan.stage("text"), "encode", blocks)
    step, velocity, entering = chain(plan.stage("denoiser"), "step", blocks)
    latents, pixels, caches = dict[str, Array](), dict[str, Array](), []
    taken: dict[str, dict[str, Array]] = {}  # by block what `first` and `next` give for a next call
    for function in (f.name for f in plan.stage("vae")[0].functions):
        hidden = dict[str, Array]()
        for block in plan.stage("vae"):
            arrays = _vae_arrays(block, function, hidden, taken.setdefault(block.name, {}))
            blocks.bind(block.name, function, arrays)
            if function == "next":
                names = (n for n in arrays if n.startswith("cache_") and not n.endswith("_out"))
                caches += [(arrays[f"{name}_out"], arrays[name]) for name in names]
            latents |= {function: arrays["latents"]} if "latents" in arrays else {}
            pixels |= {function: arrays["pixels"]} if "pixels" in arrays else {}
    return Arrays(
        fed["hidden"],
        fed["mask"],
        results["text"],
        step,
        entering[1:],
        velocity["velocity"],
        latents,
        pixels,
        caches,
    )


def _vae_arrays(
    block: Block, function: str, hidden: dict[str, Array], given: dict[str, Array]
) -> dict[str, Array]:
    """Arrays of a function of the video decoder.

    Args:
        block: Its block.
        function: `first` or `next`.
        hidden: What the block before gives; replaced by what this one gives.
        given: Caches that both functions give, filled by the first of them.
    """
    found = block.function(function)
    arrays: dict[str, Array] = {
        t.name: hidden[t.name] if t.name in hidden else t.zeros() for t in found.inputs
    }
    for tensor in found.outputs:
        if tensor.name.startswith("cache_"):
            arrays[tensor.name] = given.setdefault(tensor.name, tensor.zeros())
        else:
            arrays[tensor.name] = tensor.zeros()
    hidden.clear()
    hidden.update({to: arrays[name] for name, to in found.links.items()})
    return arrays
