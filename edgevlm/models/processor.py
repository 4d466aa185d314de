"""The checkpoint's own tokenizer, processor and stop tokens, as transformers loads them.

A prompt is made by the checkpoint's own route: its tokenizer may know more than tokenizer.json
(added tokens beside the file), its template may be any of several, its stop tokens may stand in
three files. What a bundle needs of them is taken from here, and `verify` compares with the same.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from tokenizers import Tokenizer

from edgevlm.errors import ModelError
from edgevlm.libraries import first_line, silent
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.documents import check_no_pointer, processor_numbers
from edgevlm.models.family import token_ids
from edgevlm.models.stand_ins import videos, with_stand_ins

GENERATION = "generation_config.json"
_log = logging.getLogger(__name__)
# Settings that change greedy answers, with their values without effect.
PLAIN = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_eos_token_id": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
}


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """transformers' tokenizer of the checkpoint.

    Raises:
        ModelError: If it cannot be loaded, or has no form that tokenizer.json could say.
    """
    for path in sorted(checkpoint.folder.glob("*token*")):
        if path.is_file():
            check_no_pointer(path)
    try:
        with silent():
            own = own_tokenizer(checkpoint)
    except Exception as cause:  # a damaged file raises anything
        line = first_line(cause)
        raise ModelError(f"'{checkpoint.model}': the tokenizer cannot be loaded: {line}") from cause
    if not getattr(own, "is_fast", False):
        raise ModelError(
            f"'{checkpoint.model}': {type(own).__name__} has no fast form; save a fast tokenizer"
        )
    longest = own.model_max_length
    if not isinstance(longest, int | float):
        raise ModelError(
            f"'{checkpoint.model}': model_max_length is {longest!r}, expected a number; correct"
            " tokenizer_config.json"
        )
    if own.split_special_tokens:
        raise ModelError(
            f"'{checkpoint.model}': split_special_tokens makes words of the template's special"
            " tokens; take it out of tokenizer_config.json"
        )
    # A fixed length saved with the tokenizer would cut the prompts of a processor, and only those.
    for key in ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of"):
        own.init_kwargs.pop(key, None)
    return own


def load_processor(checkpoint: Checkpoint, tokenizer: Any) -> Any:
    """transformers' processor of the checkpoint, with its tokenizer and its image processor.

    Where the image processor needs a library that is missing, the family's stand-in takes its
    place: the text is the processor's own, and no pixels are made.

    Raises:
        ModelError: If there is none, or it does not fit its class.
    """
    try:
        with silent():
            original = processor_class(checkpoint)
            document, _ = original.get_processor_dict(checkpoint.folder, local_files_only=True)
            processors = {"tokenizer": tokenizer, "image_processor": _pictures(checkpoint)}
            stand_in = videos(processor_numbers(checkpoint.document, "video"))
            arguments = [processors.get(name, stand_in) for name in original.get_attributes()]
            return with_stand_ins(original).from_args_and_dict(arguments, document)
    except Exception as cause:  # a config that does not fit its class raises anything
        line = first_line(cause)
        raise ModelError(f"'{checkpoint.model}': the processor cannot be loaded: {line}") from cause


def own_tokenizer(checkpoint: Checkpoint) -> Any:
    """transformers' tokenizer as it is; a damaged file raises anything."""
    # Imported here: transformers is heavy.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        checkpoint.tokenizer_folder, local_files_only=True, trust_remote_code=False
    )


def load_images(checkpoint: Checkpoint) -> Any:
    """transformers' image processor, on PIL: it resamples like ours and is always there."""
    options = {"local_files_only": True, "trust_remote_code": False}
    image, video = (_forms(checkpoint.model_type, of) for of in ("image", "video"))
    if video and not image:  # of clips alone, which needs torchvision
        from transformers import AutoVideoProcessor

        return AutoVideoProcessor.from_pretrained(checkpoint.folder, **options)
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(checkpoint.folder, backend="pil", **options)


