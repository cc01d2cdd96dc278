"""
The reranker that an application holds: it validates, checks every score, and ranks.

Owns what is the same for all reranker providers. Never imports one, reads no configuration, and prints nothing.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self, final

import attrs
import numpy as np

from embedkit.errors import BackendError, ContractError, InputError
from embedkit.profile import RerankerProfile
from embedkit.protocols import RerankBackend


@attrs.frozen
class Ranked:
    """
    Say how well one document answers the query.

    Attributes:
        position: Which of the documents.

        score: Higher is better; comparable only within one call.
    """

    position: int
    score: float


@final
class Reranker:
    """
    Order documents by how well they answer a query.

    The model is loaded on first use, once, whatever the number of threads; several threads may rank at once. After a
    fork the child loads its own.

    Args:
        profile: What was asked for.

        load: Makes the backend; called on first use.
    """

    _backend: RerankBackend | None
    _n_running: int
    _state_lock: threading.Lock
    _load_lock: threading.Lock

    def __init__(self, profile: RerankerProfile, load: Callable[[], RerankBackend]) -> None:
        self.profile = profile
        self._load = load
        self._closed = False
        self._start_afresh()
        _live.add(self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "not loaded yet" if self._backend is None else "loaded"
        return f"Reranker({self.profile.name}: {self.profile.provider} {self.profile.model}, {state})"

    def rerank(self, query: str, documents: Sequence[str], k: int | None = None) -> list[Ranked]:
        """
        Order documents, best first; equal scores keep their order.

        Args:
            query: One text.

            documents: n texts.

            k: At most so many of them, at least 1; left out: all.

        Raises:
            InputError: The query or a document is blank, no string, or not to be encoded; names positions.
            BackendError: The provider failed.
        """
        if not _is_text(query):
            raise InputError("The query is blank, no string, or holds a lone surrogate.")
        if isinstance(documents, str) or not isinstance(documents, Sequence):
            raise InputError(
                f"A list of documents is due, not {type(documents).__name__}.", hint="pass a list of strings"
            )
        if wrong := [position for position, document in enumerate(documents) if not _is_text(document)]:
            raise InputError(
                f"{len(wrong)} of {len(documents)} documents cannot be ranked (positions {wrong[:10]}): "
                "they are blank, no strings, or hold lone surrogates.",
                positions=wrong,
                hint="leave them out",
            )
        if k is not None and k < 1:
            raise InputError(f"k must be at least 1, not {k}.", hint="leave k out for all documents")
        if not documents:
            return []
        with self._use_backend() as backend:
            scores = np.asarray(backend.score(query, documents))
        if scores.shape != (len(documents),) or scores.dtype.kind != "f" or not np.isfinite(scores).all():
            raise ContractError(
                f"Provider {self.profile.provider!r} gave no finite score for each of {len(documents)} documents.",
                hint="a fault of the provider: report it with `embedkit plugins --json`",
            )
        order = np.argsort(-scores, kind="stable")[:k]
        return [Ranked(int(position), float(scores[position])) for position in order]

    def close(self) -> None:
        """Give the model back, once no call is under way; later calls are refused."""
        self._closed = True
        self._unload_if_idle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _use_backend(self) -> Iterator[RerankBackend]:
        """Give the loaded backend, and keep it from being closed while it is in use."""
        with self._state_lock:
            if self._closed:
                raise BackendError(
                    f"This reranker {self.profile.name!r} was closed.", hint="get a new one: embedkit.get_reranker()"
                )
            self._n_running += 1
        try:
            with self._load_lock:
                if self._backend is None:
                    self._backend = self._load()
            yield self._backend
        finally:
            with self._state_lock:
                self._n_running -= 1
            self._unload_if_idle()

    def _unload_if_idle(self) -> None:
        with self._state_lock:
            if not self._closed or self._n_running or self._backend is None:
                return
            backend, self._backend = self._backend, None
        backend.close()

    def _start_afresh(self) -> None:
        self._backend = None
        self._n_running = 0
        self._state_lock = threading.Lock()
        self._load_lock = threading.Lock()


def _is_text(text: object) -> bool:
    if not isinstance(text, str) or not text.strip():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_live: weakref.WeakSet[Reranker] = weakref.WeakSet()


def _start_afresh_after_fork() -> None:
    for reranker in list(_live):
        _inherited.append(reranker._backend)  # noqa: SLF001  # this module's own class
        reranker._start_afresh()  # noqa: SLF001  # this module's own class


# Kept from its destructor: that would act on sockets and devices which the parent still uses.
_inherited: list[RerankBackend | None] = []

# A lock that another thread held at the fork stays locked in the child for ever; a forked pool or socket is nobody's.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh_after_fork)
