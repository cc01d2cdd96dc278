"""
Texts of many lengths in one computation without a single padding token.

Owns the plan (which texts go together), the layout of a pack (groups of equal length, one after the other in one flat
sequence), its way to the device, and pooling on it. Knows no model and no tokenizer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import attrs
import numpy as np
import torch
from torch import Tensor

from embedkit_local.attention import Texts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedkit_local.chain import PoolingMode

_Pool = Callable[[Tensor], Tensor]


@attrs.frozen
class Group:
    """
    Name a run of texts of one length within a flat sequence.

    Attributes:
        start: The first token's place in the sequence.

        n_texts: How many texts.

        length: Tokens of each.
    """

    start: int
    n_texts: int
    length: int

    @property
    def stop(self) -> int:
        """The place after the last token."""
        return self.start + self.n_texts * self.length


class Network(Protocol):
    """Turn a pack's tokens into hidden states; any number of threads may do so at once."""

    @property
    def n_known(self) -> int:
        """How many different tokens the weights know."""
        ...

    def hidden(self, ids: Tensor, layout: Sequence[Group]) -> Tensor:
        """
        Run the model.

        Args:
            ids: Shape (n_tokens,), int64, on the CPU: the texts one after the other, as *layout* says.

            layout: Groups that cover *ids* without a gap.

        Returns:
            Shape (n_tokens, n_hidden): the last hidden state of each token, in the network's own precision, where the
            network is.
        """
        ...


def plan_packs(
    lengths: NDArray[np.int64], *, max_pack_tokens: int, max_pack_texts: int, n_workers: int = 1
) -> list[NDArray[np.intp]]:
    """
    Say which texts are computed together.

    Args:
        lengths: Shape (n,): tokens of each text.

        max_pack_tokens: The most tokens of a pack; a single longer text is a pack of its own.

        max_pack_texts: The most texts of a pack.

        n_workers: How many packs are computed at once; their number is made a multiple of it where that evens out the
        work.

    Returns:
        The positions of each pack's texts, by rising length; together every position once. Longest texts come first,
        so that what runs out of memory does so at once.
    """
    order = np.argsort(lengths, kind="stable")
    total = int(lengths.sum())
    n_rounds = -(-total // (n_workers * max_pack_tokens))
    # A last pack that occupies one worker of several costs as much as a whole round.
    budget = min(max_pack_tokens, -(-total // (n_workers * n_rounds))) if n_rounds else max_pack_tokens
    packs: list[NDArray[np.intp]] = []
    stop = len(order)
    while stop > 0:
        start, n_tokens = stop, 0
        while start > 0 and stop - start < max_pack_texts:
            longer = n_tokens + int(lengths[order[start - 1]])
            if start < stop and (longer > max_pack_tokens or n_tokens >= budget):
                break
            n_tokens = longer
            start -= 1
        packs.append(order[start:stop])
        stop = start
    return packs


def lay_out(lengths: Sequence[int]) -> tuple[Group, ...]:
    """
    Lay texts one after the other.

    Args:
        lengths: Tokens of each text, none of them 0; equal ones side by side where one wants few groups.

    Returns:
        One group for each run of equal lengths.
    """
    groups: list[Group] = []
    start = 0
    for length in lengths:
        if groups and groups[-1].length == length:
            last = groups[-1]
            groups[-1] = Group(last.start, last.n_texts + 1, length)
        else:
            groups.append(Group(start, 1, length))
        start += length
    return tuple(groups)


def send(rows: Tensor, device: torch.device) -> Tensor:
    """Give *rows* on a device; to a GPU they travel beside what it computes."""
    if device.type == "cuda":
        return rows.pin_memory().to(device, non_blocking=True)
    return rows.to(device)


def build_texts(layout: Sequence[Group], device: torch.device) -> Texts:
    """Say where each text of a pack lies, on the device."""
    lengths = [group.length for group in layout for _ in range(group.n_texts)]
    offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return Texts(layout=layout, offsets=send(offsets, device), longest=max(lengths))


def build_positions(ids: Tensor, layout: Sequence[Group], *, offset: int = 0) -> Tensor:
    """
    Number the tokens of each text.

    Args:
        ids: Shape (n_tokens,).

        layout: Groups that cover *ids*.

        offset: 0, or what models of RoBERTa's family start from: their padding id plus one. Those leave out tokens
            that equal the padding id, also where they stand in a text, and so do we.

    Returns:
        Shape (n_tokens,), int64.
    """
    positions = torch.cat([torch.arange(group.length, device=ids.device).repeat(group.n_texts) for group in layout])
    if not offset:
        return positions
    counted = ids != offset - 1
    if bool(counted.all()):
        return positions + offset
    blocks = [counted[group.start : group.stop].view(group.n_texts, group.length).long() for group in layout]
    return torch.cat([(block.cumsum(dim=1) * block).flatten() for block in blocks]) + (offset - 1)


def _pool_mean(block: Tensor) -> Tensor:
    return block.sum(dim=1, dtype=torch.float32) / block.shape[1]


def _pool_mean_sqrt(block: Tensor) -> Tensor:
    return block.sum(dim=1, dtype=torch.float32) / math.sqrt(block.shape[1])


def _pool_weighted(block: Tensor) -> Tensor:
    weights = torch.arange(1, block.shape[1] + 1, dtype=torch.float32, device=block.device)
    return torch.einsum("nld,l->nd", block.float(), weights / weights.sum())


_POOLS: dict[PoolingMode, _Pool] = {
    "cls": lambda block: block[:, 0].float(),
    "lasttoken": lambda block: block[:, -1].float(),
    "max": lambda block: block.amax(dim=1).float(),
    "mean": _pool_mean,
    "mean_sqrt_len_tokens": _pool_mean_sqrt,
    "weightedmean": _pool_weighted,
}


def pool(hidden: Tensor, layout: Sequence[Group], modes: Sequence[PoolingMode]) -> Tensor:
    """
    Make one vector of each text's hidden states.

    Args:
        hidden: Shape (n_tokens, n_hidden).

        layout: Groups that cover *hidden*.

        modes: The results of several are joined.

    Returns:
        Shape (n_texts, n_hidden * len(modes)), float32, whatever *hidden* is in.
    """
    rows = []
    for group in layout:
        block = hidden[group.start : group.stop].view(group.n_texts, group.length, -1)
        rows.append(torch.cat([_POOLS[mode](block) for mode in modes], dim=-1))
    return torch.cat(rows)
