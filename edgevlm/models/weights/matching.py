"""The tensors of a checkpoint's files against the weights of its model, before one is read.

transformers loads a state of stand-ins: each has the shape of its tensor, one number in memory, and
the number says which tensor it stands for. So all of transformers' renaming applies, and the
model tells which tensor each weight would get, which it lacks and which nothing takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgevlm.errors import ModelError
from edgevlm.models.weights.headers import Header

# What wrappers put into names: torch.compile, DataParallel, FSDP, activation checkpointing, PEFT.
WRAPPERS = (
    "_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.",
    "base_model.model.",
)  # fmt: skip


@dataclass(frozen=True)
class Match:
    """Which tensor of the files each weight of the model gets.

    Attributes:
        model: The model, with stand-ins for its weights.
        headers: The tensors.
        sources: Name of a weight -> name of its tensor, for all weights that a bundle may use.
        statistics: The same of buffers that are saved with the weights (batch norm).
        unused: Tensors that the model has no place for.
        tied: Whether the output head is the embedding table.
        both: The tensors of table and head, where the config ties them and the files have both.
    """

    model: nn.Module
    headers: Mapping[str, Header]
    sources: Mapping[str, str]
    statistics: Mapping[str, str]
    unused: tuple[str, ...]
    tied: bool
    both: tuple[str, str] | None


def match(
    kind: type[nn.Module], config: Any, headers: Mapping[str, Header], left_out: tuple[str, ...]
) -> Match:
    """Load stand-ins of the tensors into a model.

    Args:
        kind: transformers' class of the model.
        config: Its config.
        headers: All tensors of the files.
        left_out: Prefixes of weights that no bundle of the family uses.

    Raises:
        ModelError: If weights are missing or of other shapes, or tensors change what weights mean.
    """
    model, report = _loaded(kind, config, headers)
    _check_shapes(report["mismatched_keys"], left_out)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(left_out))
    unused = tuple(sorted(report["unexpected_keys"]))
    if missing:
        lacks = partial(_missing, kind, config, left_out)
        raise ModelError(_explained(config, missing, unused, headers, lacks))
    _check_beside(model, unused)
    names, saved = list(headers), set(model.state_dict())
    found = {
        name: names[int(weight[(0,) * weight.ndim]) - 1]
        for name, weight in (*model.named_parameters(), *model.named_buffers())
        if name in saved
        if name not in report["missing_keys"] and not name.startswith(left_out)
    }
    sources = {name: found[name] for name, _ in model.named_parameters() if name in found}
    statistics = {name: tensor for name, tensor in found.items() if name not in sources}
    table, head = _ends(model)
    tied = head is not None and head is table
    both = None
    if head is not None and not tied and getattr(config, "tie_word_embeddings", False):
        name_of = {id(weight): sources[name] for name, weight in model.named_parameters()
                   if name in sources}  # fmt: skip
        both = name_of[id(table)], name_of[id(head)]
    return Match(model, headers, sources, statistics, unused, tied, both)


def _loaded(
    kind: Any, config: Any, headers: Mapping[str, Header]
) -> tuple[nn.Module, dict[str, Any]]:
    """The model with stand-ins for weights, and transformers' report."""
    state = {name: _stand_in(i, header) for i, (name, header) in enumerate(headers.items(), 1)}
    with _Unfilled():
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return model, report


class _Unfilled(TorchFunctionMode):
    """Weights that no tensor is for take no memory, whose names alone count.

    transformers makes them by `empty_like`, of a whole model where no name fits, and fills them
    with random numbers unless they are marked as filled.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not torch.empty_like or not isinstance(args[0], nn.Parameter):
            return func(*args, **(kwargs or {}))
        stand_in = torch.full((1,) * args[0].ndim, torch.nan).expand(args[0].shape)
        weight: Any = nn.Parameter(stand_in, requires_grad=False)
        weight._is_hf_initialized = True
        return weight


def _stand_in(number: int, header: Header) -> Tensor:
    """A tensor of this shape that holds one number: float32 has all integers to 2^24."""
    return torch.full((1,) * len(header.shape), float(number)).expand(header.shape)


def _missing(
    kind: Any, config: Any, left_out: tuple[str, ...], headers: Mapping[str, Header]
) -> list[str]:
    """Weights that a bundle may use and the files lack."""
    _, report = _loaded(kind, config, headers)
    return [name for name in report["missing_keys"] if not name.startswith(left_out)]


def _ends(model: Any) -> tuple[Tensor | None, Tensor | None]:
    """The matrices of the embedding table and of the head."""
    head = model.get_output_embeddings()
    if head is None:  # an encoder has no head, and may have no table
        return None, None
    return model.get_input_embeddings().weight, head.weight


def _check_shapes(mismatched: Any, left_out: tuple[str, ...]) -> None:
    wrong = sorted(entry for entry in mismatched if not entry[0].startswith(left_out))
    if wrong:
        name, stored, wanted = wrong[0]
        raise ModelError(
            f"weight '{name}' is {list(stored)} in the file and {list(wanted)} by config.json: the"
            f" two are not of one model ({len(wrong)} weights differ); take both from one place"
        )


def _explained(
    config: Any,
    missing: list[str],
    unused: tuple[str, ...],
    headers: Mapping[str, Header],
    lacks: Callable[[Mapping[str, Header]], list[str]],
) -> str:
    """Why weights are missing, as far as names tell."""
    text = getattr(config, "text_config", config)
    if len(missing) == 1 and "lm_head" in missing[0] and text.tie_word_embeddings:
        return (
            f"its files have no output head ('{missing[0]}'), and config.json ties it to the"
            " embedding table in text_config alone, where transformers 5 does not read it; add"
            ' "tie_word_embeddings": true at the top of config.json'
        )
    for wrapper in _wrappers(unused):
        renamed = {name.replace(wrapper, "", 1): header for name, header in headers.items()}
        if not lacks(renamed):
            return (
                f"its tensors have '{wrapper}' in their names, as models saved inside a wrapper"
                f" do ('{unused[0]}'); save the model inside it, or rename them without it"
            )
    beside = ""
    if unused:
        beside = f"; {len(unused)} tensors have other names, the first is '{unused[0]}'"
    plural = "s" * (len(missing) != 1)
    return f"it lacks {len(missing)} weight{plural}, the first is '{missing[0]}'{beside}"


def _wrappers(unused: tuple[str, ...]) -> list[str]:
    """What may stand in names too much: known wrappers, and what all names begin with."""
    columns = zip(*(name.split(".") for name in unused), strict=False)
    common = takewhile(lambda parts: len(set(parts)) == 1, columns)
    leading = list(accumulate(f"{parts[0]}." for parts in common))
    known = [wrapper for wrapper in WRAPPERS if any(wrapper in name for name in unused)]
    return [*known, *leading]


def _check_beside(model: nn.Module, unused: tuple[str, ...]) -> None:
    """Refuse tensors that stand beside the weights of a layer: they change what it computes."""
    leaves = {name for name, module in model.named_modules() if not list(module.children())}
    for name in unused:
        parts = name.split(".")
        owner = next(
            (o for o in (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
             if o in leaves and list(model.get_submodule(o).parameters())), None
        )  # fmt: skip
        if owner:
            raise ModelError(
                f"tensor '{name}' stands beside the weights of '{owner}', and the model has no"
                " place for it: a scale, an adapter or a bias that config.json does not name; take"
                " plain weights, or correct config.json"
            )
