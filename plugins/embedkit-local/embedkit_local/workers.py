"""
The threads that compute packs side by side, each with one intra-op thread of its own.

Owns those threads and their thread settings. The process's own settings are found as they were: whoever computes with
torch beside us keeps every core.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


_SETTING = threading.Lock()
if hasattr(os, "register_at_fork"):
    # Held over a fork: a child must not inherit it from a thread that it does not have.
    os.register_at_fork(before=_SETTING.acquire, after_in_parent=_SETTING.release, after_in_child=_SETTING.release)


def set_thread_to_one_core() -> None:
    """Let torch compute on one core in the calling thread, and as before in every other."""
    with _SETTING:
        # The first question makes torch give this thread the process's number; asked later, it would undo what follows.
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        # The number is kept for threads to come, too; another thread sets it back there without touching ours.
        restorer = threading.Thread(target=torch.set_num_threads, args=(n_threads,))
        restorer.start()
        restorer.join()


class Workers:
    """
    Run packs on several threads of one core each.

    Args:
        n_workers: How many; at least 1.
    """

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def _get_pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(
                    self.n_workers, thread_name_prefix="embedkit-pack", initializer=set_thread_to_one_core
                )
            return self._pool

    def run(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """
        Apply *function* to each item.

        Args:
            function: Called in a worker's thread, under torch's inference mode or not as it likes.

            items: Taken as workers come free, one more than there are workers at most.

        Yields:
            Results as they finish, in any order. Closing the iterator drops what has not begun and waits for what has.

        Raises:
            BaseException: What *function* raised, at the place of its result.
        """
        pool = self._get_pool()
        waiting = deque(items)
        running: set[Future[_Result]] = set()
        try:
            while waiting or running:
                while waiting and len(running) <= self.n_workers:
                    running.add(pool.submit(function, waiting.popleft()))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                while done:
                    yield done.pop().result()
        finally:
            for future in running:
                future.cancel()
            wait(running)

    def reset_after_fork(self) -> None:
        """Forget threads and locks that the parent had; for the child of a fork."""
        self._lock = threading.Lock()
        self._pool = None

    def close(self) -> None:
        """End the threads, after what they are computing."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
