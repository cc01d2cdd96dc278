"""What does not fit into a device's memory is computed in smaller packs, and nothing is lost."""

import numpy as np
import pytest
import torch
from embedkit_local.budget import Budget, is_out_of_memory

from embedkit.errors import BackendError


def test_pack_that_does_not_fit_is_halved_and_nothing_is_lost():
    """After the first that fails, later packs are no larger than what fitted. Fault 76."""
    tried = []

    def compute(part):
        tried.append(len(part))
        if len(part) > 3:
            raise torch.OutOfMemoryError
        return part

    budget = Budget(1000)
    results = [
        result
        for pack in (range(10), range(10, 20))
        for result in budget.compute(pack, compute, measure=lambda part: 7 * len(part))
    ]
    assert list(range(20)) == [position for part, _ in results for position in part]
    assert all(part == found for part, found in results)
    assert [10, 5] == [n for n in tried if n > 3]
    assert 14 <= budget.max_tokens <= 21


def test_text_that_does_not_fit_alone_is_named_and_the_others_are_computed():
    """With one text left there is nothing to halve. Fault 76."""
    lengths = [5, 900, 6, 7]

    def compute(part):
        if 1 in part:
            raise torch.OutOfMemoryError
        return part

    results = list(Budget(1000).compute(range(4), compute, measure=lambda part: sum(lengths[i] for i in part)))
    errors = {part[0]: result for part, result in results if isinstance(result, BackendError)}
    assert [1] == list(errors)
    assert "one text of 900 tokens" in str(errors[1])
    assert [0, 2, 3] == sorted(i for part, result in results if result == part for i in part)


def test_other_failures_are_passed_on():
    """Only a lack of memory is mended by smaller packs."""

    def compute(part):
        raise RuntimeError("index out of range")

    with pytest.raises(RuntimeError, match="index out of range"):
        list(Budget(10).compute(range(4), compute, measure=len))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_is_known_in_all_its_words(error):
    """Each device says it differently. Fault 76."""
    assert is_out_of_memory(error)
    assert not is_out_of_memory(ValueError("out of memory"))


def test_an_engine_recovers_from_a_lack_of_memory(make_bert, load, embed, texts):
    """The vectors are those of an engine that never ran out, and the next call tries no larger pack. Fault 76."""
    backend = load(make_bert(), options={"max_batch_tokens": 2000})
    expected = embed(backend, texts)
    engine = backend._engine
    launch, tried = engine._launch, []

    def launch_with_little_memory(network, rows):
        tried.append(sum(map(len, rows)))
        if tried[-1] > 300:
            raise torch.OutOfMemoryError
        return launch(network, rows)

    engine._launch = launch_with_little_memory
    np.testing.assert_allclose(embed(backend, texts), expected, atol=1e-5)
    assert max(tried) > 300
    tried.clear()
    np.testing.assert_allclose(embed(backend, texts), expected, atol=1e-5)
    assert max(tried) <= 300
