"""
The embedder that an application holds: it validates, dedupes, windows, puts prompts before texts, checks every result.

Owns what is the same for all providers. Never imports one, reads no configuration, and prints nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing, contextmanager, suppress
from typing import Literal, Self, TypeVar, final, get_args

import numpy as np

from embedkit.errors import (
    BackendError,
    ContractError,
    EmbedkitError,
    IncompleteError,
    InputError,
    ModelLoadError,
    SettingError,
)
from embedkit.profile import Profile
from embedkit.protocols import Backend, Batch, Role
from embedkit.space import Space
from embedkit.vectors import Embeddings, Report, Vectors, check_vectors

OnError = Literal["raise", "skip"]

T = TypeVar("T")

_logger = logging.getLogger("embedkit")


@final
class Embedder:
    """
    Turn texts into vectors with one profile's model.

    The model is loaded on first use, once, whatever the number of threads; every method may be called from several
    threads at once. After a fork the child loads its own: locks, sockets and thread pools of the parent are of no use
    to it.

    Args:
        profile: What was asked for.

        load: Makes the backend; called on first use.
    """

    def __init__(self, profile: Profile, load: Callable[[], Backend]) -> None:
        self.profile = profile
        self._load = load
        self._backend: Backend | None = None
        self._closed = False
        self._n_holds = 1
        self._n_running = 0
        self._state_lock = threading.Lock()
        self._load_lock = threading.Lock()
        _live.add(self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "loaded" if self._backend is not None else "not loaded yet"
        return f"Embedder({self.profile.name}: {self.profile.provider} {self.profile.model}, {state})"

    @property
    def space(self) -> Space:
        """The space of every vector that this embedder makes; loads the model on first use."""
        with self._use_backend() as backend:
            return backend.space

    def load(self) -> Self:
        """
        Load the model now instead of on first use.

        Raises:
            BackendError: It cannot be loaded.
        """
        with self._use_backend():
            return self

    def embed_documents(self, documents: Iterable[str], *, on_error: OnError = "raise") -> Embeddings:
        """
        Embed documents; the same text is worked on once.

        Args:
            documents: n texts, embedded as they are given.

            on_error: "raise", or "skip" to leave out the texts that cannot be embedded: `report.failures` names them,
                and `positions` says which input each row belongs to.

        Returns:
            Shape (n, d), in the order of the input.

        Raises:
            InputError: Texts are no strings, blank, or hold lone surrogates; all their positions are named before any
                work is done.
            IncompleteError: The provider failed on the way; `.done` holds what was embedded, `.missing` the positions
                of the rest.
            BackendError: The provider failed before anything was embedded.
        """
        return self._embed(_list_texts(documents), "document", on_error=on_error)

    def embed_queries(self, queries: Iterable[str]) -> Embeddings:
        """
        Embed queries, with the prompt that the model wants before a query.

        Args:
            queries: n texts.

        Returns:
            Shape (n, d), in the order of the input.

        Raises:
            InputError, IncompleteError, BackendError: As for `embed_documents`.
        """
        return self._embed(_list_texts(queries), "query")

    def embed_query(self, query: str) -> Vectors:
        """
        Embed one query.

        Args:
            query: One text.

        Returns:
            Shape (d,), float32.

        Raises:
            InputError, BackendError: As for `embed_documents`.
        """
        if not isinstance(query, str):
            raise InputError(
                f"A query is one string, not {type(query).__name__}.", hint="for several: embed_queries([…])"
            )
        vector: Vectors = self._embed([query], "query").vectors[0]
        return vector

    def stream_documents(
        self,
        documents: Iterable[str],
        *,
        on_error: OnError = "raise",
        start: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> Iterator[Embeddings]:
        """
        Embed documents window by window, in bounded memory; the input may be endless.

        Args:
            documents: Texts; read only as far as the next window.

            on_error: As for `embed_documents`.

            start: What errors call the position of the first one; more than 0 where earlier ones are done already.

            progress: Called after each batch of a window with the number of texts that are done by it.

        Yields:
            Shape (n, d), in the order of the input; positions in each report count from the part's own start
            (`vectors.join` counts on).

        Raises:
            InputError, IncompleteError, BackendError: As for `embed_documents`, for the window that was read; their
                positions count from the start of the whole input, and whatever was yielded before stays good.
        """
        _require_many(documents)
        _require_on_error(on_error)
        return self._stream(iter(documents), "document", on_error, start, progress)

    def stream_queries(
        self,
        queries: Iterable[str],
        *,
        on_error: OnError = "raise",
        start: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> Iterator[Embeddings]:
        """Embed queries window by window, in bounded memory; see `stream_documents`."""
        _require_many(queries)
        _require_on_error(on_error)
        return self._stream(iter(queries), "query", on_error, start, progress)

    def count_tokens(self, texts: Iterable[str], *, truncated: bool = False) -> list[int]:
        """
        Count the tokens of each text, special tokens included and no prompt added.

        Args:
            texts: n texts.

            truncated: Whether to count only what the model reads, up to `space.max_tokens`; else nothing is cut off.

        Returns:
            n counts, in the order of the input.

        Raises:
            InputError: As for `embed_documents`.
            BackendError: The provider cannot tell.
        """
        listed = _list_texts(texts)
        _require_valid(_find_faults(listed), len(listed))
        with self._use_backend() as backend:
            counts = backend.count_tokens(listed) if listed else []
            limit = backend.space.max_tokens
        if counts is None:
            raise BackendError(f"{self._source} cannot count tokens.")
        if len(counts) != len(listed):
            raise ContractError(f"{self._source} gave {len(counts)} token counts for {len(listed)} texts.")
        return [min(count, limit) for count in counts] if truncated and limit is not None else counts

    async def aembed_documents(self, documents: Iterable[str], *, on_error: OnError = "raise") -> Embeddings:
        """
        Embed documents without blocking the event loop; see `embed_documents`.

        Cancelling stops the work after the batch under way.
        """
        listed = _list_texts(documents)
        return await _run_in_thread(lambda stop: self._embed(listed, "document", on_error=on_error, stop=stop))

    async def aembed_queries(self, queries: Iterable[str]) -> Embeddings:
        """Embed queries without blocking the event loop; see `embed_queries`."""
        listed = _list_texts(queries)
        return await _run_in_thread(lambda stop: self._embed(listed, "query", stop=stop))

    async def aembed_query(self, query: str) -> Vectors:
        """Embed one query without blocking the event loop; see `embed_query`."""
        return await _run_in_thread(lambda _: self.embed_query(query))

    @property
    def closed(self) -> bool:
        """Whether the last holder closed it."""
        return self._closed

    def hold(self) -> bool:
        """Add a holder, who will call `close` in turn; false when the embedder is closed already."""
        with self._state_lock:
            self._n_holds += not self._closed
            return not self._closed

    def close(self) -> None:
        """
        Release this holder's hold.

        With the last one the model is given back, once no call is under way; later calls are refused.
        """
        with self._state_lock:
            if self._closed:
                return
            self._n_holds -= 1
            self._closed = self._n_holds == 0
        self._unload_if_idle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _source(self) -> str:
        return f"Provider {self.profile.provider!r} with model {self.profile.model!r}"

    @contextmanager
    def _use_backend(self) -> Iterator[Backend]:
        """Give the loaded backend, and keep it from being closed while it is in use."""
        with self._state_lock:
            if self._closed:
                raise BackendError(
                    f"This embedder of profile {self.profile.name!r} was closed.",
                    hint="get a new one: embedkit.get_embedder()",
                )
            self._n_running += 1
        try:
            yield self._load_once() if self._backend is None else self._backend
        finally:
            with self._state_lock:
                self._n_running -= 1
            self._unload_if_idle()

    def _load_once(self) -> Backend:
        with self._load_lock:
            if self._backend is None:
                try:
                    backend = self._load()
                except (ModelLoadError, SettingError) as error:
                    # A provider knows what is wrong with the model, and only the profile which line named it.
                    error.origin = error.origin or str(self.profile.origins.get("model", ""))
                    raise
                try:
                    self._check_backend(backend)
                except EmbedkitError:
                    with suppress(AttributeError):  # what is no backend need not have it
                        backend.close()
                    raise
                self._backend = backend
            return self._backend

    def _unload_if_idle(self) -> None:
        with self._state_lock:
            if not self._closed or self._n_running or self._backend is None:
                return
            backend, self._backend = self._backend, None
        backend.close()

    def _forget_after_fork(self) -> None:
        if self._backend is not None:
            # Kept from its destructor: that would act on sockets and devices which the parent still uses.
            _inherited.append(self._backend)
        self._backend = None
        self._n_running = 0
        self._state_lock = threading.Lock()
        self._load_lock = threading.Lock()

    def _check_backend(self, backend: Backend) -> None:
        """Hold a freshly loaded backend to its protocol and to what the profile says."""
        space = getattr(backend, "space", None)
        window = getattr(backend, "window", None)
        if not isinstance(space, Space) or not isinstance(window, int) or window < 1:
            raise ContractError(
                f"{self._source} made {type(backend).__name__} with space {space!r} and window {window!r}: no backend.",
                hint="a fault of the provider: its `load` must return what embedkit.protocols.Backend describes",
            )
        wanted = self.profile.dimensions
        if wanted is not None and space.dimensions != wanted:
            raise ContractError(
                f"{self._source} makes vectors of {space.dimensions} dimensions, and the profile says {wanted}.",
                origin=str(self.profile.origins.get("dimensions", "")),
                hint=f"set dimensions = {space.dimensions}, or leave the key out",
            )
        if space.document_prompt != self._get_prompt(backend, "document"):
            raise ContractError(
                f"{self._source} names another document prompt in its space than is used: {space.document_prompt!r}.",
                hint="a fault of the provider: its space must name the profile's prompt, or else its own",
            )
        if self.profile.query_prompt is None and not backend.prompts.get("query"):
            origin = self.profile.origins.get("query_prompt")
            if origin is not None and origin.note:
                _logger.warning("%s brings no query prompt of its own; %s", self.profile.model, origin.note)

    def _get_prompt(self, backend: Backend, role: Role) -> str:
        declared = self.profile.query_prompt if role == "query" else self.profile.document_prompt
        return backend.prompts.get(role, "") if declared is None else declared

    def _stream(
        self,
        texts: Iterator[str],
        role: Role,
        on_error: OnError,
        offset: int,
        progress: Callable[[int], object] | None,
    ) -> Iterator[Embeddings]:
        with self._use_backend() as backend:
            window = backend.window
        while listed := list(itertools.islice(texts, window)):
            yield self._embed(listed, role, on_error=on_error, offset=offset, progress=progress)
            offset += len(listed)

    def _embed(
        self,
        texts: list[str],
        role: Role,
        *,
        on_error: OnError = "raise",
        offset: int = 0,
        stop: threading.Event | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Embeddings:
        started = time.perf_counter()
        _require_on_error(on_error)
        faults = _find_faults(texts, offset)
        if on_error == "raise":
            _require_valid(faults, len(texts), offset=offset, can_skip=role == "document")
        with self._use_backend() as backend:
            run = _Run(self._source, backend, self._get_prompt(backend, role), texts, faults)
            failure: EmbedkitError | None = None
            try:
                run.encode(role, stop, progress)
            except EmbedkitError as error:
                failure = error
            embeddings = run.gather(time.perf_counter() - started, self.profile.price_per_million_tokens)
        failures = embeddings.report.failures
        failure = failure or (next(iter(failures.values())) if failures and on_error == "raise" else None)
        if failure is None:
            return embeddings
        if not len(embeddings):
            if isinstance(failure, InputError):
                failure.positions = tuple(offset + position for position in failures)
            raise failure
        raise IncompleteError(
            f"{len(failures)} of {len(texts)} texts have no vector: {failure.problem}",
            done=embeddings,
            missing=[offset + position for position in failures],
            origin=failure.origin,
            hint=failure.hint,
        ) from failure


class _Run:
    """The work on one list of texts: what is unique in it, what has come back, what failed."""

    def __init__(
        self, source: str, backend: Backend, prompt: str, texts: list[str], faults: Mapping[int, EmbedkitError]
    ) -> None:
        self._source = source
        self._backend = backend
        self._space = backend.space
        self._prompt = prompt
        self._faults = faults
        index_by_text: dict[str, int] = {}
        # For each text its index among the unique ones; -1 for a text that is not to be embedded.
        self._indexes = np.array(
            [-1 if i in faults else index_by_text.setdefault(text, len(index_by_text)) for i, text in enumerate(texts)],
            dtype=np.intp,
        )
        self._unique = list(index_by_text)
        self._vectors: Vectors = np.zeros((len(self._unique), self._space.dimensions), np.float32)
        self._arrived = np.zeros(len(self._unique), np.bool_)
        self._truncated = np.zeros(len(self._unique), np.bool_)
        self._failures: dict[int, EmbedkitError] = {}
        self._n_tokens: int | None = 0

    def encode(self, role: Role, stop: threading.Event | None, progress: Callable[[int], object] | None) -> None:
        for start in range(0, len(self._unique), self._backend.window):
            window = self._unique[start : start + self._backend.window]
            prompted = [self._prompt + text for text in window] if self._prompt else window
            answer = self._backend.encode(prompted, role=role)
            if not isinstance(answer, Iterable):
                raise ContractError(f"{self._source} returned {type(answer).__name__} where batches are due.")
            # Closing tells the backend at once when nobody wants the rest.
            with closing(_as_generator(answer)) as batches:
                for batch in batches:
                    self._take(batch, start, len(window))
                    if progress is not None:
                        progress(len(batch.positions) + len(batch.failures))
                    if stop is not None and stop.is_set():
                        raise BackendError("The call was cancelled.")
            unanswered = [i for i in range(start, start + len(window)) if not (self._arrived[i] or i in self._failures)]
            if unanswered:
                raise ContractError(
                    f"{self._source} returned no vector for {len(unanswered)} of {len(window)} texts.",
                    hint="a fault of the provider: report it with `embedkit plugins --json`",
                )
        if progress is not None:
            progress(len(self._indexes) - len(self._unique))

    def _take(self, batch: Batch, start: int, n_window: int) -> None:
        if not isinstance(batch, Batch):
            raise ContractError(f"{self._source} returned {type(batch).__name__} where a Batch is due.")
        named = [*batch.positions, *batch.failures]
        if not all(isinstance(i, int | np.integer) and 0 <= i < n_window for i in [*named, *batch.truncated]):
            raise ContractError(f"{self._source} named positions that its {n_window} texts do not have: {named[:10]}.")
        fresh = all(not self._arrived[start + i] and start + i not in self._failures for i in named)
        if not fresh or len(set(named)) != len(named):
            raise ContractError(f"{self._source} named positions twice: {named[:10]}.")
        if not all(isinstance(error, EmbedkitError) for error in batch.failures.values()):
            raise ContractError(f"{self._source} named failures without an EmbedkitError: {batch.failures}.")
        positions = np.array(batch.positions, np.intp)
        vectors = check_vectors(batch.vectors, n=len(positions), space=self._space, source=self._source)
        self._vectors[start + positions] = vectors
        self._arrived[start + positions] = True
        self._truncated[[start + i for i in batch.truncated]] = True
        self._failures.update({start + i: error for i, error in batch.failures.items()})
        self._n_tokens = None if self._n_tokens is None or batch.n_tokens is None else self._n_tokens + batch.n_tokens

    def gather(self, seconds: float, price: float | None) -> Embeddings:
        """Put back the input's order and its duplicates; texts without a vector stand among the failures."""
        wanted = self._indexes >= 0
        have = np.zeros(len(self._indexes), np.bool_)
        have[wanted] = self._arrived[self._indexes[wanted]]
        unanswered = BackendError("The provider stopped before this text.")
        failures = {
            position: self._faults.get(position) or self._failures.get(int(self._indexes[position]), unanswered)
            for position in np.flatnonzero(~have).tolist()
        }
        truncated = np.zeros(len(self._indexes), np.bool_)
        truncated[have] = self._truncated[self._indexes[have]]
        # Without duplicates the rows are in place already: no second copy of a large result.
        in_place = have.all() and len(self._unique) == len(self._indexes)
        report = Report(
            n_texts=len(self._indexes),
            n_unique=len(self._unique),
            n_tokens=self._n_tokens,
            truncated=tuple(np.flatnonzero(truncated).tolist()),
            failures=failures,
            device=self._backend.device,
            dtype=self._backend.dtype,
            way=str(getattr(self._backend, "way", "")),
            seconds=seconds,
            cost=None if price is None or self._n_tokens is None else price * self._n_tokens / 1e6,
        )
        vectors = self._vectors if in_place else self._vectors[self._indexes[have]]
        return Embeddings(vectors, self._space, report)