def missing_library(checkpoint: Checkpoint) -> str:
    """The library that the checkpoint's image processor needs and that is not here, or nothing."""
    return _missing_for(checkpoint.model_type)


@cache
def _missing_for(model_type: str) -> str:
    from transformers.utils import is_torchvision_available

    forms = _forms(model_type, "image") or _forms(model_type, "video")
    alone = "torchvision" in forms and "pil" not in forms
    return "torchvision" if alone and not is_torchvision_available() else ""


def _forms(model_type: str, of: str) -> Any:
    """The libraries that a model's own `image` or `video` processor may be of; nothing for none."""
    if of == "video":
        from transformers.models.auto.auto_mappings import VIDEO_PROCESSOR_MAPPING_NAMES

        return VIDEO_PROCESSOR_MAPPING_NAMES.get(model_type, {})
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    return IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type, {})


def _pictures(checkpoint: Checkpoint) -> Any:
    """The image processor, or what stands in for it."""
    stand_in = getattr(checkpoint.family, "processor_stand_in", None)
    if stand_in is not None and missing_library(checkpoint):
        return stand_in(checkpoint.processor())
    return load_images(checkpoint)


def takes_clips(processor: Any) -> bool:
    """Whether a processor has a video processor."""
    return "video_processor" in processor.get_attributes()


def chat_template(processor: Any) -> str | None:
    """The template that `apply_chat_template` of a processor takes where none is named.

    Raises:
        ModelError: If there are several, of which none is the default.
    """
    template = processor.chat_template or processor.tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            names = ", ".join(sorted(template))
            raise ModelError(f"the chat templates are {names}; name one of them 'default'")
        template = template["default"]
    return template


def stop_ids(checkpoint: Checkpoint, vocabulary: int) -> tuple[int, ...]:
    """Tokens that end an answer: those of transformers' `model.generation_config`.

    They stand in generation_config.json, or without it at the top of config.json, or in its text
    config.

    Args:
        checkpoint: The checkpoint.
        vocabulary: Rows of its table that are words.

    Raises:
        ModelError: If the file is not valid, or they are not numbers of words.
    """
    from transformers import GenerationConfig

    name, options = GENERATION, {}
    if not (checkpoint.folder / name).is_file():  # as `adjust_generation_fn` of transformers does
        name, options = "config.json", {"_from_model_config": True}
    checkpoint.document(name)  # refused as all documents of a checkpoint are
    try:
        with silent():
            found = GenerationConfig.from_pretrained(
                checkpoint.folder, config_file_name=name, local_files_only=True, **options
            )
        ids = token_ids(found.eos_token_id)
    except Exception as cause:  # settings that do not go together raise anything
        raise ModelError(f"'{checkpoint.model}': {name}: {first_line(cause)}") from cause
    if ids and ids[-1] >= vocabulary:
        raise ModelError(
            f"'{checkpoint.model}': {name}: eos_token_id is {ids[-1]}, expected less than the"
            f" {vocabulary} words of the model's table; correct it"
        )
    _say_what_is_not_applied(checkpoint, found)
    return ids


def _say_what_is_not_applied(checkpoint: Checkpoint, found: Any) -> None:
    """Name settings under which transformers' greedy answers differ from a bundle's."""
    given = {name: getattr(found, name, None) for name in PLAIN}
    changed = [f"{n} {v}" for n, v in given.items() if v not in (None, [], False, PLAIN[n])]
    if changed:
        _log.warning(
            "'%s': generation_config.json has %s, which transformers applies and a bundle does not",
            checkpoint.model,
            ", ".join(changed),
        )


