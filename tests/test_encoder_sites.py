"""Methods of site `vision` from recipe to bundle: plans, parity, cuts, and what goes with them."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import torch

from edgevlm.errors import PlanError, RecipeError
from edgevlm.graphs.signals import encode
from edgevlm.models.find import find
from edgevlm.planning.plan import make_plan
from edgevlm.recipe import Recipe

FAMILIES = ("tiny-smolvlm", "tiny-llava-onevision", "tiny-llava-next")
METHODS = (
    "tome@vision:r=4",
    "dymu:merges=8+4",
    "mustdrop:window=2,patches={few}",
    "soft_merge:patches={few}",
)
FEW = {"tiny-smolvlm": 200, "tiny-llava-onevision": 50, "tiny-llava-next": 50}


@pytest.mark.parametrize(
    ("family", "method"),
    [  # each method once, with the families in turn; the rest is slow
        pytest.param(family, method, marks=() if (i - j) % 3 == 0 else pytest.mark.slow)
        for i, family in enumerate(FAMILIES)
        for j, method in enumerate(METHODS)
    ],
)
def test_a_bundle_agrees_with_pytorch(preset, lowered_once, tmp_path, family, method):
    """One layer a block, so that tokens, sizes and origins go from block to block."""
    method = method.format(few=FEW[family])
    recipe = Recipe(
        model=str(preset(family)),
        tokens=12,
        methods=(method, "fastervlm"),
        block_size_bytes=100_000,
    )
    done = lowered_once(recipe, tmp_path / "tiny.edgevlm")
    parity, plan = done.verification, done.bundle.plan
    inside, chosen = plan.sites
    assert (inside.site, chosen.site) == ("vision", "tokens")
    assert inside.tokens_out < inside.tokens_in
    assert plan.host.visual_tokens == chosen.tokens_out == 12
    between = [[t.name for t in b.functions[0].inputs] for b in plan.stage("vision")]
    assert ["hidden", "size", "origin"] in between or ["hidden", "origin"] in between
    assert parity.ok
    assert max(block.rel_error for block in parity.blocks) <= 1e-3
    assert parity.logits_rel_error <= 1e-3
    assert parity.tokens_equal == 1.0


def test_a_rounded_bundle_agrees_though_it_merges_otherwise(preset, lowered_once, tmp_path):
    recipe = Recipe(
        model=str(preset("tiny-smolvlm")),
        tokens=12,
        methods=("tome@vision:r=4", "fastervlm"),
        block_size_bytes=100_000,
        quantize="vision=w8a8",
    )
    parity = lowered_once(recipe, tmp_path / "tiny.edgevlm").verification
    merging = [b.psnr_db for b in parity.blocks if b.half_psnr_db is not None]
    assert len(merging) > 1
    assert min(merging) > 30


def test_nothing_merges_where_all_is_alike_but_in_value(preset):
    """Patches of one colour differ by position alone; with r = 0 merges nothing would change."""
    recipe = Recipe(model=str(preset("tiny-smolvlm")), methods=("dymu:merges=0",))
    plain = Recipe(model=recipe.model)
    checkpoint = find(recipe.model, None)
    model = checkpoint.load_model()
    pixels = torch.rand(1, 3, 224, 224)
    planned = [make_plan(r, checkpoint) for r in (recipe, plain)]
    height = planned[0].plan.host.image.height
    pixels = torch.nn.functional.interpolate(pixels, (height, height))
    with torch.no_grad():
        (a,), _ = encode(planned[0].parts(model).encoder.modules, pixels)
        (b,), _ = encode(planned[1].parts(model).encoder.modules, pixels)
    assert torch.equal(a, b)


def test_merging_costs_less_and_changes_little(preset):
    """FLOPs of the encoder fall with its tokens; features stay near."""
    checkpoint = find(str(preset("tiny-smolvlm")), None)
    flops = []
    for methods in ((), ("tome@vision:r=40",), ("tome@vision:r=90",)):
        plan = make_plan(Recipe(model=str(preset("tiny-smolvlm")), methods=methods), checkpoint)
        flops.append(sum(f.flops for b in plan.plan.stage("vision") for f in b.functions))
    assert flops[0] > flops[1] > flops[2]


def test_refusals(preset):
    """Two methods at one site, a site where a method does not work, and an impossible count."""
    model = str(preset("tiny-smolvlm"))
    checkpoint = find(model, None)
    with pytest.raises(
        RecipeError, match=r"^site 'tokens' has two methods: 'random' and 'divprune'"
    ):
        make_plan(Recipe(model=model, tokens=4, methods=("random", "divprune")), checkpoint)
    with pytest.raises(RecipeError, match=r"^method 'divprune' works at site 'tokens', not"):
        make_plan(Recipe(model=model, methods=("divprune@vision",)), checkpoint)
    with pytest.raises(RecipeError, match=r"^method 'tome' works at site 'tokens' and 'vision'"):
        make_plan(Recipe(model=model, methods=("tome@decoder",)), checkpoint)
    with pytest.raises(RecipeError, match=r"^method 'tome': give patches"):
        make_plan(Recipe(model=model, methods=("tome@vision",)), checkpoint)
    with pytest.raises(PlanError, match=r"^tome: got patches=9999, expected less than"):
        make_plan(Recipe(model=model, methods=("tome@vision:patches=9999",)), checkpoint)
