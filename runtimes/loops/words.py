"""Texts of an encoder as tokens: cut or filled up to S of them, as the checkpoint's tokenizer does.

A text of any length costs little: only its beginning is cut into tokens, until twice as much of it
gives the same S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.kinds.encoder import TextHost
from edgevlm.errors import BundleError
from edgevlm.runtimes.loops.tables import load_table, load_tokenizer

BEGINNING = 16  # letters for each of the S tokens that are looked at first


class Words:
    """The tokenizer of a bundle, and the table [V, C] whose rows stand for its tokens."""

    def __init__(self, bundle: Bundle, host: TextHost) -> None:
        """Read the tokenizer.

        Raises:
            BundleError: If it is none, or does not end a text as the manifest says.
        """
        self.host = host
        self._tokenizer = load_tokenizer(bundle, host.embedding.rows)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        end = next(reversed(self._tokenizer.encode("").ids), None)
        if end != host.end_id:
            raise BundleError(
                f"'tokenizer.json' ends a text with token {end}, the manifest has"
                f" host.text.end_id {host.end_id}; export the model again"
            )
        self.table = load_table(bundle, host.embedding)

    def ids(self, text: str) -> list[int]:
        """S tokens: those of the text, with its end token even if truncated, then padding."""
        host = self.host
        ids = self._first(text.lower() if host.lower_case else text)
        if len(ids) > host.tokens:
            ends = [] if host.end_id is None else [host.end_id]
            ids = [*ids[: host.tokens - len(ends)], *ends]
        return [*ids, *[host.pad_id] * (host.tokens - len(ids))]

    def end(self, ids: Sequence[int]) -> int:
        """Index of the first end token."""
        return [*ids].index(self.host.end_id or 0)

    def _first(self, text: str) -> list[int]:
        """The tokens of a text; of a long one at least the first S."""
        tokens, length = self.host.tokens, BEGINNING * self.host.tokens
        before: list[int] = []
        while length < len(text):
            ids: list[int] = self._tokenizer.encode(text[:length]).ids
            if len(before) > tokens and before[:tokens] == ids[:tokens]:
                return ids
            before, length = ids, 2 * length
        whole: list[int] = self._tokenizer.encode(text).ids
        return whole
