"""Every family with every method: export, and the thresholds of parity with PyTorch.

By default each method runs once on ONNX, with the families in turn, and each family with each grid
and clip at least once; the full cross stands behind the marker `slow`, other targets too
(tests/exporters/to_coreml/test_target.py has a choice of theirs).
"""

from __future__ import annotations

from itertools import product

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.recipe import Recipe
from edgevlm.registry import METHODS, TARGETS

FAMILIES = {
    "smolvlm": "tiny-smolvlm",
    "llava_onevision": "tiny-llava-onevision",
    "llava_next": "tiny-llava-next",
}
SHAPES = {"1x1": {}, "2x2": {"tiles": (2, 2)}, "4 frames": {"frames": 4}}
NO_CLIPS = ("llava_next",)
# Calls of one length whatever the budget, so that cases of a family share graphs (`lowered_once`).
CALLS = {"chunk": 32, "context": 640}
REL_ERROR, IMAGE_SENSITIVITY = 1e-3, 0.05

NAMES = METHODS.names("tokens")
CASES = list(product(TARGETS.names(), FAMILIES, NAMES, SHAPES))


# Tokens of methods whose graph unrolls rounds, so that they are few; two or more are left.
FEW_ROUNDS = {
    "aim": 48, "catp": 8, "divprune": 8, "frame_merge": 90, "k_medoids": 8,
    "todre": 8, "tome": 48}  # fmt: skip
# Methods that keep the first frame of a clip whole, of 64 tokens at most.
FIRST_WHOLE = {"evs": 80, "timechat": 80}
# Options with which rounds are few, and each kind of round is there.
OPTIONS = {
    "k_medoids": "k_medoids:rounds=2", "vispruner": "vispruner:r=24", "vqtoken": "vqtoken:rounds=2",
}  # fmt: skip


def budget(method):
    """A third of the smallest number of visual tokens of a shape, 64; identity keeps all."""
    return None if method == "identity" else (FEW_ROUNDS | FIRST_WHOLE).get(method, 24)


def simplest(method):
    """The first shape that a method can work on."""
    module, views = METHODS.load(method, "tokens"), ((8, 8),)
    shapes = {"1x1": VisualShape(views, 64), "4 frames": VisualShape(views * 4, 64, frames=4)}
    for name, shape in shapes.items():
        try:
            module.Method(tokens=budget(method)).plan(shape)
        except PlanError:
            continue
        return name
    return "2x2"


def families(shape):
    return [name for name in FAMILIES if shape != "4 frames" or name not in NO_CLIPS]


SIMPLEST = {method: simplest(method) for method in NAMES}
IN_TURN = {name: families(SIMPLEST[name]) for name in NAMES}
QUICK = {
    (IN_TURN[name][i % len(IN_TURN[name])], name, SIMPLEST[name]) for i, name in enumerate(NAMES)
}
# And tiles and a clip, with cheap methods; each method with several views is in
# compress/test_methods_common.py.
QUICK |= {("smolvlm", "fastervlm", "2x2"), ("smolvlm", "average_pool", "4 frames")}
QUICK |= {("llava_onevision", "visionzip", "2x2"), ("llava_onevision", "strided", "4 frames")}
QUICK |= {("llava_next", "vflowopt", "2x2"), ("llava_next", "strided", "4 frames")}


def quick(target, family, method, shape):
    return target == "onnx" and (family, method, shape) in QUICK


@pytest.mark.filterwarnings("ignore:record_property")  # the numbers go into the JUnit report
@pytest.mark.parametrize(
    ("target", "family", "method", "shape"),
    [
        pytest.param(*case, marks=() if quick(*case) else pytest.mark.slow, id="-".join(case))
        for case in CASES
    ],
)
def test_a_bundle_agrees_with_pytorch(
    preset, lowered_once, tmp_path, record_property, target, family, method, shape
):
    tokens = budget(method)
    model = str(preset(FAMILIES[family]))
    methods = (OPTIONS.get(method, method),)
    recipe = Recipe(model, None, target, tokens, methods, **CALLS, **SHAPES[shape])
    if family in NO_CLIPS and recipe.frames > 1:
        with pytest.raises(PlanError, match=family) as refused:
            lowered_once(recipe, tmp_path / "tiny.edgevlm")
        pytest.skip(str(refused.value))
    try:
        done = lowered_once(recipe, tmp_path / "tiny.edgevlm")
    except PlanError as reason:
        if not str(reason).startswith(f"{method}: ") or shape == SIMPLEST[method]:
            raise
        pytest.skip(str(reason))
    parity, plan = done.verification, done.bundle.plan
    worst = max(parity.blocks, key=lambda block: block.rel_error)
    for name in ("logits_rel_error", "tokens_equal", "image_sensitivity"):
        record_property(name, getattr(parity, name))
    record_property("worst_block", f"{worst.name}.{worst.function} {worst.rel_error:.1e}")
    assert parity.ok
    assert worst.rel_error <= REL_ERROR, worst
    assert parity.logits_rel_error <= REL_ERROR
    assert parity.tokens_equal == 1.0
    assert parity.image_sensitivity >= IMAGE_SENSITIVITY
    checked = {(block.name, block.function) for block in parity.blocks}
    assert checked == {(b.name, f.name) for b in plan.blocks for f in b.functions}
    assert plan.source.family == family
    assert plan.host.visual_tokens == (plan.sites[0].tokens_in if tokens is None else tokens)


def test_the_default_run_has_each_method_and_each_shape():
    chosen = [case for case in CASES if quick(*case)]
    assert {case[2] for case in chosen} == set(NAMES)
    assert {(case[1], case[3]) for case in chosen} == {(case[1], case[3]) for case in CASES}
