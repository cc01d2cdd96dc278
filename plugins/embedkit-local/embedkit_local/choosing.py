"""
Which way a model is run on this machine: the fastest that agrees with the plain one.

Owns the ways that there are (which network, which attention, which precision) and the self-checks that choose between
them. A name is never enough: every way is measured against the padded reference before it is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
import torch
from torch import Tensor

from embedkit.space import CANARIES
from embedkit_local.attention import KernelName, list_kernels, load_kernel
from embedkit_local.budget import is_out_of_memory
from embedkit_local.chain import Chain, UnsupportedModelError
from embedkit_local.devices import has_native_bfloat16
from embedkit_local.linear import can_prepack, prepack_linears
from embedkit_local.memory import count_parameters
from embedkit_local.native import load_bert
from embedkit_local.packing import Network, lay_out, pool

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from embedkit_local.model_files import ModelFiles
    from embedkit_local.options import Dtype
    from embedkit_local.tokenizing import BulkTokenizer

Precision = Literal["float32", "bfloat16", "float16"]
Layout = Literal["native", "packed", "grouped"]

EXACT_AGREEMENT = 0.99999
"""Least cosine of a float32 way with the padded reference."""

NARROW_AGREEMENT = 0.9995
"""Least cosine of bfloat16 with float32 on the canaries for `dtype = "auto"` to take it."""

_COARSE_AGREEMENT = 0.999
_TOO_LARGE_TO_COMPARE = 1_000_000_000
_CHECKED_TOKENS = 256
TORCH_DTYPES: Mapping[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# What somebody else's model code raises when it is run in a way that it was not written for.
_REFUSALS = (AttributeError, ImportError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
_LAYOUTS: Mapping[Layout, str] = {
    "native": "packed, with a forward pass of its own",
    "packed": "packed, through transformers' attention interface",
    "grouped": "by groups of equal length, through transformers",
}


@attrs.frozen(kw_only=True)
class Way:
    """
    Say how a model is run, and what was measured to choose it. Plain values: fit to be kept.

    Attributes:
        layout: "native" is a forward pass of ours; "packed" and "grouped" run transformers' own modules.

        prepacked: Whether linear layers are laid out for the processor beforehand.

        dtype: The precision that it computes in.

        kernel: What computes attention.

        agreement: Least cosine with the padded reference; None: it was not compared.

        dtype_agreement: Least cosine of the narrow precision with float32 on the canaries; None: it was not compared.

        notes: What was not taken, and why; for people.
    """

    layout: Layout
    prepacked: bool
    dtype: Precision
    kernel: KernelName = "groups"
    agreement: float | None = None
    dtype_agreement: float | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [_LAYOUTS[self.layout], *([] if self.kernel == "groups" else [f"{self.kernel} attention"]), self.dtype]
        measured = [] if self.agreement is None else [f"agrees with padded to {self.agreement:.7f}"]
        if self.dtype != "float32" and self.dtype_agreement is not None:
            measured.append(f"{self.dtype} with float32 to {self.dtype_agreement:.5f}")
        return ", ".join(parts) + (f": {', '.join(measured)}" if measured else "")


def choose_way(
    files: ModelFiles, chain: Chain, tokenizer: BulkTokenizer, *, dtype: Dtype, device: torch.device, attention: str
) -> tuple[Way, Network]:
    """
    Find the fastest way that is right.

    Args:
        files: The model's files.

        chain: What stands around the transformer.

        tokenizer: Its tokenizer.

        dtype: "auto" is bfloat16 where the device has it and it agrees with float32, else float32.

        device: Where it computes.

        attention: The direction that a profile states against the model's own configuration; empty: the model's own.

    Returns:
        The way, with what was measured, and its network.

    Raises:
        UnsupportedModelError: No way of running it here was proved right.
    """
    return _Chooser(files, chain, tokenizer, dtype=dtype, device=device, attention=attention).choose()


def build_network(files: ModelFiles, way: Way, *, device: torch.device, attention: str) -> Network:
    """
    Build the network that *way* names, without checking it.

    Raises:
        UnsupportedModelError: This way is not for this model.
    """
    dtype = TORCH_DTYPES[way.dtype]
    prepack = way.prepacked and device.type == "cpu" and can_prepack(dtype)
    kernel = load_kernel(way.kernel)
    if way.layout == "native":
        return load_bert(
            files.first.directory, files.transformer, dtype=dtype, device=device, prepack=prepack, kernel=kernel
        )
    from embedkit_local.architectures import TransformersNetwork, load_model  # noqa: PLC0415  # imports transformers

    model = load_model(files.first.directory, dtype=dtype, device=device, attention=attention)
    if prepack:
        prepack_linears(model)
    return TransformersNetwork(model, layout=way.layout, kernel=kernel)


def find_network(files: ModelFiles, way: Way, *, device: torch.device, attention: str) -> Network | None:
    """Build the network that *way* names; None where that does not work (any more), as when a kernel is broken."""
    try:
        return build_network(files, way, device=device, attention=attention)
    except (UnsupportedModelError, *_REFUSALS) as error:
        if is_out_of_memory(error):
            raise
        return None


class _Chooser:
    """Finds the way for one model."""

    def __init__(
        self,
        files: ModelFiles,
        chain: Chain,
        tokenizer: BulkTokenizer,
        *,
        dtype: Dtype,
        device: torch.device,
        attention: str,
    ) -> None:
        self._files = files
        self._chain = chain
        self._device = device
        self._attention = attention
        self._wanted = dtype
        self._notes: list[str] = []
        self._is_large = count_parameters(files) > _TOO_LARGE_TO_COMPARE
        rows = [torch.from_numpy(row[:_CHECKED_TOKENS]) for row in tokenizer.tokenize(CANARIES).rows if len(row)]
        if not rows:
            raise UnsupportedModelError("its tokenizer makes no tokens of any canary text")
        self._rows = rows
        # One text twice, several lengths, the longest last: enough to see positions, windows and neighbours; few
        # enough to be quick.
        by_length = sorted(rows, key=len)
        self._few = [by_length[0], *by_length[4::4], by_length[0], by_length[-1]]

    def choose(self) -> tuple[Way, Network]:
        """Try the ways, fastest first; raise `UnsupportedModelError` when none agrees with the reference."""
        narrow = self._find_narrow()
        first: Precision = narrow if narrow is not None and self._is_large else "float32"
        least = EXACT_AGREEMENT if first == "float32" else _COARSE_AGREEMENT
        reference = self._compute_reference(first)
        for candidate in self._list_candidates(first):
            found = self._try(candidate, reference, self._few)
            if found is None:
                continue
            network, agreement = found
            if agreement >= least:
                return self._settle_dtype(attrs.evolve(candidate, agreement=agreement), network, narrow)
            self._notes.append(f"{candidate.layout}: its cosine with the padded reference is {agreement:.6f}")
        raise UnsupportedModelError("; ".join(self._notes))

    def _find_narrow(self) -> Precision | None:
        """Give the narrow precision that is wanted, if any."""
        if self._wanted != "auto":
            return None if self._wanted == "float32" else self._wanted
        if has_native_bfloat16(self._device):
            return "bfloat16"
        self._notes.append(f"bfloat16: this {self._device.type} has no instructions for it")
        return None

    def _compute_reference(self, dtype: Precision) -> Tensor:
        from embedkit_local.architectures import load_model, run_padded  # noqa: PLC0415  # imports transformers

        model = load_model(
            self._files.first.directory,
            dtype=TORCH_DTYPES[dtype],
            device=self._device,
            attention=self._attention,
        )
        try:
            padded = torch.cat(run_padded(model, self._few))
        except _REFUSALS as error:
            if is_out_of_memory(error):
                raise
            raise UnsupportedModelError(f"{type(error).__name__}: {error}") from error
        return _finish(padded, self._chain, self._few)

    def _list_candidates(self, dtype: Precision) -> Iterator[Way]:
        # Laying out the weights holds them twice for a moment, which a large model may not have the memory for.
        may_prepack = self._device.type == "cpu" and not self._is_large and can_prepack(TORCH_DTYPES[dtype])
        prepack = (True, False) if may_prepack else (False,)
        kernels = list_kernels(self._device, TORCH_DTYPES[dtype])
        if self._attention != "causal":
            yield from (Way(layout="native", prepacked=prepack[0], dtype=dtype, kernel=kernel) for kernel in kernels)
        for kernel in kernels:
            yield from (Way(layout="packed", prepacked=each, dtype=dtype, kernel=kernel) for each in prepack)
        yield from (Way(layout="grouped", prepacked=each, dtype=dtype) for each in prepack)

    def _try(self, way: Way, reference: Tensor, rows: Sequence[Tensor]) -> tuple[Network, float] | None:
        """Run a way; None, with a note, where it does not run."""
        name = way.layout if way.kernel == "groups" else f"{way.layout} with {way.kernel}"
        try:
            network = build_network(self._files, way, device=self._device, attention=self._attention)
            return network, _least_cosine(self._run(network, rows), reference)
        except UnsupportedModelError as error:
            note = f"{name}: {error}"
        except _REFUSALS as error:
            if is_out_of_memory(error):
                raise
            note = f"{name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if note not in self._notes:
            self._notes.append(note)
        return None

    def _run(self, network: Network, rows: Sequence[Tensor]) -> Tensor:
        # Each text's neighbours in the pack differ in length, so that a leak between texts shows.
        layout = lay_out([len(row) for row in rows])
        return _finish(network.hidden(torch.cat(list(rows)), layout), self._chain, rows)

    def _settle_dtype(self, way: Way, network: Network, narrow: Precision | None) -> tuple[Way, Network]:
        if way.dtype != "float32":
            self._notes.append(f"{way.dtype} was not compared with float32: the model has over 1 B parameters")
        elif narrow is not None:
            exact = self._run(network, self._rows)
            kernels: Sequence[KernelName] = list_kernels(self._device, TORCH_DTYPES[narrow])
            for kernel in kernels if way.layout != "grouped" else kernels[-1:]:
                candidate = attrs.evolve(way, dtype=narrow, kernel=kernel)
                found = self._try(candidate, exact, self._rows)
                if found is None:
                    continue
                agreement = found[1]
                way = attrs.evolve(way, dtype_agreement=agreement)
                if agreement >= NARROW_AGREEMENT or (self._wanted == narrow and kernel == "groups"):
                    way, network = attrs.evolve(candidate, dtype_agreement=agreement), found[0]
                    break
                with_kernel = "" if kernel == "groups" else f" with {kernel}"
                self._notes.append(f"{narrow}{with_kernel}: its cosine with float32 is {agreement:.6f}")
        return attrs.evolve(way, notes=tuple(self._notes)), network


def _finish(hidden: Tensor, chain: Chain, rows: Sequence[Tensor]) -> Tensor:
    return chain.finish(pool(hidden, lay_out([len(row) for row in rows]), chain.modes)).cpu()


def _least_cosine(left: Tensor, right: Tensor) -> float:
    if not (bool(left.isfinite().all()) and bool(right.isfinite().all())):
        return -1.0
    return float(torch.nn.functional.cosine_similarity(left.double(), right.double(), dim=-1).min())