def bundle_tokenizer(own: Any, vocabulary: int) -> Tokenizer:
    """The checkpoint's tokenizer for the parts of a prompt that are known at run time.

    It has all added tokens and neither padding nor truncation. Tokens that have no row in the
    table are left out, and where a blank goes in front of a text's first word alone (Metaspace,
    `prepend_scheme` "first") it is left to the layout, for a part does not know where it stands.

    Args:
        own: transformers' tokenizer.
        vocabulary: Rows of the table that are words.

    Raises:
        ModelError: If a word has no row, or tokenizer.json cannot say its ids.
    """
    source = own.backend_tokenizer
    tokenizer = Tokenizer(source.model)  # the same words, which are not copied
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (part := getattr(source, name)) is not None:
            setattr(tokenizer, name, part)
    if first_word_blank(own):
        tokenizer.pre_tokenizer = _without_blanks(source.pre_tokenizer)
    for number, token in sorted(source.get_added_tokens_decoder().items()):
        if number < vocabulary:
            add = tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
            add([token])
    ids = tokenizer.get_vocab()
    if max(ids.values(), default=0) >= vocabulary:
        largest = max(ids, key=lambda word: ids[word])
        raise ModelError(
            f"the tokenizer has the word {largest!r} with id {ids[largest]}, the model's table has"
            f" {vocabulary} words; resize the table"
        )
    for number, token in sorted(tokenizer.get_added_tokens_decoder().items()):
        known = own.convert_tokens_to_ids(token.content)
        if known != number:
            raise ModelError(
                f"the tokenizer has {token.content!r} with id {known}, tokenizer.json can only say"
                f" {number}: ids of added tokens must follow each other"
            )
    return tokenizer


def first_word_blank(own: Any) -> bool:
    """Whether the tokenizer puts a blank in front of the first word of a text, and of no other."""
    pre_tokenizer = own.backend_tokenizer.pre_tokenizer
    return bool(_first_word_blanks(pre_tokenizer and json.loads(pre_tokenizer.__getstate__())))


def _without_blanks(pre_tokenizer: Any) -> Any:
    """The same pre-tokenizer, which puts no blank in front of a text's first word alone."""
    document = json.loads(pre_tokenizer.__getstate__())
    for part in _first_word_blanks(document):
        part["prepend_scheme"] = "never"
    changed = copy.copy(pre_tokenizer)
    changed.__setstate__(json.dumps(document).encode())
    return changed


def _first_word_blanks(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The pre-tokenizers of a tokenizer.json that do so."""
    if not part:
        return []
    inner = [found for one in part.get("pretokenizers", ()) for found in _first_word_blanks(one)]
    return [part] if part.get("prepend_scheme") == "first" else inner


def processor_class(checkpoint: Checkpoint) -> Any:
    """The class that AutoProcessor takes: the one that a file names, or the family's.

    Raises:
        ImportError: If it cannot be without torchvision, which is missing.
    """
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    files = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
    named = (checkpoint.document(file).get("processor_class") for file in files)
    name = next((name for name in named if name), None)
    if not (isinstance(name, str) and name.endswith("Processor") and hasattr(transformers, name)):
        name = PROCESSOR_MAPPING_NAMES[checkpoint.model_type]
    found = getattr(transformers, name)
    # What transformers gives in place of a class that asks for torchvision.
    if not getattr(found, "is_dummy", False):
        return found
    try:
        with _images_on_pil(found.__module__):
            return getattr(import_module(found.__module__), name)
    except ModuleNotFoundError as cause:
        raise ImportError(
            f"{name} of transformers needs torchvision; install the one that fits torch"
        ) from cause


@contextmanager
def _images_on_pil(module: str) -> Iterator[None]:
    """Inside the body a module of a processor finds its image processor's form on PIL.

    Pixtral's asks for the form on torchvision, of which it takes one function of numbers; the two
    have the same.
    """
    package, _, kind = module.rpartition(".processing_")
    on_torch = f"{package}.image_processing_{kind}"
    sys.modules[on_torch] = import_module(f"{package}.image_processing_pil_{kind}")
    try:
        yield
    finally:
        del sys.modules[on_torch]
