"""Kernels for variable lengths are given what they need; on a GPU they agree with attention by groups."""

import itertools

import numpy as np
import pytest
import torch
from embedkit_local.attention import attend_by_groups, build_flash_kernel, build_torch_kernel, list_kernels, load_kernel
from embedkit_local.native import load_bert
from embedkit_local.packing import build_texts, lay_out

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use")


def attend(query, key, value, offsets, *, causal, scale=None):
    """Attend within each text, one after the other: what every kernel computes."""
    bounds = offsets.tolist()
    parts = []
    for start, stop in itertools.pairwise(bounds):
        states = [part[start:stop].transpose(0, 1) for part in (query, key, value)]
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                *states, is_causal=causal, scale=scale, enable_gqa=True
            ).transpose(0, 1)
        )
    return torch.cat(parts)


def newer_torch(query, key, value, cu_seq_q, *others, scale=None, window_size=(-1, -1), enable_gqa=False):
    """Have the arguments of `varlen_attn` since torch 2.11."""
    assert (enable_gqa, others[1]) == (query.shape[1] != key.shape[1], int(cu_seq_q.diff().max()))
    return attend(query, key, value, cu_seq_q, causal=window_size == (-1, 0), scale=scale)


def older_torch(query, key, value, cu_seq_q, *others, is_causal=False, scale=None):
    """Have the arguments of torch 2.10, which knows no shared heads."""
    assert query.shape == key.shape
    return attend(query, key, value, cu_seq_q, causal=is_causal, scale=scale)


def flash(query, key, value, cu_seqlens_q, *others, softmax_scale=None, causal=False):
    """Have the arguments of `flash_attn_varlen_func`."""
    assert torch.int32 == cu_seqlens_q.dtype
    return attend(query, key, value, cu_seqlens_q, causal=causal, scale=softmax_scale)


KERNELS = {
    "newer torch": build_torch_kernel(newer_torch),
    "older torch": build_torch_kernel(older_torch),
    "flash_attn": build_flash_kernel(flash),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n_key_heads", [4, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_kernels_are_called_as_their_versions_want(kernel, n_key_heads, causal):
    """Places of texts, shared heads, direction and scale reach every kernel."""
    generator = torch.Generator().manual_seed(1)
    lengths = [3, 3, 5, 1]
    texts = build_texts(lay_out(lengths), CPU)
    query, key, value = (torch.randn(12, n, 8, generator=generator) for n in (4, n_key_heads, n_key_heads))
    expected = attend(query, key, value, torch.tensor([0, 3, 6, 11, 12]), causal=causal, scale=0.3)
    found = KERNELS[kernel](query, key, value, texts, causal=causal, scale=0.3)
    assert torch.allclose(expected, found, atol=1e-6)
    if not causal and n_key_heads == 4:
        plain = KERNELS[kernel](query, key, value, texts, causal=False, scale=None)
        assert torch.allclose(attend_by_groups(query, key, value, texts), plain, atol=1e-6)


@pytest.mark.parametrize("name", ["qwen2", "qwen2-window", "qwen2-bidirectional", "modernbert", "gemma3"])
def test_transformers_models_give_the_same_with_a_kernel(zoo, name):
    """Where a model's mask says more than a direction, the kernel is left out."""
    from embedkit_local.architectures import TransformersNetwork, load_model

    ids = torch.randint(6, 200, (60,), generator=torch.Generator().manual_seed(2))
    layout = lay_out([2, 2, 9, 20, 27])
    with torch.inference_mode():
        plain, kerneled = (
            TransformersNetwork(
                load_model(zoo.directory(name), dtype=torch.float32, device=CPU), layout="packed", kernel=kernel
            ).hidden(ids, layout)
            for kernel in (None, KERNELS["newer torch"])
        )
    assert torch.allclose(plain, kerneled, atol=1e-4)


def test_the_own_network_gives_the_same_with_a_kernel(zoo):
    """BERT's forward pass hands on what a kernel needs."""
    import json

    directory = zoo.directory("bert")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    ids = torch.randint(6, 30, (30,), generator=torch.Generator().manual_seed(2))
    layout = lay_out([2, 2, 9, 17])
    with torch.inference_mode():
        plain, kerneled = (
            load_bert(directory, config, dtype=torch.float32, device=CPU, prepack=False, kernel=kernel).hidden(
                ids, layout
            )
            for kernel in (None, KERNELS["flash_attn"])
        )
    assert torch.allclose(plain, kerneled, atol=1e-4)


def test_a_kernel_that_knows_no_direction_is_refused_where_one_is_needed():
    """The self-check takes another way then, and says why."""

    def without_direction(query, *others):
        return query

    kernel = build_torch_kernel(without_direction)
    states = torch.zeros(2, 1, 4)
    with pytest.raises(TypeError, match="no direction"):
        kernel(states, states, states, build_texts(lay_out([2]), CPU), causal=True, scale=None)


def test_a_cpu_computes_attention_by_groups():
    """Kernels for variable lengths are for GPUs."""
    assert ["groups"] == list_kernels(CPU, torch.bfloat16)
    assert load_kernel("groups") is None


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "qwen2", "qwen2-bidirectional", "gemma3", "mpnet"])
def test_a_gpu_gives_the_vectors_of_the_cpu(zoo, load_engine, embed_raw, name):
    """Exact in float32, near in bfloat16, whatever kernel was taken; the way says which."""
    texts = zoo.texts(200)
    expected = embed_raw(load_engine(zoo.directory(name)), texts)
    device = torch.device("cuda")
    exact = load_engine(zoo.directory(name), device=device, max_pack_tokens=2000)
    np.testing.assert_allclose(embed_raw(exact, texts), expected, rtol=1e-3, atol=1e-3)
    narrow = load_engine(zoo.directory(name), device=device, dtype="bfloat16", max_pack_tokens=2000)
    found = embed_raw(narrow, texts)
    cosine = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert 0.98 < cosine.min(), narrow.way


@pytest.mark.gpu
@needs_gpu
@pytest.mark.weights
def test_a_gpu_recovers_from_a_real_lack_of_memory(minilm, load_engine, embed_raw):
    """Packs far beyond the memory that is left are halved, and nothing is lost. Fault 76."""
    texts = [f"text {i} " * 60 for i in range(4000)]
    engine = load_engine(minilm, device=torch.device("cuda"), max_pack_tokens=10_000_000, max_pack_texts=100_000)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((total - free + (1 << 30)) / total)
    try:
        found = embed_raw(engine, texts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.isfinite(found).all()
    assert engine._budget.max_tokens < 10_000_000
    np.testing.assert_allclose(embed_raw(engine, texts[:50]), found[:50], atol=1e-2)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["torch", "flash_attn"])
def test_a_gpu_s_kernel_agrees_with_groups(name):
    """In bfloat16, with shared heads, both directions."""
    device = torch.device("cuda")
    if name not in list_kernels(device, torch.bfloat16):
        pytest.skip(f"{name} is not installed")
    kernel = load_kernel(name)
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(200, n, 64, generator=generator).to(device, torch.bfloat16) for n in (8, 2, 2))
    texts = build_texts(lay_out([10, 10, 50, 130]), device)
    for causal in (False, True):
        found = kernel(query, key, value, texts, causal=causal, scale=None).float()
        expected = attend(query, key, value, texts.offsets, causal=causal).float()
        assert torch.allclose(expected, found, atol=2e-2), causal
