"""The length of a prompt, checked before it is tokenized: that takes hundreds of bytes a letter."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer

from edgevlm.errors import InputError

PIECE = 4096  # letters that are tokenized at a time
SLACK = 16  # tokens that a cut may add
TOKENIZER_BYTES = 800  # of a byte of text: 160 to 660 were measured


def check_length(tokenizer: Tokenizer, text: str, room: int, of: str) -> None:
    """Refuse a text that cannot fit, after as much of it as shows that.

    Args:
        tokenizer: The bundle's tokenizer.
        text: The user's text.
        room: Tokens that are free.
        of: The context, as the end of an error.

    Raises:
        InputError: With the number of tokens that it has at least.
    """
    tokens = 0
    for start in range(0, len(text) if len(text) > PIECE else 0, PIECE):
        piece = tokenizer.encode(text[start : start + PIECE], add_special_tokens=False)
        tokens += max(0, len(piece.ids) - SLACK)
        if tokens > room:
            raise InputError(f"the turn has more than {tokens} tokens, {of}")


def claim(text: str, row_bytes: int, shortage: Callable[[int], int]) -> None:
    """Make room for the tokens of a text and the rows of a turn.

    Args:
        text: The user's text.
        row_bytes: Bytes of all rows of the turn.
        shortage: (bytes) -> bytes that a budget lacks.

    Raises:
        InputError: If it does not fit a memory budget.
    """
    size = TOKENIZER_BYTES * len(text.encode()) + row_bytes
    if missing := shortage(size):
        more = -(-missing // 10**6)
        raise InputError(
            f"the prompt of {len(text):,} letters takes {-(-size // 10**6)} MB to tokenize,"
            f" {more} MB more than the memory budget leaves; raise --memory by {more} MB"
        )
