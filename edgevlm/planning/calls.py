"""How many tokens a call of `prefill` takes, and what the cache is and has room for."""

from __future__ import annotations

from edgevlm.bundle.host import StreamSpec
from edgevlm.bundle.kinds.shared.reduce import no_stream
from edgevlm.bundle.kinds.vlm import VlmHost
from edgevlm.errors import PlanError
from edgevlm.graphs.parts import DecoderSpec
from edgevlm.recipe import Recipe

# Room for a question and an answer beside the image when the recipe names no context.
ROOM_TOKENS = 512
# A question of this length is planned for when the chunk is chosen.
QUESTION_TOKENS = 32
# A longer call gains little on a CPU, and what fills up the last one costs as much as a real row.
CHUNK_TOKENS = 256
# Visual tokens before any method: some compare all with all, in a plan, which measures what that
# costs, as on a device. Divprune over so many takes 2.4 GB.
MOST_VISUAL = 2**14


def check_visual(entering: int, kept: int, decoder: DecoderSpec) -> None:
    """Refuse visual tokens that cannot fit, before a prompt is made of them.

    Args:
        entering: Of all views together, as the encoder gives them.
        kept: Those that the methods leave.
        decoder: Its numbers.

    Raises:
        PlanError: Saying what to give less of.
    """
    most, limit = decoder.most_rows
    if kept >= most:
        raise PlanError(
            f"{kept} visual tokens are more than fit the model's {limit}; give fewer --tokens"
        )
    if entering > MOST_VISUAL:
        raise PlanError(
            f"the encoder gives {entering} visual tokens, expected {MOST_VISUAL} at most; give"
            " fewer --frames or --tiles, or a smaller --size"
        )


def chunk_tokens(recipe: Recipe, prompt: int, single_call: bool, picture: int = 0) -> int:
    """Tokens of a `prefill` call: the recipe's, or few calls of equal length, a multiple of 8.

    Args:
        recipe: What is asked for.
        prompt: Tokens of a first turn with one image and an empty question.
        single_call: Whether a prompt must be one call.
        picture: Visual tokens that one call must take, since they see each other: those of a
            picture or of a frame. One call takes the prompt, where they are most of it.

    Raises:
        PlanError: If the recipe's chunk does not hold what must be one call.
    """
    tokens = prompt + QUESTION_TOKENS
    if recipe.stream:  # a frame is a call, and a question another
        tokens = recipe.stream + QUESTION_TOKENS
    calls = 1 if single_call or 2 * picture > prompt else -(-tokens // max(CHUNK_TOKENS, picture))
    chunk = recipe.chunk or max(-(-tokens // (calls * 8)), -(-picture // 8)) * 8
    if single_call and chunk <= prompt:
        raise PlanError(
            f"chunk {chunk} is too short: with pruning in the decoder, or tokens that see later"
            f" ones, a prompt is one call, and one image and the chat format take {prompt} tokens;"
            f" give a --chunk of {prompt + 1} or more"
        )
    if chunk < picture:
        raise PlanError(
            f"chunk {chunk} is too short: the {picture} visual tokens of a picture see each other,"
            f" so that one call takes them; give a --chunk of {picture} or more"
        )
    return chunk


def context_tokens(
    recipe: Recipe,
    prompt: int,
    chunk: int,
    decoder: DecoderSpec,
    single_call: bool,
    picture: int = 0,
) -> int:
    """Tokens of the cache: the recipe's or a default, rounded to whole chunks.

    Where a prompt is one call, further turns go row by row and nothing is rounded.

    Raises:
        PlanError: If the prompt does not fit, or the model has fewer positions or a window of fewer
            tokens.
    """
    most, limit = decoder.most_rows
    needed, more = _needed(recipe, prompt, chunk, picture)
    context = recipe.context or min(max(prompt + ROOM_TOKENS, needed + 1), most)
    if context > most:
        raise PlanError(
            f"context {context} is more than the model's {limit}; give --context {most} or less"
        )
    if context <= needed:
        if needed >= most:
            raise PlanError(
                f"one image and the chat format take {prompt} tokens{more}, more than fit the"
                f" model's {limit}; give fewer --tokens"
            )
        raise PlanError(
            f"context {context} is too short: one image and the chat format take {prompt} tokens"
            f"{more}, expected {needed + 1} at least; give --context {needed + 1} or fewer --tokens"
        )
    if single_call:
        return min(max(context, chunk), most)
    rounded = -(-context // chunk) * chunk
    if rounded > most:
        rounded -= chunk
    if rounded <= needed:
        raise PlanError(
            f"chunk {chunk} does not fit: whole chunks within the model's {limit} are {rounded}"
            f" tokens, expected {needed + 1} at least; give a smaller --chunk"
        )
    return rounded


def stream_spec(recipe: Recipe, decoder: DecoderSpec) -> StreamSpec | None:
    """Numbers of a stream; None where the recipe asks for none."""
    if recipe.stream is None:
        return None
    turned = (layer for layer in decoder.attending if decoder.layers[layer].rotary)
    return StreamSpec(recipe.stream, tuple(turned))


def check_stream(host: VlmHost) -> None:
    """Refuse a stream that a bundle of such a host cannot take.

    Raises:
        PlanError: With the reason.
    """
    reason = no_stream(host) if host.stream else ""
    if reason:
        raise PlanError(f"no stream: {reason}; leave out --stream")


def check_layers(decoder: DecoderSpec, inside: str, chunk: int, context: int) -> None:
    """Refuse what the layers of a decoder do not go with.

    Args:
        decoder: Its numbers.
        inside: What makes masks or drops rows inside it; empty if nothing does.
        chunk: Rows of a `prefill` call.
        context: Rows of the cache.

    Raises:
        PlanError: Saying what to leave out, or to change.
    """
    beside = decoder.beside_causal(context)
    if inside and beside:
        raise PlanError(
            f"{inside} needs a language model whose tokens see all before them and none after, and"
            f" in this one {beside}; leave it out"
        )
    window = min((layer.window for layer in decoder.layers if layer.window), default=chunk)
    if decoder.mask == "prefix" and window < chunk:
        raise PlanError(
            f"all tokens of a prompt see each other, and layers with a window of {window} tokens"
            f" cannot say so for a call of {chunk}; give fewer --tokens or a --chunk of {window}"
        )


def _needed(recipe: Recipe, prompt: int, chunk: int, picture: int) -> tuple[int, str]:
    """Rows that a first turn takes at most, and what takes them beside the prompt."""
    needed, more = prompt + 1, ""
    if picture and chunk < prompt + QUESTION_TOKENS:
        needed, more = prompt + chunk, f", and a call that ends early up to {chunk} more"
    if recipe.speculate:
        needed += QUESTION_TOKENS + recipe.speculate
        more += ", and a checked answer some more"
    return needed, more
