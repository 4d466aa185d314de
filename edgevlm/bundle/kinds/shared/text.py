"""The text encoder of a kind: what a program needs around it."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.bundle.host import Embedding


@dataclass(frozen=True)
class TextHost:
    """What a program needs around the text encoder.

    Attributes:
        tokens: S, tokens of a text, filled up with `pad_id`.
        layers: Layers of the encoder.
        embedding: The table whose rows stand for tokens.
        pad_id: Token that fills up a text.
        end_id: Token that a text ends with; it is there after a cut too. None where texts have
            none.
        reads_end: Whether the embedding is read at the first `end_id` (CLIP), else at the last
            token of all (SigLIP).
        lower_case: Whether a text is made lower case before it is cut into tokens.
    """

    tokens: int
    layers: int
    embedding: Embedding
    pad_id: int
    end_id: int | None
    reads_end: bool
    lower_case: bool

    @property
    def parts(self) -> int:
        """Parts of the stage: positions, layers, head."""
        return self.layers + 2
