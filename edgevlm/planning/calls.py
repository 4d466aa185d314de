"""How many tokens a call of `prefill` takes, and how many the cache has room for."""

from __future__ import annotations

from edgevlm.errors import PlanError
from edgevlm.graphs.parts import DecoderSpec
from edgevlm.recipe import Recipe

# Room for a question and an answer beside the image when the recipe names no context.
ROOM_TOKENS = 512
# A question of this length is planned for when the chunk is chosen.
QUESTION_TOKENS = 32
# A longer call gains little on a CPU, and what fills up the last one costs as much as a real row.
CHUNK_TOKENS = 256


def chunk_tokens(recipe: Recipe, prompt: int, single_call: bool) -> int:
    """Tokens of a `prefill` call: the recipe's, or few calls of equal length, a multiple of 8.

    Args:
        recipe: What is asked for.
        prompt: Tokens of a first turn with one image and an empty question.
        single_call: Whether a prompt must be one call.

    Raises:
        PlanError: If the recipe's chunk does not hold a prompt that must be one call.
    """
    tokens = prompt + QUESTION_TOKENS
    calls = 1 if single_call else -(-tokens // CHUNK_TOKENS)
    chunk = recipe.chunk or -(-tokens // (calls * 8)) * 8
    if single_call and chunk <= prompt:
        raise PlanError(
            f"chunk {chunk} is too short: with pruning in the decoder a prompt is one call, and"
            f" one image and the chat format take {prompt} tokens; give a larger --chunk"
        )
    return chunk


def context_tokens(
    recipe: Recipe, prompt: int, chunk: int, decoder: DecoderSpec, single_call: bool
) -> int:
    """Tokens of the cache: the recipe's or a default, rounded to whole chunks.

    Where a prompt is one call, further turns go row by row and nothing is rounded.

    Raises:
        PlanError: If the prompt does not fit, or the model has fewer positions or a window of fewer
            tokens.
    """
    most, limit = decoder.most_rows
    needed = prompt + 1
    if recipe.speculate:
        needed += QUESTION_TOKENS + recipe.speculate
    context = recipe.context or min(prompt + ROOM_TOKENS, most)
    if context > most:
        raise PlanError(
            f"context {context} is more than the model's {limit}; give --context {most} or less"
        )
    if context <= needed:
        if not recipe.context and needed >= most:
            raise PlanError(
                f"one image and the chat format take {prompt} tokens, more than fit the model's"
                f" {limit}; give fewer --tokens"
            )
        more = ", and a checked answer some more" if recipe.speculate else ""
        raise PlanError(
            f"context {context} is too short: one image and the chat format take"
            f" {prompt} tokens{more}; give a larger --context or fewer --tokens"
        )
    if single_call:
        return min(max(context, chunk), most)
    rounded = -(-context // chunk) * chunk
    if rounded > most:
        rounded -= chunk
    if rounded <= needed:
        raise PlanError(f"chunk {chunk} does not fit the model's {limit}; give a smaller one")
    return rounded
