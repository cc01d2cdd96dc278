"""
Attention on a flat sequence of texts: each token sees its own text and no other.

Owns how that is computed: by groups of equal length, which runs everywhere, or by a kernel for variable lengths, which
GPUs need. Whether a kernel is right is for the caller's self-check to say.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from embedkit_local.packing import Group

KernelName = Literal["groups", "torch", "flash_attn"]
"""By groups of equal length; or by a kernel for variable lengths, torch's own or the package flash_attn's."""


@attrs.frozen(kw_only=True, eq=False)
class Texts:
    """
    Say where each text lies in a flat sequence.

    Attributes:
        layout: Groups of equal length that cover it.

        offsets: Shape (n_texts + 1,), int32, where the sequence is: where each text begins, and the end.

        longest: Tokens of the longest text.
    """

    layout: Sequence[Group]
    offsets: Tensor
    longest: int


class Kernel(Protocol):
    """Compute attention on texts of any lengths at once."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, texts: Texts, *, causal: bool, scale: float | None
    ) -> Tensor:
        """
        Attend within each text.

        Args:
            query: Shape (n_tokens, n_heads, d).

            key: Likewise; it may have fewer heads, each for several of the query's.

            value: As *key*.

            texts: Where they lie.

            causal: Whether a token sees earlier ones only.

            scale: What products are multiplied with; None: one by the root of d.

        Returns:
            Shape (n_tokens, n_heads, d).
        """
        ...


def list_kernels(device: torch.device, dtype: torch.dtype) -> list[KernelName]:
    """Name what may compute attention here, the fastest first; "groups" always can."""
    found: list[KernelName] = []
    if device.type == "cuda" and dtype != torch.float32:
        if importlib.util.find_spec("flash_attn") is not None:
            found.append("flash_attn")
        if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
            found.append("torch")
    return [*found, "groups"]


def load_kernel(name: KernelName) -> Kernel | None:
    """
    Load a kernel for variable lengths; None for "groups", which need none.

    Raises:
        ImportError: It is not there, or not for this machine.
    """
    if name == "torch":
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  # not in every torch

        return build_torch_kernel(varlen_attn)
    if name == "flash_attn":
        return build_flash_kernel(importlib.import_module("flash_attn").flash_attn_varlen_func)
    return None


def build_torch_kernel(function: Callable[..., Any]) -> Kernel:
    """Adapt `torch.nn.attention.varlen.varlen_attn`, whose arguments differ between versions of torch."""
    known = inspect.signature(function).parameters

    def attend(query: Tensor, key: Tensor, value: Tensor, texts: Texts, *, causal: bool, scale: float | None) -> Tensor:
        if "enable_gqa" not in known:
            n_sharing = query.shape[1] // key.shape[1]
            key, value = (states.repeat_interleave(n_sharing, dim=1) for states in (key, value))
        settings = {
            "enable_gqa": query.shape[1] != key.shape[1],
            "scale": scale,
            "is_causal": causal,
            "window_size": (-1, 0 if causal else -1),
        }
        if causal and not {"is_causal", "window_size"} & known.keys():
            raise TypeError("this torch's variable-length attention knows no direction")
        if scale is not None and "scale" not in known:
            raise TypeError("this torch's variable-length attention knows no scale")
        out: Tensor = function(
            query,
            key,
            value,
            texts.offsets,
            texts.offsets,
            texts.longest,
            texts.longest,
            **{name: setting for name, setting in settings.items() if name in known},
        )
        return out

    return attend


def build_flash_kernel(function: Callable[..., Any]) -> Kernel:
    """Adapt `flash_attn.flash_attn_varlen_func`."""

    def attend(query: Tensor, key: Tensor, value: Tensor, texts: Texts, *, causal: bool, scale: float | None) -> Tensor:
        out: Tensor = function(
            query,
            key,
            value,
            texts.offsets,
            texts.offsets,
            texts.longest,
            texts.longest,
            softmax_scale=scale,
            causal=causal,
        )
        return out

    return attend


def attend_by_groups(query: Tensor, key: Tensor, value: Tensor, texts: Texts) -> Tensor:
    """
    Attend within each text, to all of it, one group of equal lengths after the other.

    Args:
        query: Shape (n_tokens, n_heads, d); *key* and *value* likewise.

        key: See *query*.

        value: See *query*.

        texts: Where they lie.

    Returns:
        Shape (n_tokens, n_heads, d).
    """
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for group in texts.layout:
        place = slice(group.start, group.stop)
        spread = [
            states[place].view(group.n_texts, group.length, *states.shape[1:]).transpose(1, 2)
            for states in (query, key, value)
        ]
        attended = functional.scaled_dot_product_attention(spread[0], spread[1], spread[2])
        out[place] = attended.transpose(1, 2).reshape(group.n_texts * group.length, *query.shape[1:])
    return out
