"""
Any transformer of the library of that name, run without padding through its own attention interface.

Owns the attention function and the mask function that are registered there, and the padded reference that proves
them. The model's own code says who attends to whom (causal, both ways, within a window): its mask function is kept
and asked for one text's length at a time, so that no architecture is known by name here. Importing this room imports
transformers.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from embedkit_local.chain import UnsupportedModelError
from embedkit_local.loading import quiet, set_attention
from embedkit_local.packing import Group, build_positions, build_texts, send

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from embedkit_local.attention import Kernel, Texts

_ATTENTION = "embedkit_packed"
_PER_CALL = frozenset(
    {"batch_size", "q_length", "kv_length", "q_offset", "kv_offset", "attention_mask", "cache_position"}
)
_TAKES_POSITIONS = "cache_position" in inspect.signature(sdpa_mask).parameters  # transformers before 5.3

Layout = Literal["packed", "grouped"]
"""One flat sequence with attention by groups; or one call of the model for each group of equal lengths."""


class _MaskRule:
    """What a model's code says about who attends to whom; made into a mask only for the lengths that occur."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._arguments = arguments
        self._masks: dict[int, Tensor | None] = {}

    def build_mask(self, length: int) -> Tensor | None:
        if length not in self._masks:
            asked: dict[str, Any] = (
                {"cache_position": torch.arange(length, device=self._arguments.get("device"))}
                if _TAKES_POSITIONS
                else {"q_length": length}
            )
            self._masks[length] = sdpa_mask(batch_size=1, kv_length=length, **asked, **self._arguments)
        return self._masks[length]


def _keep_mask_rule(**arguments: Any) -> _MaskRule:  # noqa: ANN401  # the library's own arguments
    return _MaskRule({name: value for name, value in arguments.items() if name not in _PER_CALL})


def _attend_by_group(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: _MaskRule | None,
    *,
    packing: Texts | None = None,
    kernel: Kernel | None = None,
    **kwargs: Any,  # noqa: ANN401  # the library's own arguments
) -> tuple[Tensor, None]:
    if packing is None:
        raise UnsupportedModelError("its layers do not hand on what its attention needs to know")
    if kwargs.get("position_bias") is not None:
        raise UnsupportedModelError("its attention has a bias for each pair of positions of the whole sequence")
    rule = attention_mask
    masks = {group.length: None if rule is None else rule.build_mask(group.length) for group in packing.layout}
    # What a mask would say beyond the direction, such as a window, the kernel is not told.
    if kernel is not None and all(mask is None for mask in masks.values()) and kwargs.get("softcap") is None:
        stated = kwargs.get("is_causal")
        causal = bool(getattr(module, "is_causal", True) if stated is None else stated)
        flat = [states[0].transpose(0, 1) for states in (query, key, value)]
        scale = kwargs.get("scaling")
        return kernel(flat[0], flat[1], flat[2], packing, causal=causal, scale=scale).unsqueeze(0), None
    parts = []
    for group in packing.layout:
        spread = [
            torch.unflatten(states[0, :, group.start : group.stop], 1, (group.n_texts, group.length)).transpose(0, 1)
            for states in (query, key, value)
        ]
        attended, _ = sdpa_attention_forward(module, spread[0], spread[1], spread[2], masks[group.length], **kwargs)
        parts.append(attended.flatten(0, 1))
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    return joined.unsqueeze(0), None


AttentionInterface.register(_ATTENTION, _attend_by_group)
AttentionMaskInterface.register(_ATTENTION, _keep_mask_rule)


def load_model(directory: Path, *, dtype: torch.dtype, device: torch.device, attention: str = "") -> PreTrainedModel:
    """
    Load a transformer in its plain form.

    Args:
        directory: The transformer's own files.

        dtype: The precision of its weights; what it computes once at load (rotary frequencies) stays in float32.

        device: Where it computes.

        attention: The direction that a profile states, against the model's own configuration; empty: the model's own.

    Returns:
        The model, ready to run, with torch's own attention.

    Raises:
        UnsupportedModelError: Its weights are not all there in the names that this class of model has.
    """
    config: Any = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    set_attention(config, attention)
    config.use_cache = False
    with quiet():
        # With the report asked for, transformers gives a pair.
        loaded: Any = AutoModel.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    model: PreTrainedModel
    model, report = loaded
    # Tokens are pooled here; a pooler's weights are never used.
    if missing := sorted(key for key in report["missing_keys"] if "pooler." not in key):
        raise UnsupportedModelError(f"its weights lack {missing[0]}")
    placed: Any = model.eval()  # type: ignore[no-untyped-call]
    model = placed.to(device)
    return model


def find_position_offset(model: nn.Module) -> int:
    """Find where *model* starts to number positions: after its padding id in RoBERTa's family, 0 in every other."""
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return padding + 1
    return 0


class TransformersNetwork:
    """
    Run a transformer of the library without padding.

    Args:
        model: What `load_model` gave; from now on it belongs to this network.

        layout: "packed" is one flat sequence; "grouped" works for every architecture, but computes short groups alone.

        kernel: Computes attention; None: by groups of equal length.
    """

    def __init__(self, model: PreTrainedModel, *, layout: Layout, kernel: Kernel | None = None) -> None:
        self._model = model
        self._kernel = kernel
        self._packed = layout == "packed"
        self._offset = find_position_offset(model)
        if self._packed:
            if not self._model.is_backend_compatible():  # type: ignore[no-untyped-call]
                raise UnsupportedModelError("its attention does not go through transformers' interface")
            self._model.set_attn_implementation(_ATTENTION)

    @property
    def n_known(self) -> int:
        """How many different tokens the weights know."""
        embeddings: Any = self._model.get_input_embeddings()
        return int(embeddings.weight.shape[0])

    def hidden(self, ids: Tensor, layout: Sequence[Group]) -> Tensor:
        """Run the model; see `Network`."""
        device = self._model.device
        if not self._packed:
            ids = send(ids, device)
            return torch.cat([self._run_group(ids, group) for group in layout])
        positions = build_positions(ids, layout, offset=self._offset)
        ids, positions = send(torch.stack([ids, positions]), device)
        out = self._model(
            input_ids=ids.unsqueeze(0),
            # A mask is given although it says nothing: without one, the library looks for packed texts by itself.
            attention_mask=torch.ones_like(ids).unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            packing=build_texts(layout, device),
            kernel=self._kernel,
        )
        hidden: Tensor = out.last_hidden_state
        return hidden.squeeze(0)

    def _run_group(self, ids: Tensor, group: Group) -> Tensor:
        rows = ids[group.start : group.stop].view(group.n_texts, group.length)
        hidden: Tensor = self._model(input_ids=rows, attention_mask=torch.ones_like(rows)).last_hidden_state
        return hidden.flatten(0, 1)


def run_padded(model: PreTrainedModel, rows: Sequence[Tensor]) -> list[Tensor]:
    """
    Run texts as everybody does, padded to the longest: the reference for every other way.

    Args:
        model: What `load_model` gave, before a network took it.

        rows: The ids of each text.

    Returns:
        For each text its hidden states, shape (length, n_hidden).
    """
    config: Any = model.config
    padding = getattr(config, "pad_token_id", None) or 0
    ids = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=padding)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_value=0)
    hidden = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).last_hidden_state
    return [states[: len(row)] for states, row in zip(hidden, rows, strict=True)]