def _as_generator(batches: Iterable[Batch]) -> Generator[Batch]:
    """Make any iterable of batches closable; `yield from` passes the closing on where the backend understands it."""
    yield from batches


def _require_many(texts: object) -> None:
    """Refuse what would be iterated wrongly: a string letter by letter, a set in no order, a mapping by its keys."""
    if isinstance(texts, str | bytes | bytearray | Mapping | AbstractSet) or not isinstance(texts, Iterable):
        hint = "put it in a list: [text]" if isinstance(texts, str) else "pass a list of strings"
        raise InputError(f"A list of texts is due, not {type(texts).__name__}.", hint=hint)


def _require_on_error(on_error: str) -> None:
    if on_error not in get_args(OnError):
        raise InputError(f'on_error must be "raise" or "skip", not {on_error!r}.')


def _list_texts(texts: Iterable[str]) -> list[str]:
    _require_many(texts)
    return list(texts)


def _find_faults(texts: Sequence[object], offset: int = 0) -> dict[int, EmbedkitError]:
    """Give an error for each text that cannot be embedded, by its index; its position in the input is *offset* on."""
    return {
        position: InputError(
            f"The text at position {offset + position} {fault}.", positions=[offset + position], hint=hint
        )
        for position, text in enumerate(texts)
        if (found := _find_fault(text)) is not None
        for fault, hint in [found]
    }


