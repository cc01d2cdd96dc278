"""
BERT's forward pass, written out for packs: one product for query, key and value, activations and residuals inside the
products.

Owns the reading of such weights and the network made of them (BERT, RoBERTa, XLM-R, CamemBERT: one arithmetic, two
ways to number positions). What does not look exactly as expected is refused; whether the result is right is for the
caller's self-check to say. Imports no transformers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from embedkit_local.attention import Kernel, Texts, attend_by_groups
from embedkit_local.chain import UnsupportedModelError
from embedkit_local.linear import Product, SumProduct, build_product, build_sum_product
from embedkit_local.packing import Group, build_positions, build_texts, send

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_NUMBERED_FROM_PADDING = {"bert": False, "roberta": True, "xlm-roberta": True, "camembert": True}
_PREFIX = re.compile(r"^(?:bert|roberta|camembert)\.")
_UNUSED = re.compile(r"^(?:pooler|cls|lm_head|qa_outputs|classifier)\.|^embeddings\.(?:position_ids|token_type_ids)$")


@attrs.frozen
class _Norm:
    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, rows: Tensor) -> Tensor:
        return functional.layer_norm(rows, self.weight.shape, self.weight, self.bias, self.epsilon)


@attrs.frozen(kw_only=True)
class _Layer:
    query_key_value: Product
    attention_out: SumProduct
    attention_norm: _Norm
    widen: Product
    narrow: SumProduct
    norm: _Norm


class BertNetwork:
    """
    Run BERT's arithmetic on packs.

    Args:
        weights: Tensors by name, any prefix of the architecture taken off.

        config: The model's `config.json`.

        dtype: The precision that it computes in.

        device: Where it computes.

        prepack: Whether to lay the weights out for the processor beforehand.

        kernel: Computes attention; None: by groups of equal length.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        config: Mapping[str, Any],
        *,
        dtype: torch.dtype,
        device: torch.device,
        prepack: bool,
        kernel: Kernel | None = None,
    ) -> None:
        self._remaining = dict(weights)
        self._dtype = dtype
        self._device = device
        self._kernel = kernel
        self._prepack = prepack
        self._epsilon = float(config.get("layer_norm_eps", 1e-12))
        self._n_heads = int(config["num_attention_heads"])
        from_padding = _NUMBERED_FROM_PADDING[config["model_type"]]
        self._offset = int(config.get("pad_token_id", 1)) + 1 if from_padding else 0
        self._words = self._take("embeddings.word_embeddings.weight")
        # Every token of a single text has type 0: its row is added to the positions once and for all.
        self._places = self._take("embeddings.position_embeddings.weight", torch.float32).add_(
            self._take("embeddings.token_type_embeddings.weight", torch.float32)[0]
        )
        self._norm = self._take_norm("embeddings.LayerNorm")
        self._layers = [self._take_layer(f"encoder.layer.{number}") for number in range(config["num_hidden_layers"])]
        left = sorted(name for name in self._remaining if not _UNUSED.search(name))
        if left:
            raise UnsupportedModelError(f"its weights hold something unknown: {left[0]}")
        self._remaining.clear()

    def _take(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        if name not in self._remaining:
            raise UnsupportedModelError(f"its weights lack {name}")
        # A copy, always: the tensor may still be a window into the file on disk, which somebody may replace.
        return self._remaining.pop(name).to(self._device, dtype or self._dtype, copy=True)

    def _take_pair(self, name: str) -> tuple[Tensor, Tensor]:
        return self._take(f"{name}.weight"), self._take(f"{name}.bias")

    def _take_norm(self, name: str) -> _Norm:
        return _Norm(*self._take_pair(name), self._epsilon)

    def _take_layer(self, name: str) -> _Layer:
        parts = [self._take_pair(f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
        weight = torch.cat([weight for weight, _ in parts])
        bias = torch.cat([bias for _, bias in parts])
        return _Layer(
            query_key_value=build_product(weight, bias, prepack=self._prepack),
            attention_out=build_sum_product(*self._take_pair(f"{name}.attention.output.dense"), prepack=self._prepack),
            attention_norm=self._take_norm(f"{name}.attention.output.LayerNorm"),
            widen=build_product(*self._take_pair(f"{name}.intermediate.dense"), then="gelu", prepack=self._prepack),
            narrow=build_sum_product(*self._take_pair(f"{name}.output.dense"), prepack=self._prepack),
            norm=self._take_norm(f"{name}.output.LayerNorm"),
        )

    @property
    def n_known(self) -> int:
        """How many different tokens the weights know."""
        return self._words.shape[0]

    def hidden(self, ids: Tensor, layout: Sequence[Group]) -> Tensor:
        """Run the model; see `Network`."""
        positions = build_positions(ids, layout, offset=self._offset)
        ids, positions = send(torch.stack([ids, positions]), self._device)
        texts = build_texts(layout, self._device)
        embedded = functional.embedding(ids, self._words) + functional.embedding(positions, self._places)
        rows = self._norm(embedded.to(self._dtype))
        for layer in self._layers:
            attended = self._attend(layer.query_key_value(rows), texts)
            rows = layer.attention_norm(layer.attention_out(attended, rows))
            rows = layer.norm(layer.narrow(layer.widen(rows), rows))
        return rows

    def _attend(self, states: Tensor, texts: Texts) -> Tensor:
        query, key, value = states.view(len(states), 3, self._n_heads, -1).unbind(1)
        if self._kernel is None:
            return attend_by_groups(query, key, value, texts).flatten(1)
        return self._kernel(query, key, value, texts, causal=False, scale=None).flatten(1)


def load_bert(
    directory: Path,
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    device: torch.device,
    prepack: bool,
    kernel: Kernel | None = None,
) -> BertNetwork:
    """
    Load a network of BERT's arithmetic from a model directory.

    Args:
        directory: Where `model.safetensors` lies.

        config: The `config.json` beside it.

        dtype: The precision that it computes in.

        device: Where it computes.

        prepack: Whether to lay the weights out for the processor beforehand.

        kernel: Computes attention; None: by groups of equal length.

    Returns:
        The network; whether it is right is not yet proved.

    Raises:
        UnsupportedModelError: It is another architecture, or something about it is unusual.
    """
    unusual = {
        "model_type": config.get("model_type") not in _NUMBERED_FROM_PADDING,
        "hidden_act": config.get("hidden_act") != "gelu",
        "position_embedding_type": config.get("position_embedding_type", "absolute") != "absolute",
        "is_decoder": bool(config.get("is_decoder")),
        "embedding_size": config.get("embedding_size", config.get("hidden_size")) != config.get("hidden_size"),
    }
    wrong = [key for key, is_unusual in unusual.items() if is_unusual]
    if wrong:
        raise UnsupportedModelError(f"config.json sets {wrong[0]} = {config.get(wrong[0])!r}")
    path = directory / "model.safetensors"
    if not path.is_file():
        raise UnsupportedModelError("its weights are not in one model.safetensors")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UnsupportedModelError(f"model.safetensors cannot be read: {error}") from error
    named = {
        _PREFIX.sub("", name).replace(".gamma", ".weight").replace(".beta", ".bias"): tensor
        for name, tensor in tensors.items()
    }
    return BertNetwork(named, config, dtype=dtype, device=device, prepack=prepack, kernel=kernel)
