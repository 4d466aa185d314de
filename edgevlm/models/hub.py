"""Checkpoints on the Hugging Face hub: small files first, then headers, weights when needed.

`fetch_small` brings configs and tokenizer, some megabytes. A plan reads the headers of the weight
files by range requests; the weights themselves come with `HubWeights.fetch`, which says their size
first. What is in the hub's cache already is not asked for again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from edgevlm.errors import ModelError
from edgevlm.libraries import first_line
from edgevlm.models.weights import DTYPES, INDEX, Header, weight_names
from edgevlm.units import megabytes

SMALL = ["*.json", "*.jinja", "tokenizer.model"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubWeights:
    """Weight files of a hub repository that are not all in the cache.

    Attributes:
        model: Its hub id.
        folder: Its snapshot in the cache, named by its commit.
    """

    model: str
    folder: Path

    @cached_property
    def listing(self) -> dict[str, int]:
        """All files of the repository with their bytes."""
        from huggingface_hub import snapshot_download

        with _explained(self.model, self.folder.name), _no_bars():
            files: Any = snapshot_download(self.model, revision=self.folder.name, dry_run=True)
        return {file.filename: file.file_size for file in files}

    @property
    def names(self) -> list[str]:
        """Weight files that the checkpoint needs.

        Raises:
            ModelError: If it has none of the kind, or one that the index names is missing.
        """
        names = weight_names(self.folder)
        lost = [name for name in names if name not in self.listing]
        if lost and INDEX in self.listing:
            raise ModelError(f"{INDEX} names '{lost[0]}', which the repository lacks")
        return [] if lost else names

    @property
    def size(self) -> str:
        """Number and size of the weight files, for messages."""
        count = len(self.names)
        total = megabytes(sum(self.listing[name] for name in self.names))
        return f"{count} file{'s' * (count != 1)} of weights, {total}"

    @cached_property
    def headers(self) -> dict[str, Header]:
        """Headers of all tensors, by range requests."""
        from huggingface_hub import HfApi

        headers: dict[str, Header] = {}
        with _explained(self.model, self.folder.name):
            for name in self.names:
                file = HfApi().parse_safetensors_file_metadata(
                    self.model, name, revision=self.folder.name
                )
                headers |= {k: Header(tuple(t.shape), t.dtype) for k, t in file.tensors.items()}
        _log.warning("'%s': planned by the headers of %s, not fetched yet", self.model, self.size)
        return headers

    def number(self, name: str) -> float:
        """A weight that is one number, by a range request.

        Raises:
            ModelError: If there is none of this name, or it is no number.
        """
        from huggingface_hub import HfApi, hf_hub_url, utils

        library: Any = utils  # its names are found when they are asked for
        with _explained(self.model, self.folder.name):
            for file in self.names:
                commit = self.folder.name
                header = HfApi().parse_safetensors_file_metadata(self.model, file, revision=commit)
                tensor = header.tensors.get(name)
                if tensor is None or tensor.parameter_count != 1:
                    continue
                url = hf_hub_url(self.model, file, revision=commit)

                def part(start: int, stop: int, url: str = url) -> bytes:
                    ranged = library.build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}"}
                    answer = library.get_session().get(url, headers=ranged, follow_redirects=True)
                    answer.raise_for_status()
                    return bytes(answer.content)

                begin = 8 + int.from_bytes(part(0, 8), "little")
                start, stop = (begin + offset for offset in tensor.data_offsets)
                data = bytearray(part(start, stop))
                return float(torch.frombuffer(data, dtype=DTYPES[tensor.dtype]).item())
        raise ModelError(f"'{self.model}' lacks the weight '{name}'")

    def fetch(self) -> None:
        """Bring the weights into the cache, after saying how large they are."""
        from huggingface_hub import snapshot_download

        names = self.names
        _log.warning("'%s': fetching %s", self.model, self.size)
        with _explained(self.model, self.folder.name):
            snapshot_download(self.model, revision=self.folder.name, allow_patterns=names)


def fetch_small(model: str, revision: str | None) -> tuple[Path, HubWeights | None]:
    """A repository's snapshot with its small files, and its weights where they are not there.

    Raises:
        ModelError: In one line what to do: log in, accept terms, correct the name or revision.
    """
    from huggingface_hub import snapshot_download

    with _explained(model, revision), _no_bars():
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=SMALL))
    here = all((folder / name).is_file() for name in weight_names(folder))
    return folder, None if here else HubWeights(model, folder)


@contextmanager
def _explained(model: str, revision: str | None) -> Iterator[None]:
    """The hub's errors as one line, by their classes."""
    # Imported here: a local folder needs no network code.
    from huggingface_hub import constants, errors

    at = f"{constants.ENDPOINT}/{model}"
    try:
        yield
    except errors.GatedRepoError as cause:
        raise ModelError(
            f"'{model}' is gated: accept its terms at {at} and log in with `hf auth login`, or set"
            " HF_TOKEN"
        ) from cause
    except errors.RevisionNotFoundError as cause:
        named = f"no revision '{revision}'" if revision else "no commit"
        raise ModelError(f"'{model}' has {named} on the hub; see {at}/commits") from cause
    except errors.DisabledRepoError as cause:
        raise ModelError(f"'{model}' was disabled by the hub; see {at}") from cause
    except errors.RepositoryNotFoundError as cause:
        raise ModelError(
            f"no model '{model}': no folder here has this name, and neither has a repository that"
            " the hub shows you; correct the name, or log in with `hf auth login` if it is private"
        ) from cause
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as cause:
        raise ModelError(
            f"'{model}' is no folder here, and is not complete in the cache of the hub, which"
            f" cannot be reached ({first_line(cause.__cause__ or cause)}); connect once, or give a"
            " folder"
        ) from cause
    except errors.HFValidationError as cause:
        raise ModelError(f"'{model}' is neither a folder nor a hub id: {cause}") from cause
    except ModelError:
        raise
    except Exception as cause:
        raise ModelError(
            f"'{model}' is not a folder and cannot be downloaded: {first_line(cause)}"
        ) from cause


@contextmanager
def _no_bars() -> Iterator[None]:
    """Small files come without progress bars."""
    from huggingface_hub import utils

    library: Any = utils  # its names are found when they are asked for
    disabled = library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            library.enable_progress_bars()