def _find_fault(text: object) -> tuple[str, str] | None:
    if not isinstance(text, str):
        kind = "None" if text is None else f"of type {type(text).__name__}"
        return f"is {kind} and no string", "decode it first: text.decode()" if isinstance(text, bytes) else ""
    if not text or text.isspace():
        return "is blank", "leave blank texts out; they have no meaning to embed"
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        return f"holds a lone surrogate at character {error.start}", "read the file in its right encoding"
    return None


def _require_valid(
    faults: Mapping[int, EmbedkitError], n_texts: int, *, offset: int = 0, can_skip: bool = False
) -> None:
    if not faults:
        return
    first = next(iter(faults.values()))
    positions = [offset + position for position in faults]
    if n_texts == 1:
        problem = first.problem.replace("The text at position 0", "The text")
    else:
        shown = ", ".join(map(str, positions[:10])) + (", …" if len(positions) > len(positions[:10]) else "")
        problem = f"{len(positions)} of {n_texts} texts cannot be embedded (positions {shown}). {first.problem}"
    hint = first.hint or "leave such texts out" + (', or skip them: on_error="skip"' if can_skip else "")
    raise InputError(problem, positions=positions, hint=hint)


async def _run_in_thread(work: Callable[[threading.Event], T]) -> T:
    """Run the synchronous work in a thread; when the task is cancelled, tell the work to stop."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(work, stop)
    except asyncio.CancelledError:
        stop.set()
        raise


_live: weakref.WeakSet[Embedder] = weakref.WeakSet()
_inherited: list[Backend] = []


def _forget_backends_after_fork() -> None:
    for embedder in list(_live):
        embedder._forget_after_fork()  # noqa: SLF001  # this module's own class


# A lock that another thread held at the fork stays locked in the child for ever; a forked pool or socket is nobody's.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_backends_after_fork)
