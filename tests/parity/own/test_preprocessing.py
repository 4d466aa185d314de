"""Our preprocessing stays near the checkpoint's own, whatever the family and the grid."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgevlm.models.find import find
from edgevlm.parity.checks import PREPROCESSING_LIMIT as LIMIT
from edgevlm.parity.own.preprocessing import preprocessing_error
from edgevlm.recipe import Recipe
from edgevlm.runtimes.loops import images

ROOT = Path(__file__).resolve().parents[3]
PHOTOS = [images.load(ROOT / "edgevlm" / "photos" / f"{n}.jpg") for n in ("flower", "stream")]


NAMES = ["tiny-smolvlm", "tiny-llava-onevision", "tiny-llava-next"]
GRIDS = [{}, {"tiles": (2, 2)}, {"tiles": (3, 1)}]
MORE = [{"tiles": (2, 3)}, {"frames": 4}]  # LLaVA-NeXT has no such grid and no clips
CASES = [(name, options) for name in NAMES for options in GRIDS]
CASES += [(name, options) for name in NAMES[:2] for options in MORE]


@pytest.fixture(scope="module")
def checkpoints(preset):
    """A tiny checkpoint of each family."""
    return {name: find(str(preset(name))) for name in NAMES}


def spec_of(checkpoint, **options):
    recipe = Recipe(**options)
    return checkpoint.family.describe(checkpoint.config, checkpoint.processor(), recipe).image


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("photo", PHOTOS, ids=["flower", "stream"])
def test_error_on_photographs_is_below_the_limit(checkpoints, name, options, photo):
    error = preprocessing_error(checkpoints[name], spec_of(checkpoints[name], **options), photo)
    limit = 1e-6 if "llava" in name else LIMIT
    assert error is not None
    assert error <= limit


@pytest.mark.parametrize("name", NAMES)
def test_no_error_where_both_only_cut(checkpoints, name):
    image = spec_of(checkpoints[name], tiles=(2, 2))
    picture = PHOTOS[0].resize((2 * image.width, 2 * image.height))
    assert preprocessing_error(checkpoints[name], image, picture) <= 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_another_filter_or_mean_is_seen(checkpoints, name):
    from dataclasses import replace

    image = spec_of(checkpoints[name])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8))
    other = replace(image, resample="nearest")
    assert preprocessing_error(checkpoints[name], other, noise) > LIMIT
    other = replace(image, mean=(0.4, 0.4, 0.4))
    assert preprocessing_error(checkpoints[name], other, PHOTOS[0]) > LIMIT


def test_none_where_there_is_nothing_to_compare(checkpoints, tmp_path):
    checkpoint = checkpoints["tiny-smolvlm"]
    image = spec_of(checkpoint, tiles=(2, 3))
    assert preprocessing_error(checkpoint, image, Image.new("RGB", (2, 2))) is None
    folder = shutil.copytree(checkpoint.folder, tmp_path / "bare")
    (folder / "preprocessor_config.json").unlink()
    assert preprocessing_error(find(str(folder)), image, PHOTOS[0]) is None
    other = json.loads((checkpoint.folder / "preprocessor_config.json").read_text())
    other["max_image_size"] = {"longest_edge": 64}
    folder = shutil.copytree(checkpoint.folder, tmp_path / "other")
    (folder / "preprocessor_config.json").write_text(json.dumps(other))
    assert preprocessing_error(find(str(folder)), image, PHOTOS[0]) is None
