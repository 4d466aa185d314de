"""Checkpoints on the Hugging Face hub: small files first, then headers, weights when needed.

`fetch_small` brings configs and tokenizer, some megabytes. A plan reads the headers of the weight
files by range requests; the weights themselves come with `HubWeights.fetch`, which says their size
first. What is in the hub's cache already is not asked for again. A server that sends a whole file
where a part is asked for is left before the file comes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgevlm.errors import ModelError
from edgevlm.libraries import first_line
from edgevlm.models.weights.headers import INDEX, Header, read_header, weight_names
from edgevlm.models.weights.sources import (
    SAMPLE,
    FolderWeights,
    NoWeights,
    Weights,
    same_numbers,
)
from edgevlm.units import megabytes

SMALL = ["*.json", "*.jinja", "tokenizer.model"]
# Of other exports in the same repository, and what tokenizer.json says again.
NOT_READ = ["*/*.json", "vocab.json"]
AT_ONCE = 8  # files whose headers are asked for together
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
        """Weight files that the checkpoint needs; none where the repository has none.

        Raises:
            ModelError: If one that the index names is missing.
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
    def ranged(self) -> bool:
        """Whether the server sends parts of files."""
        with _explained(self.model, self.folder.name):
            return self._part(self.names[0], 0, 8) is not None

    @cached_property
    def headers(self) -> Mapping[str, Header]:
        """Headers of all tensors, by range requests.

        Raises:
            ModelError: If a file is damaged, or the server sends no parts of files.
        """

        def of_file(name: str) -> dict[str, Header]:
            return read_header(name, self.listing[name], lambda *span: self._read(name, *span))

        with _explained(self.model, self.folder.name):
            names, headers = self.names, dict[str, Header]()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for found in pool.map(of_file, names):
                    headers |= found
        _log.warning("'%s': planned by the headers of %s, not fetched yet", self.model, self.size)
        return headers

    def read(self, header: Header, start: int, stop: int) -> bytearray:
        """Bytes of a tensor, by a range request."""
        with _explained(self.model, self.folder.name):
            return self._read(header.file, header.start + start, header.start + stop)

    def same(self, first: str, second: str) -> bool:
        """Whether samples of two tensors have the same numbers."""
        return same_numbers(self, first, second, SAMPLE)

    def fetch(self) -> FolderWeights:
        """Bring the weights into the cache, after saying how large they are."""
        from huggingface_hub import snapshot_download

        names = self.names
        _log.warning("'%s': fetching %s", self.model, self.size)
        with _explained(self.model, self.folder.name):
            snapshot_download(self.model, revision=self.folder.name, allow_patterns=names)
        return FolderWeights(self.folder, whole=True)

    def _read(self, name: str, start: int, stop: int) -> bytearray:
        """Bytes of a file from an offset up to another.

        Raises:
            ModelError: If the server sends the whole file, or too little of it.
        """
        data = self._part(name, start, stop)
        if data is None:
            raise ModelError(
                f"'{self.model}': its server sends no parts of files, so a plan would have to"
                f" download {self.size}; `edgevlm export` downloads them, and"
                f" `hf download {self.model}` does, and a plan reads them from the cache"
            )
        if len(data) < stop - start:
            raise ModelError(
                f"'{self.model}': its server sent {len(data):,} of {stop - start:,} bytes of"
                f" {name}; try again"
            )
        return data

    def _part(self, name: str, start: int, stop: int) -> bytearray | None:
        """The same; None where the server begins to send the whole file."""
        from huggingface_hub import constants, hf_hub_url, utils

        library: Any = utils  # its names are found when they are asked for
        if stop <= start:
            return bytearray()
        url = hf_hub_url(self.model, name, revision=self.folder.name)
        headers = library.build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}"}
        timeout, data = constants.HF_HUB_DOWNLOAD_TIMEOUT, bytearray()
        with library.http_stream_backoff(
            "GET", url, headers=headers, timeout=timeout, follow_redirects=True
        ) as answer:
            library.hf_raise_for_status(answer)
            if answer.status_code != 206:
                return None
            for chunk in answer.iter_bytes():
                data += chunk
                if len(data) >= stop - start:
                    break
        return data[: stop - start]


def fetch_small(model: str, revision: str | None) -> tuple[Path, Weights, list[str]]:
    """A repository's snapshot with its small files, its weights, and the names of all its files.

    Raises:
        ModelError: In one line what to do: log in, accept terms, correct the name or revision.
    """
    from huggingface_hub import constants, snapshot_download

    with _explained(model, revision), _no_bars():
        folder = Path(
            snapshot_download(
                model, revision=revision, allow_patterns=SMALL, ignore_patterns=NOT_READ
            )
        )
    here = [path.name for path in folder.iterdir()]
    try:
        names = weight_names(folder)
    except ModelError as cause:
        raise ModelError(f"'{model}': {cause}") from cause
    if all((folder / name).is_file() for name in names):
        return folder, FolderWeights(folder), here
    if constants.HF_HUB_OFFLINE:
        line = "its weights are not in the cache of the hub, and HF_HUB_OFFLINE is set; unset it"
        return folder, NoWeights("in the cache of the hub", line), here
    weights = HubWeights(model, folder)
    return folder, weights, [*here, *weights.listing]


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
