"""`edgevlm calibrate`: the line of a recipe that comes out, its figures, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from edgevlm.errors import PlanError
from edgevlm.evaluation.pytorch import PyTorchAnswerer
from edgevlm.graphs.selection import keep_all
from edgevlm.graphs.signals import method_inputs
from edgevlm.models.find import find
from edgevlm.models.weights.paging import FileWeight
from edgevlm.planning.plan import make_plan
from edgevlm.quantization.calibrate import scenes
from edgevlm.recipe import MethodChoice, Recipe
from edgevlm.registry import METHODS
from edgevlm.studies import calibration
from edgevlm.studies.calibration import Pictures, calibrated_methods

PHOTOS = Path(__file__).resolve().parents[2] / "edgevlm" / "photos"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of two pictures, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("flower.jpg", "hand.jpg"):
        shutil.copy(PHOTOS / name, folder)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_dymu_gives_a_method_that_a_plan_takes(run, preset, photos):
    model = str(preset("tiny-smolvlm"))  # 256 patches, two layers
    done = run("calibrate", "dymu", "--model", model, "--images", photos, "--patches", 200)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "--method dymu:merges=28+30\n"
    planned = make_plan(
        Recipe(model, methods=(done.stdout.split()[1],)),  # type: ignore[arg-type]
        find(model, None),
    )
    assert planned.plan.sites[0].tokens_out == 198


def test_the_document_has_the_figures(run, preset, photos):
    model = str(preset("tiny-smolvlm"))
    done = run("calibrate", "dymu:patches=200", "--model", model, "--images", photos, "--json")
    found = json.loads(done.stdout)
    measured = found.pop("measured")
    assert found == {
        "model": model,
        "method": "dymu:merges=28+30",
        "images": str(photos),
        "views": 2,
    }
    assert measured["patches_least"] < measured["patches_mean"] == 198.5
    assert measured["patches_least"] + measured["patches_most"] == 397
    assert [0 < t < 1 for t in measured["thresholds"]] == [True, True]


def test_mustdrop_gives_the_patches_that_a_threshold_leaves(run, preset, photos):
    model = str(preset("tiny-clip"))  # 49 patches: four whole windows of 3 x 3
    options = ("--model", model, "--images", photos)
    done = run("calibrate", "mustdrop:threshold=-1", *options)
    assert done.stdout == "--method mustdrop:patches=17\n"
    done = run("calibrate", "mustdrop@vision:threshold=-1,window=2", *options)
    assert done.stdout == "--method mustdrop@vision:patches=22,window=2\n"
    done = run("calibrate", "mustdrop:threshold=1", *options)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == (
        "edgevlm: mustdrop: in the mean 0.00 windows of a view are above threshold=1, so none would"
        " merge; take a lower one"
    )


def test_vflowopt_gives_a_method_that_keeps_as_many_tokens(run, preset, photos):
    model = str(preset("tiny-smolvlm"))
    done = run("calibrate", "vflowopt:tokens=16,trials=3", "--model", model, "--images", photos)
    assert done.exit_code == 0, done.stderr
    flag, method = done.stdout.split()
    assert (flag, method.partition("=")[0]) == ("--method", "vflowopt:t")
    planned = make_plan(Recipe(model, tokens=16, methods=(method,)), find(model, None))  # type: ignore[arg-type]
    assert planned.plan.host.visual_tokens == 16
    done = run("calibrate", "vflowopt:16", "--model", preset("tiny-clip"), "--images", photos)
    assert done.stderr.splitlines()[-1].endswith(
        "answers no questions; give a vision-language model"
    )


@torch.no_grad()
def test_the_last_state_is_the_models_own(preset, photos, monkeypatch):
    """With all tokens it leads to the first token of the unchanged model's answer.

    The calibration's weights stay in their files.
    """
    monkeypatch.setattr(calibration, "KEPT_BYTES", 0)
    model = str(preset("tiny-llava-onevision"))
    pictures = Pictures(Recipe(model), str(photos))
    parts = pictures.parts
    assert isinstance(parts.head, FileWeight)
    answerer = PyTorchAnswerer.open(Recipe(model, methods=("identity",)))  # type: ignore[arg-type]
    answerer._max_new_tokens = 1
    for picture, scene in zip(pictures.pictures(), scenes(str(photos), 1), strict=True):
        features, _ = method_inputs(parts, (), picture.views)
        state = picture.last_state(*keep_all(features))
        token = int(torch.nn.functional.linear(state, parts.head).argmax())
        answerer.set_frames(scene.frames)
        text = answerer.ask(scene.questions[0].prompt, follow_up=False).text
        tokenizer = pictures.planned(None).speller.bundled
        assert text == tokenizer.decode([token], skip_special_tokens=True)


def test_tiles_are_views_of_their_own(preset, photos):
    recipe = Recipe(str(preset("tiny-llava-next")), tiles=(1, 2))
    pictures = Pictures(recipe, str(photos))
    assert {tuple(view.shape) for view in pictures.views()} == {(1, 3, 56, 56)}
    assert pictures.seen == 2 * 3


@pytest.mark.parametrize(("name", "site"), calibrated_methods())
def test_a_calibration_takes_named_options(name, site):
    """What its method is made of comes out; see compress/shared/calibration.py."""
    assert METHODS.load(name, site).calibrate.__annotations__["return"] == "Calibrated"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("dymu", "calibration of 'dymu' needs 'patches', such as dymu:patches=N"),
        ("dymu:patches=4,r=3", "calibration of 'dymu' has no option 'r'; available: patches"),
        ("dymu:256", "dymu: got patches=256, expected 1 to 255, fewer than the 256 of a view"),
        ("dymu:0.5", "a method looks like NAME[@SITE][:key=value,…], got 'dymu:0.5'"),
        ("dymu:patches=9", "dymu: got 123 merges in layer 2, expected at most 66 of its"),
        ("divprune", "method 'divprune' at site 'tokens' has nothing to calibrate; methods that"),
        (
            "mustdrop@decoder",
            "method 'mustdrop' at site 'decoder' has nothing to calibrate; methods that have:"
            " dymu@vision, mustdrop@vision, vflowopt@tokens",
        ),
        ("mustdrop:threshold=x", "mustdrop: got threshold=x, expected a cosine, -1 to 1"),
        ("mustdrop:window=17", "mustdrop: got window=17 for 256 patches, expected 2 or more that"),
        ("vflowopt", "calibration of 'vflowopt' needs 'tokens', such as vflowopt:tokens=N"),
        ("vflowopt:65", "vflowopt: got tokens=65, expected 1 to 64 (the visual tokens there are)"),
        ("nothing", "unknown method 'nothing'"),
    ],
)
def test_refusals(run, preset, photos, method, message):
    done = run("calibrate", method, "--model", preset("tiny-smolvlm"), "--images", photos)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"edgevlm: {message}")


def test_pictures_that_are_none(run, preset, tmp_path, monkeypatch):
    model = ("--model", preset("tiny-smolvlm"))
    with monkeypatch.context() as patch:
        patch.setattr("edgevlm.studies.calibration.find", None)  # no model is opened
        done = run("calibrate", "dymu:200", *model, "--images", tmp_path / "none")
    assert done.stderr.splitlines()[-1].startswith(
        "edgevlm: pictures to calibrate with must be a number of scenes, a folder or a .jsonl file"
    )
    done = run("calibrate", "dymu:200", *model, "--images", tmp_path)
    assert done.stderr.splitlines()[-1].endswith(
        "has no image to calibrate with; give a folder with images, those in folders inside it are"
        " not read"
    )
    done = run("calibrate", "dymu:9", *model, "--images", "0")
    assert done.exit_code == 2
    done = run("calibrate", "dymu:9", *model, "--patches", 9)
    assert done.stderr == ("edgevlm: calibration of 'dymu' has 'patches' twice; give it once\n")


def test_an_encoder_without_layers(monkeypatch, preset):
    from dataclasses import replace

    encoder = Pictures.encoder.fget
    monkeypatch.setattr(
        Pictures, "encoder", property(lambda self: replace(encoder(self), layers=()))
    )
    with pytest.raises(PlanError, match=r"^the encoder of '.*' runs no layer"):
        Pictures(Recipe(str(preset("tiny-smolvlm"))), "1")


def test_a_method_as_text_is_what_a_recipe_takes():
    assert str(MethodChoice("dymu", None, (("merges", "3+4"),))) == "dymu:merges=3+4"
