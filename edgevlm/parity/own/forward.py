"""The model's own forward of a picture and a question, beside its parts put together by a layout.

A model may do more with features than to put them where visual tokens stand: scale them, replace
other tokens, number positions anew, let them see each other. Its encoder and its language model
alone are equal then, and answers are not. A family that is not sure of it has `reference_logits`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from edgevlm.graphs.layers import scaled
from edgevlm.graphs.parts import ModelParts
from edgevlm.parity.compare import difference
from edgevlm.planning.vlm import VlmPlanned
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.sequence import assemble
from edgevlm.runtimes.loops.spelling import Visual


def forward_rel_error(
    planned: VlmPlanned,
    model: Any,
    parts: ModelParts,
    tokenizer: Tokenizer,
    question: str,
    photo: Image.Image,
) -> float | None:
    """Difference of the last scores of a prompt with all visual tokens; None where nobody asks.

    Args:
        planned: The plan, of a layout without extra rows of the table.
        model: transformers' model.
        parts: Our modules over its weights.
        tokenizer: The bundle's tokenizer.
        question: What is asked.
        photo: A photo of any size.
    """
    family, plan, description = planned.checkpoint.family, planned.plan, planned.description
    if not hasattr(family, "reference_logits"):
        return None
    views = torch.from_numpy(images.views([photo], description.image))
    features = family.reference_features(model, views, description)
    count, token = features.shape[1], planned.speller.slot
    numbers = np.arange(plan.host.embedding.rows, dtype=np.float32)[:, None]  # a row is its id
    visual = Visual(np.full((count, 1), -1, np.float32), np.arange(count, dtype=np.int32))
    first = plan.host.first_position
    items = plan.host.layout.prompt
    prompt = assemble(plan, items, numbers, tokenizer, question, [visual], first)
    spelled = torch.from_numpy(prompt.rows[:, 0]).long()
    ids = torch.where(spelled < 0, token, spelled)
    words = torch.nn.functional.embedding(ids, parts.table[0])
    rows = scaled(words, parts.decoder.spec.table_scale)
    rows[spelled < 0] = features[0]
    own = parts.decoder.own(rows.numpy(), prompt.positions, groups=prompt.groups)
    scores = parts.scores(own.last_hidden_state[0, -1:])[0]
    expected = family.reference_logits(model, views, ids[None], description)[-1]
    return difference(scores.numpy(), expected.numpy())[0]
