"""Loops over the tiny model, exported with some options, each combination once."""

from __future__ import annotations

import hashlib
import json

import pytest


@pytest.fixture(scope="session")
def loop_of(tiny_model, once, lowered_once):
    """Makes a text loop over the bundle of some options; nobody writes into the bundle."""
    from edgevlm.bundle.files import Bundle
    from edgevlm.recipe import Recipe
    from edgevlm.runtimes.loops.text import TextLoop
    from edgevlm.runtimes.on_onnxruntime.engine import Engine
    from edgevlm.runtimes.residency.resident import ResidentBlocks

    def make(**options):
        name = hashlib.sha256(json.dumps(options).encode()).hexdigest()[:12]
        recipe = Recipe(model=tiny_model, **options)
        path = once(f"{name}.edgevlm", lambda out: lowered_once(recipe, out))
        bundle = Bundle.open(path)
        return TextLoop(bundle, ResidentBlocks(bundle.plan, Engine(bundle, threads=1)))

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
