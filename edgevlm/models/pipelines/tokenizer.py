"""The tokenizer of a pipeline: what ends and what fills up its texts."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer

from edgevlm.errors import ModelError, PlanError
from edgevlm.models.documents import check_no_pointer, of_checkpoint
from edgevlm.models.family import TextSpec
from edgevlm.models.pipelines.checkpoint import PipelineCheckpoint


@dataclass(frozen=True)
class TextTokens:
    """Tokens that texts have beside their words.

    Attributes:
        end_id: What a text ends with.
        pad_id: What fills it up.
    """

    end_id: int
    pad_id: int


def read_tokenizer(checkpoint: PipelineCheckpoint, text: TextSpec) -> TextTokens:
    """Special tokens of a pipeline's tokenizer.

    Raises:
        ModelError: If tokenizer.json is none.
        PlanError: If it ends a text with no token, or has tokens beyond the model's table.
    """
    path = checkpoint.tokenizer_folder / "tokenizer.json"
    try:
        check_no_pointer(path)
        tokenizer = Tokenizer.from_file(str(path))
    except ModelError as cause:
        raise of_checkpoint(checkpoint.model, cause) from cause
    except Exception as cause:  # the library raises Exception itself
        raise ModelError(
            f"'{checkpoint.model}': tokenizer/tokenizer.json is not valid: {cause}"
        ) from cause
    tokenizer.no_padding()
    around = tokenizer.encode("").ids
    named = checkpoint.document("tokenizer/tokenizer_config.json").get("pad_token")
    named = named.get("content") if isinstance(named, dict) else named
    pad = tokenizer.token_to_id(named) if isinstance(named, str) else None
    pad = text.pad_id if pad is None else pad
    most = max(tokenizer.get_vocab().values(), default=0)
    if not 0 <= pad <= max(pad, most) < text.vocabulary:
        raise PlanError(
            f"the tokenizer has tokens up to {most} and fills texts up with {pad}, the text"
            f" encoder's table has {text.vocabulary} rows; take the tokenizer it was trained with"
        )
    if not around:
        raise PlanError("the tokenizer ends a text with no token, and the text encoder reads one")
    return TextTokens(around[-1], pad)
