"""
What stands around a transformer in a model of the usual kind: pooling before its vectors, dense layers after.

Owns the decision whether a model is of that kind. Whatever is not known for sure is refused with a reason
(`UnsupportedModelError`), so that the caller takes sentence-transformers' own way. Loads no transformer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import attrs
from safetensors.torch import load_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from embedkit_local.model_files import ModelFiles, Module

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""How the hidden states of a text's tokens become one vector."""

_HARMLESS_SETTINGS: Mapping[str, tuple[object, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "modality_config": ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
    "unpad_inputs": (None, True, False),
}
_READ_ELSEWHERE = {"max_seq_length", "do_lower_case"}


class UnsupportedModelError(Exception):
    """This model cannot be run here as it should be, and why; sentence-transformers' own way is left."""


@attrs.frozen(kw_only=True, eq=False)
class Dense:
    """
    A linear layer after pooling, as sentence-transformers' module of that name.

    Attributes:
        weight: Shape (n_out, n_in), float32.

        bias: Shape (n_out,), or None.

        activation: Applied to the product.

        residual: None: nothing is added; a matrix: its product with the input is added; "input": the input itself is.
    """

    weight: Tensor
    bias: Tensor | None
    activation: nn.Module
    residual: Tensor | Literal["input"] | None

    def __call__(self, vectors: Tensor) -> Tensor:
        """Apply the layer to rows of shape (n, n_in)."""
        out: Tensor = self.activation(nn.functional.linear(vectors, self.weight, self.bias))
        if isinstance(self.residual, Tensor):
            return out + nn.functional.linear(vectors, self.residual)
        return out if self.residual is None else out + vectors


@attrs.frozen(kw_only=True, eq=False)
class Chain:
    """
    Hold what is done to the hidden states of a text.

    Attributes:
        modes: How tokens are pooled; the results of several are joined.

        dense: Linear layers after pooling, in order.
    """

    modes: tuple[PoolingMode, ...]
    dense: tuple[Dense, ...] = ()

    def finish(self, pooled: Tensor) -> Tensor:
        """Apply what follows pooling to rows of shape (n, d), float32; unit length is given elsewhere, after a cut."""
        for layer in self.dense:
            pooled = layer(pooled)
        return pooled


def load_chain(files: ModelFiles, *, device: torch.device, trust_remote_code: bool = False) -> Chain:
    """
    Read what a model's files say around its transformer.

    Args:
        files: Its checked files.

        trust_remote_code: Whether code that the model brings is to be run; not here.

        device: Where dense layers are put.

    Returns:
        The chain: one transformer, one pooling, then any number of dense layers, then perhaps unit length.

    Raises:
        UnsupportedModelError: Something in it is not known for sure here.
    """
    kinds = [module.kind for module in files.modules]
    after = kinds[2:-1] if kinds[-1] == "Normalize" else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(after) - {"Dense"}:
        raise UnsupportedModelError(f"its modules are {', '.join(kinds)}")
    if foreign := [module.class_path for module in files.modules if not module.is_own]:
        raise UnsupportedModelError(f"it has a module of its own: {foreign[0]}")
    if trust_remote_code and "auto_map" in files.transformer:
        raise UnsupportedModelError("it runs code of its own")
    if kinds[-1] == "Normalize" and files.modules[-1].config:
        raise UnsupportedModelError("its Normalize module has settings")
    for key, value in files.sentence.items():
        if key not in _READ_ELSEWHERE and value not in (None, {}, *_HARMLESS_SETTINGS.get(key, ())):
            raise UnsupportedModelError(f"its Transformer module sets {key} = {value!r}")
    return Chain(
        modes=_read_modes(files),
        dense=tuple(_load_dense(module, device) for module in files.modules if module.kind == "Dense"),
    )


def _read_modes(files: ModelFiles) -> tuple[PoolingMode, ...]:
    if files.modules[1].config.get("include_prompt", True) is not True:
        raise UnsupportedModelError("its pooling leaves the prompt out")
    known: Mapping[str, PoolingMode] = {mode: mode for mode in get_args(PoolingMode)}
    modes = files.read_pooling()
    if unknown := [mode for mode in modes if mode not in known]:
        raise UnsupportedModelError(f"its pooling is {unknown[0]!r}")
    return tuple(known[mode] for mode in modes)


def _load_dense(module: Module, device: torch.device) -> Dense:
    for key in ("module_input_name", "module_output_name"):
        if module.config.get(key) not in (None, "sentence_embedding"):
            raise UnsupportedModelError(f"a Dense module has {key} = {module.config[key]!r}")
    named = str(module.config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    kind = getattr(nn, named.rpartition(".")[2], None)
    if not named.startswith("torch.nn.") or not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UnsupportedModelError(f"a Dense module's activation is {named!r}")
    path = module.directory / "model.safetensors"
    if not path.is_file():
        raise UnsupportedModelError("a Dense module's weights are not in model.safetensors")
    # A copy, always: the tensors may still be windows into the file on disk, which somebody may replace.
    tensors = {name: tensor.to(device).float().clone() for name, tensor in load_file(path).items()}
    residual: Tensor | Literal["input"] | None = None
    if module.config.get("use_residual"):
        residual = tensors.get("residual.weight", "input")
    return Dense(weight=tensors["linear.weight"], bias=tensors.get("linear.bias"), activation=kind(), residual=residual)
