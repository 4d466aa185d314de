"""`edgevlm plan`: the numbers of a recipe before any graph exists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm import api
from edgevlm.api import plan_with_cost, require_torch
from edgevlm.bundle.plan import LayoutItem, Plan
from edgevlm.cli.shared import budget
from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.device_fit import beside
from edgevlm.devices.shared import fit
from edgevlm.devices.shared import named as named_devices
from edgevlm.devices.shared.named import Device
from edgevlm.errors import RecipeError
from edgevlm.recipe import Recipe, parse_bytes

if TYPE_CHECKING:
    from edgevlm.planning.method_cost import MethodCost
    from edgevlm.studies.sensitivity import SchemeLoss


def main(
    model: o.ModelArgument = o.Defaults.model,
    target: Annotated[
        str | None,
        typer.Option(help="Target, see `edgevlm targets`; if not given, the device's or onnx."),
    ] = None,
    tokens: o.Tokens = None,
    method: o.Methods = None,
    quantize: o.Quantize = o.Defaults.quantize,
    context: o.Context = None,
    frames: o.Frames = o.Defaults.frames,
    tiles: o.Tiles = o.Defaults.tiles,
    block_size: o.BlockSize = o.Defaults.block_size,
    chunk: o.Chunk = None,
    calibrate: o.Calibrate = None,
    backend: o.Backend = None,
    speculate: o.Speculate = 0,
    revision: o.Revision = None,
    sensitivity: Annotated[
        bool, typer.Option(help="Export in every scheme; print what each costs each block.")
    ] = False,
    size: Annotated[
        str | None, typer.Option(help="With --sensitivity: the mixture of at most this, 60MB.")
    ] = None,
    named: Annotated[
        str | None,
        typer.Option("--for", help="Named device, see `edgevlm devices`: does it fit, and how."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="MODEL is a bundle: times and loads in this much memory, 300MB."),
    ] = None,
    save: Annotated[
        bool,
        typer.Option(help="With --memory: write the schedules into BUNDLE/measured, for apps."),
    ] = False,
    json: o.Json = False,
) -> None:
    """Print tokens, shapes, bytes and FLOPs of MODEL under this recipe."""
    if memory is not None:
        budget.show(model, memory, save, json)
        return
    device = None if named is None else named_devices.load(named)
    recipe = o.recipe(
        model,
        revision,
        target or (device.target if device else o.Defaults.target),
        tokens,
        method,
        quantize,
        context,
        frames,
        tiles,
        block_size,
        chunk,
        calibrate,
        backend,
        speculate,
    )
    if save:
        raise RecipeError("--save goes with --memory: it writes the schedules of a budget")
    if size is not None and not sensitivity:
        raise RecipeError("--size goes with --sensitivity: it chooses among what that measures")
    if sensitivity and device:
        raise RecipeError(
            "--for and --sensitivity do not go together: one calculates, one measures"
        )
    if sensitivity:
        _sensitivity(recipe, None if size is None else parse_bytes(size), json)
    else:
        show(*plan_with_cost(recipe), json, device)


def _sensitivity(recipe: Recipe, size: int | None, as_json: bool) -> None:
    """A table of blocks and schemes, and the mixture for a size."""
    require_torch()
    from edgevlm.studies.sensitivity import measure

    with o.progress() as step:
        found = measure(recipe, step)
    proposal = None if size is None else found.propose(size)
    schemes = list(found.stage_bytes["vision"])
    costs = {(c.block, c.scheme): c for c in found.losses}
    names = dict.fromkeys(c.block for c in found.losses)
    rows = [[name, *(_cost_of(costs[name, scheme]) for scheme in schemes)] for name in names]
    totals = [sum(found.stage_bytes[stage][s] for stage in found.stage_bytes) for s in schemes]
    rows.append(["all, with the table", *(o.megabytes(total) for total in totals)])
    text = o.table(["block", *schemes], rows)
    text += "\ndB: psnr of the worst function against PyTorch; of float32, nothing is rounded"
    if proposal:
        text += (
            f"\n\n--quantize {proposal.quantize}: {o.megabytes(proposal.bytes)},"
            f" worst block {proposal.psnr_db:.0f} dB"
        )
    document = {
        "costs": found.losses,
        "bytes": dict(zip(schemes, totals, strict=True)),
        "proposal": proposal,
    }
    o.answer(document, text, as_json)


def _cost_of(cost: SchemeLoss) -> str:
    if cost.scheme == "none":
        return o.megabytes(cost.bytes)
    near = "same" if cost.psnr_db is None else f"{cost.psnr_db:.0f} dB"
    return f"{o.megabytes(cost.bytes)} {near}"


def show(plan: Plan, cost: MethodCost | None, as_json: bool, device: Device | None = None) -> None:
    """Print a plan with the cost of its method, and beside a device, as text or JSON."""
    document, text = _document(plan, cost), _text(plan, cost)
    if device:
        found = fit.fit(device, plan.recipe, fit.offered(plan.recipe), api.plan)
        document["for"], text = found, f"{text}\n\n{beside(found)}"
    o.answer(document, text, as_json)


def _document(plan: Plan, cost: MethodCost | None) -> dict[str, object]:
    stages = list(dict.fromkeys(block.stage for block in plan.blocks))
    return {
        "stages": stages,
        "blocks": [
            {
                "name": b.name,
                "stage": b.stage,
                "weights_bytes": b.weights_bytes,
                "functions": b.functions,
                "flops": sum(f.flops for f in b.functions),
            }
            for b in plan.blocks
        ],
        "sites": plan.sites,
        "method_cost": cost,
        "visual_tokens": plan.visual_tokens,
        "image_tokens": plan.image_tokens,
        "prompt_tokens": plan.prompt_tokens,
        "context": plan.host.kv.tokens,
        "chunk": plan.host.chunk,
        "layout": plan.layout,
        "weights_bytes": plan.weights_bytes,
        "kv_bytes": plan.host.kv.bytes,
        "minimum_budget_bytes": None,
        "predicted": None,
        "not_measured": {
            "minimum_budget_bytes": "measured on the machine that runs: plan BUNDLE --memory",
            "predicted": "measured on the machine that runs: plan BUNDLE --memory",
        },
    }


def _text(plan: Plan, cost: MethodCost | None) -> str:
    kv, site = plan.host.kv, plan.reduction
    words = {"vision": "encoder: {} -> {} patches", "decoder": "language model: {} -> {} visual"}
    inside = [
        f"{words[s.site].format(s.tokens_in, s.tokens_out)} by {s.method} at site {s.site}"
        for s in plan.sites
        if s.site in words
    ]
    rows = [
        [
            b.name,
            f.name,
            o.megabytes(b.weights_bytes),
            f"{f.flops / 1e9:.2f}",
            ", ".join(_shape(t.name, t.shape) for t in f.inputs if not t.name.startswith("past_")),
        ]
        for b in plan.blocks
        for f in b.functions
    ]
    views = plan.host.image.views
    return "\n".join(
        [
            f"{plan.source.model} ({plan.source.family}) for {plan.recipe.target},"
            f" weights {o.megabytes(plan.weights_bytes)}",
            f"visual tokens: {views} view{'s' * (views > 1)}, {site.tokens_in} -> {site.tokens_out}"
            f" by {site.method} at site {site.site}",
            *inside,
            *([_cost(site.method, cost)] if cost else []),
            f"sequence: {_parts(plan.layout.prompt)}",
            f"an image: {_parts(plan.layout.image)} = {plan.image_tokens} tokens",
            f"prompt {plan.prompt_tokens} tokens and the question; context {kv.tokens};"
            f" prefill in chunks of {plan.host.chunk}",
            f"KV cache: {kv.layers} layers x 2 x {[1, kv.heads, kv.tokens, kv.head_size]},"
            f" {o.megabytes(kv.bytes)}, {kv.form}",
            "",
            o.table(["block", "function", "weights", "GFLOP", "inputs"], rows),
        ]
    )


def _cost(method: str, cost: MethodCost) -> str:
    return (
        f"{method} itself: {cost.nodes} operators, {o.megabytes(cost.bytes)} while it runs,"
        f" {cost.ms:.2f} ms here in PyTorch"
    )


def _parts(parts: tuple[LayoutItem, ...]) -> str:
    shown = [
        f"{len(p.ids)} ids"
        if p.kind == "ids"
        else f"visual {p.start}:{p.stop}"
        if p.kind == "visual"
        else p.kind
        for p in parts
    ]
    return " + ".join(shown if len(shown) <= 9 else [*shown[:4], "…", *shown[-4:]])


def _shape(name: str, shape: tuple[int, ...]) -> str:
    return f"{name}{list(shape)}".replace(" ", "")
