"""
How many tokens a device computes at once, and what happens when its memory is too small for them.

Owns the halving: what did not fit is computed in smaller packs, and no later pack is as large. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch

from embedkit.errors import BackendError, EmbedkitError

DEFAULT_TOKENS: Mapping[str, int] = {"cpu": 2048, "mps": 8192, "cuda": 65_536}
"""
Tokens of a pack by kind of device: on a CPU enough to fill the matrix units and few enough for activations to stay in
the cache, on a GPU enough to hide the launching of kernels.
"""

_PHRASES = ("out of memory", "can't allocate memory", "not enough memory")

Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch says, in whichever way, that memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _PHRASES)
    )


class Budget:
    """
    Bound the tokens of a pack, and remember what did not fit.

    Threads may share it: two that halve at once come to the same bound.

    Args:
        max_tokens: To begin with.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens

    def compute(
        self,
        pack: Sequence[int],
        compute: Callable[[list[int]], Result],
        *,
        measure: Callable[[Sequence[int]], int],
    ) -> Iterator[tuple[list[int], Result | EmbedkitError]]:
        """
        Compute a pack, in halves where it does not fit.

        Args:
            pack: Positions of texts.

            compute: Runs the model on some of them.

            measure: Gives the tokens that some of them take together.

        Yields:
            Each part with its result; a text that does not fit by itself with an error.
        """
        waiting = [list(pack)]
        while waiting:
            part = waiting.pop()
            if len(part) == 1 or measure(part) <= self.max_tokens:
                try:
                    result = compute(part)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                else:
                    yield part, result
                    continue
                # Outside the except block: its traceback held the tensors that did not fit.
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                if len(part) == 1:
                    yield part, _explain(measure(part))
                    continue
                self.max_tokens = max(1, min(self.max_tokens, measure(part) // 2))
            middle = (len(part) + 1) // 2
            waiting += [part[middle:], part[:middle]]


def _explain(n_tokens: int) -> BackendError:
    return BackendError(
        f"The device has not enough memory for one text of {n_tokens} tokens.",
        hint='lower max_tokens in the profile\'s options, or set dtype = "bfloat16" or device = "cpu"',
    )
