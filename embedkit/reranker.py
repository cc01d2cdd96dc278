"""
The reranker that an application holds: it validates, checks every score, and ranks.

Owns what is the same for all reranker providers. Never imports one, reads no configuration, and prints nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
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

    The model is loaded on first use, once, whatever the number of threads.

    Args:
        profile: What was asked for.

        load: Makes the backend; called on first use.
    """

    def __init__(self, profile: RerankerProfile, load: Callable[[], RerankBackend]) -> None:
        self.profile = profile
        self._load = load
        self._backend: RerankBackend | None = None
        self._closed = False
        self._lock = threading.Lock()

    def rerank(self, query: str, documents: Sequence[str], k: int | None = None) -> list[Ranked]:
        """
        Order documents, best first; equal scores keep their order.

        Args:
            query: One text.

            documents: n texts.

            k: At most so many; left out: all.

        Raises:
            InputError: The query or a document is blank or no string; names positions.
            BackendError: The provider failed.
        """
        wrong = [position for position, text in enumerate(documents) if not isinstance(text, str) or not text.strip()]
        if isinstance(documents, str) or wrong or not isinstance(query, str) or not query.strip():
            where = f"documents at positions {wrong[:10]} are" if wrong else "the query is, or the list of documents is,"
            raise InputError(f"Only texts can be ranked: {where} blank or no string.", positions=wrong)
        if not documents:
            return []
        scores = self._get_backend().score(query, documents)
        if not isinstance(scores, np.ndarray) or scores.shape != (len(documents),) or not np.isfinite(scores).all():
            raise ContractError(
                f"Provider {self.profile.provider!r} gave no finite score for each of {len(documents)} documents.",
                hint="a fault of the provider: report it with `embedkit plugins --json`",
            )
        order = np.argsort(-scores, kind="stable")[:k]
        return [Ranked(int(position), float(scores[position])) for position in order]

    def close(self) -> None:
        """Give the model back; later calls are refused."""
        with self._lock:
            backend, self._backend, self._closed = self._backend, None, True
        if backend is not None:
            backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _get_backend(self) -> RerankBackend:
        with self._lock:
            if self._closed:
                raise BackendError(f"This reranker {self.profile.name!r} was closed.")
            if self._backend is None:
                self._backend = self._load()
            return self._backend
