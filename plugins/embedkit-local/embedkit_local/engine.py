"""
Texts to raw vectors without padding, as fast as it could be proved right on this machine.

Owns the run over packs: who computes them, what is asked of whom when a row comes out broken, and what a fork leaves.
Does not look for models, apply prompts, cut or scale vectors, nor take another way: `backend.py` does.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import attrs
import numpy as np
import torch

from embedkit.errors import BackendError, EmbedkitError
from embedkit.space import CANARIES
from embedkit_local.budget import Budget, is_out_of_memory
from embedkit_local.chain import Chain, UnsupportedModelError, load_chain
from embedkit_local.choosing import Way, build_network, choose_way, find_network
from embedkit_local.memory import count_parameters, find_free_memory
from embedkit_local.packing import Network, lay_out, plan_packs, pool
from embedkit_local.tokenizing import BulkTokenizer, Tokenization, load_tokenizer
from embedkit_local.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from embedkit.protocols import Role
    from embedkit_local.model_files import ModelFiles
    from embedkit_local.options import Dtype

_WIDE_TOKENS = 256
"""Up to so many tokens at once, all cores on one pack are faster than one core on each of several."""


@attrs.frozen(kw_only=True, eq=False)
class PackVectors:
    """
    Give the vectors of one pack.

    Attributes:
        positions: Which of the texts these are.

        vectors: Shape (n, d), float32, as the model gives them: row i belongs to the text at `positions[i]`.

        failures: Texts without a vector (none of `positions`), each with its error.
    """

    positions: Sequence[int]
    vectors: NDArray[np.float32]
    failures: Mapping[int, EmbedkitError] = attrs.field(factory=dict)


_Fetch = Callable[[], "NDArray[np.float32]"]


class Engine:
    """
    Turn texts into raw vectors; made by `Engine.load`, safe to share between threads.

    Attributes:
        way: How the model is run.

        dtype: The precision that it computes in.

        notes: What was not taken, and why.

        tokenizer: The engine's own tokenizer.

        dimensions: Length of each raw vector.
    """

    def __init__(
        self,
        files: ModelFiles,
        *,
        chain: Chain,
        tokenizer: BulkTokenizer,
        way: Way,
        network: Network,
        device: torch.device,
        attention: str,
        budget: Budget,
        max_pack_texts: int,
        n_workers: int | None,
    ) -> None:
        self.tokenizer = tokenizer
        self.way = way
        self.dtype: str = way.dtype
        self.notes = way.notes
        self._files = files
        self._chain = chain
        self._network = network
        self._device = device
        self._attention = attention
        self._budget = budget
        self._max_pack_texts = max_pack_texts
        # A GPU takes one pack after the other; a CPU computes one on each core.
        self._workers = Workers(n_workers or torch.get_num_threads()) if device.type == "cpu" else None
        self._exact: Network | None = network if way.dtype == "float32" else None
        self._exact_lock = threading.Lock()
        self._wide_lock = threading.Lock()
        self._device_lock = threading.Lock()
        probe = next((row[:8] for row in tokenizer.tokenize(CANARIES).rows if len(row)), np.zeros(1, np.int64))
        self.dimensions = int(self._launch(network, [probe])().shape[1])
        _ENGINES.add(self)

    @classmethod
    def load(
        cls,
        files: ModelFiles,
        *,
        device: torch.device,
        budget: Budget,
        dtype: Dtype = "auto",
        max_tokens: int | None = None,
        append: tuple[int, ...] = (),
        attention: str = "",
        max_pack_texts: int = 256,
        n_workers: int | None = None,
        trust_remote_code: bool = False,
        known: Way | None = None,
    ) -> Self:
        """
        Load a model.

        Args:
            files: Its checked files.

            device: Where it computes.

            budget: The most tokens of a pack.

            dtype: "auto" is bfloat16 where the device has it and it agrees with float32, else float32.

            max_tokens: Where a text is cut off; None: nowhere.

            append: Ids that must stand after each text.

            attention: The direction that a profile states against the model's own configuration; empty: the model's
                own.

            max_pack_texts: The most texts of a pack.

            n_workers: How many packs are computed at once on a CPU; None: as many as torch has threads.

            trust_remote_code: Whether code that the model brings is to be run: not here.

            known: What an earlier load of the same files with the same torch chose on this machine: it is not checked
                again, but chosen anew where it can no longer be built.

        Returns:
            An engine that is ready to run.

        Raises:
            UnsupportedModelError: No way of running it here was proved right.
        """
        chain = load_chain(files, device=device, trust_remote_code=trust_remote_code)
        side = str(files.tokenizer.get("truncation_side", "right"))
        tokenizer = BulkTokenizer(load_tokenizer(files), max_tokens=max_tokens, append=append, side=side)
        if tokenizer.has_segments:
            raise UnsupportedModelError("its tokenizer puts a text into several segments")
        with torch.inference_mode():
            found = None if known is None else find_network(files, known, device=device, attention=attention)
            if known is not None and found is not None:
                way, network = known, found
            else:
                way, network = choose_way(files, chain, tokenizer, dtype=dtype, device=device, attention=attention)
        tokenizer.require_rows(network.n_known)
        return cls(
            files,
            chain=chain,
            tokenizer=tokenizer,
            way=way,
            network=network,
            device=device,
            attention=attention,
            budget=budget,
            max_pack_texts=max_pack_texts,
            n_workers=n_workers,
        )

    def read(self, texts: Sequence[str]) -> Tokenization:
        """Turn texts, prompts already applied, into token ids."""
        return self.tokenizer.tokenize(texts)

    def run(self, tokens: Tokenization, positions: Sequence[int], *, role: Role = "document") -> Iterator[PackVectors]:  # noqa: ARG002  # prompts stand in the texts
        """
        Embed texts that were read; best a thousand and more at once, so that equal lengths meet.

        Args:
            tokens: What `read` gave.

            positions: Those of its texts that are wanted, none without tokens.

            role: Not used: the prompt stands in the text already.

        Yields:
            Vectors as packs finish, in any order, together covering every position once. Closing the iterator drops
            what has not begun.
        """
        wanted = np.array(positions, dtype=np.intp)
        lengths = tokens.lengths[wanted]
        is_small = len(wanted) <= self._max_pack_texts and (len(wanted) == 1 or int(lengths.sum()) <= _WIDE_TOKENS)
        # Two callers with all cores each would only get in each other's way: the second one takes a worker.
        if is_small and self._wide_lock.acquire(blocking=False):
            try:
                results = list(self._compute(tokens, [wanted[np.argsort(lengths, kind="stable")]]))
            finally:
                self._wide_lock.release()
            yield from results
            return
        packs = plan_packs(
            lengths,
            max_pack_tokens=self._budget.max_tokens,
            max_pack_texts=self._max_pack_texts,
            n_workers=1 if self._workers is None else self._workers.n_workers,
        )
        chosen = [wanted[pack] for pack in packs]
        if self._workers is None:
            yield from self._compute(tokens, chosen)
        else:
            for results in self._workers.run(lambda pack: list(self._compute(tokens, [pack])), chosen):
                yield from results

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text as if nothing were cut off; safe while other threads encode."""
        return self.tokenizer.count(texts)

    def build_transformer(self) -> Transformer:
        """Give what looks like a transformer of the library and runs this engine's own network, for proofs."""
        return Transformer(self._network, self._device)

    def close(self) -> None:
        """End the workers, after what they are computing."""
        if self._workers is not None:
            self._workers.close()

    def reset_after_fork(self) -> None:
        """Forget threads and locks that the parent had; for the child of a fork."""
        self._wide_lock = threading.Lock()
        self._exact_lock = threading.Lock()
        self._device_lock = threading.Lock()
        if self._workers is not None:
            self._workers.reset_after_fork()

    def _compute(self, tokens: Tokenization, packs: Sequence[NDArray[np.intp]]) -> Iterator[PackVectors]:
        """Compute packs in the calling thread; on a GPU the next one is begun before the results of one are awaited."""

        def launch(part: list[int]) -> _Fetch:
            return self._launch(self._network, [tokens.rows[position] for position in part])

        def measure(part: Sequence[int]) -> int:
            return int(tokens.lengths[list(part)].sum())

        waiting: deque[tuple[list[int], _Fetch]] = deque()
        for pack in packs:
            for part, started in self._budget.compute(pack.tolist(), launch, measure=measure):
                if isinstance(started, EmbedkitError):
                    nothing = np.empty((0, self.dimensions), dtype=np.float32)
                    yield PackVectors(positions=(), vectors=nothing, failures=dict.fromkeys(part, started))
                    continue
                waiting.append((part, started))
                if len(waiting) > 1:
                    yield self._collect(tokens, *waiting.popleft())
        while waiting:
            yield self._collect(tokens, *waiting.popleft())

    def _collect(self, tokens: Tokenization, positions: list[int], fetch: _Fetch) -> PackVectors:
        vectors = fetch()
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        failures: dict[int, EmbedkitError] = {}
        for index in broken:
            # Alone and in float32: neither a neighbour nor a narrow exponent can be the reason then.
            vectors[index] = self._compute_exactly(tokens.rows[positions[index]])
            if not np.isfinite(vectors[index]).all():
                failures[positions[index]] = BackendError(
                    f"The vector of the text {tokens.texts[positions[index]][:40]!r} is not finite.",
                    hint="leave the text out; if other texts fail too, the weights are damaged: fetch the model again",
                )
        if not failures:
            return PackVectors(positions=positions, vectors=vectors)
        usable = [index for index, position in enumerate(positions) if position not in failures]
        return PackVectors(positions=[positions[index] for index in usable], vectors=vectors[usable], failures=failures)

    def _compute_exactly(self, row: NDArray[np.int64]) -> NDArray[np.float32]:
        try:
            with self._exact_lock:
                if self._exact is None:
                    if not self._has_room_for_exact():
                        return np.full(self.dimensions, np.nan, dtype=np.float32)
                    way = attrs.evolve(self.way, dtype="float32", kernel="groups")
                    with torch.inference_mode():
                        self._exact = build_network(self._files, way, device=self._device, attention=self._attention)
            vectors = self._launch(self._exact, [row])()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return np.full(self.dimensions, np.nan, dtype=np.float32)
        first: NDArray[np.float32] = vectors[0]
        return first

    def _has_room_for_exact(self) -> bool:
        free_bytes = find_free_memory() if self._device.type == "cpu" else None
        return free_bytes is None or 8 * count_parameters(self._files) < free_bytes

    def _launch(self, network: Network, rows: Sequence[NDArray[np.int64]]) -> _Fetch:
        """Begin to compute a pack, and give what waits for its raw vectors, shape (n, d)."""
        if self._workers is None:
            # One caller's pack after the other's: side by side, each would hold a whole pack's activations.
            with self._device_lock:
                return self._begin(network, rows)
        return self._begin(network, rows)

    def _begin(self, network: Network, rows: Sequence[NDArray[np.int64]]) -> _Fetch:
        with torch.inference_mode():
            layout = lay_out([len(row) for row in rows])
            hidden = network.hidden(torch.from_numpy(np.concatenate(rows)), layout)
            vectors = self._chain.finish(pool(hidden, layout, self._chain.modes))
            if vectors.device.type != "cuda":
                found: NDArray[np.float32] = vectors.cpu().numpy()
                return lambda: found
            host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
            host.copy_(vectors, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(torch.cuda.current_stream(vectors.device))

        def fetch() -> NDArray[np.float32]:
            done.synchronize()
            # A copy: pinned memory is scarce, and a caller may keep vectors for long.
            copied: NDArray[np.float32] = host.numpy().copy()
            return copied

        return fetch


@attrs.frozen(kw_only=True)
class _Output:
    last_hidden_state: torch.Tensor


class Transformer:
    """
    Look like a transformer of the library, and run a network.

    Args:
        network: What is run.

        device: Where it computes.
    """

    def __init__(self, network: Network, device: torch.device) -> None:
        self._network = network
        self._parameter = torch.zeros(1, device=device)

    def parameters(self) -> Iterator[torch.Tensor]:
        """Give something that lies where the network computes."""
        yield self._parameter

    def __call__(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> _Output:  # noqa: ANN401  # as the library hands them
        """Run texts of shape (n, longest), padded at their end, and pad what comes out likewise."""
        rows = [ids[mask.bool()].cpu() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        hidden = self._network.hidden(torch.cat(rows), lay_out([len(row) for row in rows]))
        states = torch.split(hidden, [len(row) for row in rows])
        return _Output(last_hidden_state=torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True))


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for engine in list(_ENGINES):
        engine.reset_after_fork()
    # The parent's team of threads is not there, and waiting for it would never end.
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
