"""
Matrix products with weights laid out for the processor beforehand.

Owns the one place that touches torch's private oneDNN operators, whether they are there at all, and what stands in
for them. On processors where torch's default float32 product comes from a library that is tuned for another maker's,
this alone doubles the speed; elsewhere it saves the re-ordering of the weights at each call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Product = Callable[[Tensor], Tensor]
SumProduct = Callable[[Tensor, Tensor], Tensor]

_TYPICAL_ROWS = 2048
"""Rows that oneDNN lays the weights out for; other numbers work too."""


def can_prepack(dtype: torch.dtype) -> bool:
    """Tell whether torch has the operators for *dtype* here, and they give the right product."""
    try:
        weight = torch.arange(32 * 16, dtype=torch.float32).reshape(16, 32).remainder(7).to(dtype)
        rows = torch.arange(3 * 32, dtype=torch.float32).reshape(3, 32).remainder(5).to(dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)  # noqa: SLF001  # torch offers it under no other name
        product = torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")  # noqa: SLF001  # torch offers it under no other name
        added = torch.ops.mkldnn._linear_pointwise.binary(rows, product, packed, None, "add")  # noqa: SLF001  # torch offers it under no other name
    except (AttributeError, RuntimeError):
        return False
    expected = functional.linear(rows, weight)
    return torch.allclose(product, expected, rtol=1e-2) and torch.allclose(added, expected * 2, rtol=1e-2)


def build_product(
    weight: Tensor, bias: Tensor | None, *, then: Literal["none", "gelu"] = "none", prepack: bool
) -> Product:
    """
    Make the function from rows to rows times *weight*, plus *bias*.

    Args:
        weight: Shape (n_out, n_in).

        bias: Shape (n_out,), or None.

        then: What is applied to the result (the exact gelu, not the one with tanh).

        prepack: Whether to lay the weights out beforehand; only where `can_prepack`.

    Returns:
        A function from (…, n_in) to (…, n_out).
    """
    if prepack:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)  # noqa: SLF001  # torch offers it under no other name
        operator = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001  # torch offers it under no other name
        algorithm = "none" if then == "gelu" else ""

        def run_packed(rows: Tensor) -> Tensor:
            out: Tensor = operator(rows, packed, bias, then, [], algorithm)
            return out

        return run_packed

    if then == "gelu":
        return lambda rows: functional.gelu(functional.linear(rows, weight, bias))
    return lambda rows: functional.linear(rows, weight, bias)


def build_sum_product(weight: Tensor, bias: Tensor | None, *, prepack: bool) -> SumProduct:
    """
    Make the function from rows and a residual to the residual plus rows times *weight*, plus *bias*.

    Args:
        weight: Shape (n_out, n_in).

        bias: Shape (n_out,), or None.

        prepack: Whether to lay the weights out beforehand; only where `can_prepack`.

    Returns:
        A function from (…, n_in) and (…, n_out) to (…, n_out).
    """
    if prepack:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)  # noqa: SLF001  # torch offers it under no other name
        operator = torch.ops.mkldnn._linear_pointwise.binary  # noqa: SLF001  # torch offers it under no other name

        def run_packed(rows: Tensor, residual: Tensor) -> Tensor:
            out: Tensor = operator(rows, residual, packed, bias, "add")
            return out

        return run_packed

    return lambda rows, residual: functional.linear(rows, weight, bias).add_(residual)


class _PrepackedLinear(nn.Module):
    """Stands where an `nn.Linear` stood in somebody else's model."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._run = build_product(linear.weight.detach(), linear.bias, prepack=True)

    def forward(self, rows: Tensor) -> Tensor:
        return self._run(rows)


def prepack_linears(model: nn.Module) -> None:
    """
    Put prepacked products in the place of the linear layers of *model*.

    Args:
        model: Any model on the CPU whose precision passes `can_prepack`; only layers that are exactly `nn.Linear` are
        touched.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, _PrepackedLinear(child))
