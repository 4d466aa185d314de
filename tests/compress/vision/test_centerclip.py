"""CenterCLIP: k-medoids against the recorded ones, plans, and CLIP over frames with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from edgevlm.compress.vision.centerclip import Method
from edgevlm.errors import PlanError
from edgevlm.graphs.clips.medoids import medoids, take
from edgevlm.graphs.signals import encode
from edgevlm.models.find import find
from edgevlm.planning.plan import make_plan
from edgevlm.recipe import Recipe

VECTORS = Path(__file__).resolve().parents[3].parent / "shared" / "vectors"


def test_medoids_are_the_originals() -> None:
    """Of all recorded cases by Euclidean distance."""
    if not VECTORS.is_dir():
        pytest.skip("the recorded vectors are not here")
    recorded, compared = np.load(VECTORS / "centerclip.npz"), 0
    for index in range(len({key.split("_")[0] for key in recorded.files})):
        mark = f"case{index}_"
        case = {k[len(mark) :]: recorded[k] for k in recorded.files if k.startswith(mark)}
        if case["param_distance_cosine"] or case["param_pre_norm"]:
            continue
        x, compared = torch.from_numpy(case["in_x"]), compared + 1
        found, cluster = medoids(x, int(case["param_K"]), 12)
        assert found.tolist() == case["out_medoids"].tolist()
        assert cluster.tolist() == case["out_assign"].tolist()
        assert torch.equal(take(x, found), torch.from_numpy(case["out_tokens"]))
    assert compared


def test_plans() -> None:
    """Segments behind the layer; what cannot be is one line."""
    windows = Method(patches=10, segments=2, layer=3).plan_frames(4, 49, 4)
    assert windows == ((4, 50), (4, 50), (2, 11), (2, 11))
    for options, message in (
        ({"segments": 3}, "12 frames do not make|4 frames do not make 3 equal segments"),
        ({"layer": 5}, "got layer=5, the encoder has 4 layers"),
        ({"patches": 98}, "got patches=98, expected less than 98"),
    ):
        with pytest.raises(PlanError, match=message):
            Method(**{"patches": 10, "segments": 2, "layer": 3} | options).plan_frames(4, 49, 4)
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        Method(patches=1, segments=1, rounds=0)


def test_clip_over_frames_with_it_is_transformers_driven_so(preset: Any) -> None:
    """Segments of two frames behind the first layer, and the mean of their embeddings."""
    method = "centerclip:patches=9,segments=2,layer=1"
    recipe = Recipe(str(preset("tiny-clip")), frames=4, methods=(method,))
    planned: Any = make_plan(recipe, find(recipe.model))
    image = planned.plan.host.image
    assert (image.views, planned.plan.host.encoder.tokens) == (1, (200, 20, 20))
    model = planned.checkpoint.load_model()
    torch.manual_seed(0)
    pixels = torch.randn(1, image.channels, image.height, image.width)
    own, expected = model.vision_model, []
    with torch.no_grad():
        x = own.pre_layrnorm(own.embeddings(pixels.reshape(4, 3, image.height, image.width)))
        first, second = own.encoder.layers
        x = first(x, None)
        for segment in (x[:2], x[2:]):
            patches = segment[:, 1:].reshape(-1, x.shape[-1])
            apart = torch.cdist(patches, patches, compute_mode="donot_use_mm_for_euclid_dist")
            chosen = [int(patches.norm(dim=-1).argmax())]
            while len(chosen) < 9:
                chosen.append(int(apart[chosen].amin(0).argmax()))
            for _ in range(7):
                cluster = apart[chosen].argmin(0)
                members = [(cluster == c).nonzero()[:, 0] for c in range(9)]
                chosen = [int(m[apart[m][:, m].sum(1).argmin()]) for m in members]
            tokens = torch.cat((segment[:, :1].mean(0), patches[sorted(chosen)]))[None]
            pooled = own.post_layernorm(second(tokens, None)[:, 0])
            embedding = model.visual_projection(pooled)[0]
            expected.append(embedding / embedding.norm())
        ours = encode(planned.parts(model).encoder.modules, pixels)[0][0][0]
    clip = torch.stack(expected).mean(0)
    assert (ours - clip).abs().max() < 1e-5 * clip.abs().max()


@pytest.mark.parametrize(("name", "frames"), [("tiny-clip", 1), ("tiny-siglip", 4)])
def test_frames_with_a_class_token_are_needed(preset: Any, name: str, frames: int) -> None:
    """A picture has none to join, SigLIP's frames have no class token."""
    recipe = Recipe(str(preset(name)), frames=frames, methods=("centerclip:patches=4,segments=1",))
    with pytest.raises(PlanError, match="centerclip at site vision joins the frames of a clip"):
        make_plan(recipe, find(recipe.model))
