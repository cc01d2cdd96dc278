"""The plan of packs, their layout, positions and pooling."""

from __future__ import annotations

import numpy as np
import torch
from embedkit_local.packing import Group, build_positions, lay_out, plan_packs, pool
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(1, 60), max_size=80), st.integers(1, 200), st.integers(1, 20), st.integers(1, 4))
def test_packs_cover_every_text_once_within_their_bounds(lengths, max_pack_tokens, max_pack_texts, n_workers):
    """A text that is longer than a pack is a pack of its own."""
    array = np.array(lengths, dtype=np.int64)
    packs = plan_packs(array, max_pack_tokens=max_pack_tokens, max_pack_texts=max_pack_texts, n_workers=n_workers)
    assert list(range(len(lengths))) == sorted(int(position) for pack in packs for position in pack)
    for pack in packs:
        assert 1 <= len(pack) <= max_pack_texts
        assert len(pack) == 1 or array[pack].sum() <= max_pack_tokens
        assert sorted(array[pack]) == array[pack].tolist()


def test_the_longest_texts_come_first():
    """What runs out of memory does so at once."""
    packs = plan_packs(np.array([3, 50, 7, 50]), max_pack_tokens=100, max_pack_texts=10)
    assert [50, 50] == np.array([3, 50, 7, 50])[packs[0]].tolist()


def test_work_that_fits_one_pack_is_shared_by_the_workers():
    """One worker of two would take as long as a whole round."""
    assert 2 == len(plan_packs(np.full(100, 10), max_pack_tokens=2048, max_pack_texts=256, n_workers=2))
    assert 1 == len(plan_packs(np.full(100, 10), max_pack_tokens=2048, max_pack_texts=256, n_workers=1))


def test_equal_lengths_side_by_side_are_one_group():
    """Groups follow each other without a gap."""
    assert (Group(0, 2, 3), Group(6, 1, 4), Group(10, 1, 3)) == lay_out([3, 3, 4, 3])
    assert 10 == Group(6, 1, 4).stop


def test_positions_begin_anew_with_each_text():
    """With an offset, tokens that equal the padding id are not counted."""
    ids = torch.tensor([5, 6, 7, 8, 5, 1, 6])
    layout = lay_out([2, 2, 3])
    assert [0, 1, 0, 1, 0, 1, 2] == build_positions(ids, layout).tolist()
    assert [2, 3, 2, 3, 2, 1, 3] == build_positions(ids, layout, offset=2).tolist()


def test_pooling_reads_only_a_texts_own_tokens():
    """Each mode on two texts of different lengths."""
    hidden = torch.tensor([[1.0], [3.0], [10.0], [-20.0], [40.0]])
    layout = lay_out([2, 3])
    expected = {
        "cls": [1.0, 10.0],
        "lasttoken": [3.0, 40.0],
        "max": [3.0, 40.0],
        "mean": [2.0, 10.0],
        "mean_sqrt_len_tokens": [4 / 2**0.5, 30 / 3**0.5],
        "weightedmean": [7 / 3, 90 / 6],
    }
    for mode, values in expected.items():
        assert np.allclose(values, pool(hidden, layout, (mode,)).flatten().numpy())
    assert (2, 2) == tuple(pool(hidden.bfloat16(), layout, ("mean", "max")).shape)
    assert torch.float32 == pool(hidden.bfloat16(), layout, ("mean",)).dtype
