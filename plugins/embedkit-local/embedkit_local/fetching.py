"""
Bring a hub model's files onto this machine.

Owns which files are needed, and how far the download has come. Loads nothing.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.utils.tqdm import tqdm

from embedkit.errors import EmbedkitError, ModelLoadError
from embedkit.protocols import FetchProgress
from embedkit_local.foreign import is_without_answer, translate_fetch_error
from embedkit_local.model_files import (
    PACKAGE_PREFIX,
    find_hub_cache,
    find_missing,
    find_place,
    is_commit,
    is_path_like,
    name_repository,
)

if TYPE_CHECKING:
    from embedkit_local.options import LocalOptions

_logger = logging.getLogger("embedkit")

_POLL_S = 0.2
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".spm"}
_OTHER_RUNTIMES = {"onnx", "openvino", "coreml", "gguf", "flax"}


def fetch(model: str, options: LocalOptions, *, profile: str = "", poll_s: float = _POLL_S) -> Iterator[FetchProgress]:
    """
    Fetch what is missing of a hub model; a directory, a package or a whole model of a pinned commit lacks nothing.

    Args:
        model: What the profile calls the model.

        options: Its revision, and whether its code is wanted.

        profile: The profile's name, for errors.

        poll_s: Time between two reports, in seconds.

    Yields:
        How far it has come, the total from the first. Closing stops the download; what is complete stays.

    Raises:
        EmbedkitError: The hub cannot be reached or refuses, or the model cannot be one of ours.
    """
    if model.startswith(PACKAGE_PREFIX) or is_path_like(model):
        find_place(model, None, hub_cache=Path())
        return
    repository = name_repository(model)
    place = find_place(model, options.revision, hub_cache=find_hub_cache(os.environ))
    is_here = place is not None and not find_missing(place)
    if is_here and is_commit(options.revision or ""):
        return
    try:
        yield from _download(repository, options, poll_s)
    except EmbedkitError:
        raise
    except Exception as error:
        translated = translate_fetch_error(error, model, profile=profile)
        if not is_here or not is_without_answer(error):
            raise translated from error
        _logger.warning("%s is here; whether the hub has a newer one could not be asked.", model)


class _Stopped(Exception):  # noqa: N818  # nobody's fault
    """Thrown into a download that nobody waits for any more."""


def _download(repository: str, options: LocalOptions, poll_s: float) -> Iterator[FetchProgress]:
    revision = options.revision or "main"
    listing = HfApi().model_info(repository, revision=revision, files_metadata=True)
    sizes = {
        file.rfilename: file.size or 0
        for file in listing.siblings or ()
        if is_needed(file.rfilename, with_code=options.trust_remote_code)
    }
    if not any(_WEIGHTS.fullmatch(PurePosixPath(name).name) for name in sizes):
        raise ModelLoadError(
            f"The model {repository!r} has no safetensors weights on the hub at {revision}; "
            "pickle files can run code and are not loaded.",
            hint="choose a revision that brings model.safetensors",
        )
    counter = _Counter()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedkit-fetch") as worker:
        work = worker.submit(_download_files, repository, revision, sizes, counter)
        try:
            yield from _watch(work, counter, sum(sizes.values()), poll_s)
        finally:
            counter.stopped = True


def is_needed(name: str, *, with_code: bool) -> bool:
    """Whether a file of a repository is needed to embed with it on torch."""
    path = PurePosixPath(name)
    if path.parts[0] in _OTHER_RUNTIMES or name.startswith("."):
        return False
    if path.suffix == ".safetensors":
        return _WEIGHTS.fullmatch(path.name) is not None
    return path.suffix in _SUFFIXES or (with_code and path.suffix == ".py")


class _Counter:
    """How many bytes have come, for the thread that reports it."""

    def __init__(self) -> None:
        self.stopped = False
        self._n_done = 0
        self._n_current = 0
        self._lock = threading.Lock()

    @property
    def n_bytes(self) -> int:
        with self._lock:
            return self._n_done + self._n_current

    def add(self, n_bytes: int) -> None:
        if self.stopped:
            raise _Stopped
        with self._lock:
            self._n_current += n_bytes

    def finish_file(self, n_bytes: int) -> None:
        if self.stopped:
            raise _Stopped
        with self._lock:
            # A file that was here already was never counted on its way.
            self._n_done, self._n_current = self._n_done + n_bytes, 0


def _download_files(repository: str, revision: str, sizes: dict[str, int], counter: _Counter) -> None:
    class Bar(tqdm):
        """Draws nothing, and passes on how many bytes have come."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # tqdm's
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            counter.add(int(n or 0))
            return None

    # Small files first: a mistake shows before the weights come.
    for name in sorted(sizes, key=lambda name: sizes[name]):
        hf_hub_download(repository, name, revision=revision, tqdm_class=Bar)
        counter.finish_file(sizes[name])


def _watch(work: Future[None], counter: _Counter, total_bytes: int, poll_s: float) -> Iterator[FetchProgress]:
    yield FetchProgress(n_bytes=0, total_bytes=total_bytes)
    while not work.done():
        wait_for([work], timeout=poll_s)
        yield FetchProgress(n_bytes=min(counter.n_bytes, total_bytes), total_bytes=total_bytes)
    work.result()
    yield FetchProgress(n_bytes=total_bytes, total_bytes=total_bytes)
