"""A checkpoint's own tokenizer beside the one of its bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from edgevlm.errors import ModelError
from edgevlm.models.processor import bundle_tokenizer, first_word_blank

Range = tuple[int, int]


@dataclass(frozen=True)
class Speller:
    """What turns text into ids.

    Attributes:
        own: transformers' tokenizer.
        vocabulary: Rows of the embedding table that are words; extra rows follow.
        placeholder: Text of the token that stands for visual tokens.
    """

    own: Any
    vocabulary: int
    placeholder: str

    @cached_property
    def bundled(self) -> Tokenizer:
        """The bundle's tokenizer, to which a text like `<image>` is no special token."""
        tokenizer = bundle_tokenizer(self.own, self.vocabulary)
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def first_word_blank(self) -> bool:
        """Whether the first word of a whole text, and no other, gets a blank in front."""
        return first_word_blank(self.own)

    @cached_property
    def slot(self) -> int:
        """The placeholder's id.

        Raises:
            ModelError: If it is no token.
        """
        ids = self.own(self.placeholder, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] not in self.own.added_tokens_decoder:
            raise ModelError(
                f"'{self.placeholder}', which stands for an image, is no token of the tokenizer;"
                " add it to tokenizer.json"
            )
        return int(ids[0])

    def written(self, text: str) -> bool:
        """Whether a text begins with what the tokenizer would put in front (Llama's `<s>`).

        Then it is left out, as transformers' `apply_chat_template` does.
        """
        begin = self.own.bos_token
        return begin is not None and text.startswith(begin)

    def ids(self, text: str) -> list[int]:
        """Ids of a whole text by the checkpoint's own tokenizer, in one call."""
        add = not self.written(text)
        ids = self.own(text, add_special_tokens=add, verbose=False)["input_ids"]  # of any length
        return list(map(int, ids))

    def start(self, text: str) -> tuple[int, ...]:
        """The ids that the tokenizer puts in front of a whole text.

        Raises:
            ModelError: If it puts something behind the text too, or a token has no row.
        """
        bare = list(self.own(text, add_special_tokens=False)["input_ids"])
        whole = self.ids(text)
        start = whole[: len(whole) - len(bare)]
        if whole != start + bare:
            end = self.own.convert_ids_to_tokens(whole[-1])
            raise ModelError(
                f"the tokenizer puts '{end}' behind a prompt, where the answer begins; save it"
                " with a post-processor that puts nothing there"
            )
        return self.rows(start)

    def tokens(self, text: str) -> Iterator[tuple[int, Range, Any]]:
        """Ids of a text with their ranges of characters, and the added token that an id is."""
        encoded = self.own(text, add_special_tokens=False, return_offsets_mapping=True)
        added = self.own.added_tokens_decoder
        for number, (start, stop) in zip(
            encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            yield int(number), (start, stop), added.get(number)

    def rows(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The same ids.

        Raises:
            ModelError: If one has no row in the table.
        """
        beyond = next((number for number in ids if number >= self.vocabulary), None)
        if beyond is not None:
            token = self.own.convert_ids_to_tokens(beyond)
            raise ModelError(
                f"the prompt has the token '{token}' with id {beyond}, the model's table has"
                f" {self.vocabulary} words; resize the table"
            )
        return tuple(ids)
