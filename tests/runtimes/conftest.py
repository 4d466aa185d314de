"""Loops over the tiny model, exported with some options, each combination once."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def loop_of(tiny_model, tmp_path_factory):
    """Makes a text loop over the bundle of some options."""
    from edgevlm.pipeline import export
    from edgevlm.recipe import Recipe
    from edgevlm.runtimes.loops.text import TextLoop
    from edgevlm.runtimes.on_onnxruntime.engine import Engine
    from edgevlm.runtimes.residency.resident import ResidentBlocks

    root, made = tmp_path_factory.mktemp("bundles"), {}

    def make(**options):
        key = json.dumps(options)
        if key not in made:
            recipe = Recipe(model=tiny_model, **options)
            made[key] = export(recipe, root / f"{len(made)}.edgevlm").bundle
        return TextLoop(made[key], ResidentBlocks(made[key].plan, Engine(made[key], threads=1)))

    return make


@pytest.fixture(scope="module")
def shared(loop_of):
    """All 64 visual tokens, chunk 16, context 512."""
    return loop_of(chunk=16, context=512)


@pytest.fixture
def loop(shared):
    """The same, in a new conversation."""
    shared.reset()
    return shared
