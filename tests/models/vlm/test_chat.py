"""System prompts, and texts between pictures: ids of every family are those of its processor."""

from __future__ import annotations

from itertools import groupby

import pytest

pytest.importorskip("torch")

from edgevlm.models.find import find
from edgevlm.planning.plan import make_plan
from edgevlm.recipe import Recipe
from edgevlm.runtimes.loops.spelling import Slot, Visual, first_turn, spell

# Whether a template has a place for a system text, and for texts between pictures.
FAMILIES = {
    "tiny-smolvlm": (True, True),
    "tiny-idefics3": (True, True),
    "tiny-llava": (True, False),
    "tiny-llava-next": (True, True),
    "tiny-llava-onevision": (True, False),
    "tiny-internvl": (True, True),
    "tiny-qwen2-5-vl": (True, True),
    "tiny-qwen3-vl": (True, True),
    "tiny-gemma3": (True, True),
    "tiny-paligemma": (False, False),
    "tiny-mistral3": (True, True),
    "tiny-granite-docling": (True, True),
    "tiny-granite4-vision": (True, True),
    "tiny-glm-ocr": (True, True),
    "tiny-paddleocr-vl": (True, False),
    # Their template trims a whole message, so a text's blanks stay or go by its place.
    "tiny-qwen3-5": (True, False),
    "tiny-minicpm-v-4-6": (True, False),
    "tiny-minicpm-v-4-7": (True, False),
}
SYSTEM = "\n Be brief -- caf\u00e9s count.\n- no lists "
FIRST, SECOND = "  What's in THIS picture, and \u82b1?\n", "1,024 px\t"
TOLD = [(SYSTEM, [FIRST]), (SYSTEM, [None, FIRST])]
MIXED = [
    (None, [FIRST, None, SECOND, None]),
    (None, [None, FIRST, None, SECOND, FIRST]),
    (SYSTEM, [FIRST, None, None, SECOND, None, FIRST]),
]


@pytest.fixture(scope="module")
def planned(preset):
    made = {}

    def plan(name):
        if name not in made:
            made[name] = make_plan(Recipe(model=str(preset(name))), find(str(preset(name))))
        return made[name]

    return plan


def squeezed(ids, visual):
    """Ids with one for neighbouring visual tokens."""
    return [i for i, run in groupby(ids) for _ in ([0] if i == visual else run)]


@pytest.mark.parametrize(("system", "parts"), [*TOLD, *MIXED], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_the_processor(planned, processor, prompt, photo, name, system, parts):
    made = planned(name)
    layout, slot = made.plan.host.layout, made.speller.slot
    assert (bool(layout.prompt_system), layout.mixes) == FAMILIES[name]
    if (system and not layout.prompt_system) or (len(parts) > 2 and not layout.mixes):
        return
    items = first_turn(layout, parts, system)
    clips = [Visual(None, None)] * parts.count(None)
    ours = []
    for part in spell(items, layout, made.speller.bundled, "", clips):
        ours += [slot] if isinstance(part, Slot) else part
    ours = [i if i < made.plan.host.vocabulary else slot for i in ours]
    image, checkpoint = made.plan.host.image, made.checkpoint
    picture = photo(image.columns * image.width, image.rows * image.height)
    said = [picture if part is None else part for part in parts]
    options = checkpoint.family.processor_options(image)
    theirs = prompt.mixed(processor(checkpoint.folder), said, system, **options)
    assert squeezed(ours, slot) == squeezed(theirs.input_ids[0].tolist(), slot)
