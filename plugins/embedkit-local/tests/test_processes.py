"""The ways in which services start their workers: each gives right vectors, and none hangs."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.weights

SPAWN_POOL = """
import multiprocessing
import numpy as np
import embedkit

TEXTS = [f"text number {number} of the pool" for number in range(8)]

def embed(text):
    return embedkit.get_embedder("mini").embed_documents([text]).vectors[0]

if __name__ == "__main__":
    expected = embedkit.get_embedder("mini").embed_documents(TEXTS).vectors
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = np.stack(pool.map(embed, TEXTS))
    print("nearest cosine", (expected * found).sum(axis=1).min().round(4))
"""

PRELOADED_WORKERS = """
import os
import sys
import numpy as np
import embedkit

texts = ["the master loads", "the workers fork", "each answers"]
embedder = embedkit.get_embedder("mini").load()
if sys.argv[1] == "used":
    embedder.embed_documents(texts * 20)
expected = embedder.embed_documents(texts).vectors if sys.argv[1] == "used" else None
workers = []
for _ in range(2):
    reader, writer = os.pipe()
    if (worker := os.fork()) == 0:
        os.write(writer, embedkit.get_embedder("mini").embed_documents(texts).vectors.tobytes())
        os._exit(0)
    workers.append((worker, reader))
for worker, reader in workers:
    content = b""
    while len(content) < 3 * 384 * 4:
        content += os.read(reader, 65536)
    assert os.waitpid(worker, 0)[1] == 0
    found = np.frombuffer(content, np.float32).reshape(3, 384)
    expected = embedder.embed_documents(texts).vectors if expected is None else expected
    print("nearest cosine", (expected * found).sum(axis=1).min().round(4))
"""


def run(tmp_path, program, *arguments):
    """Run a program in a process of its own, with two threads; a hang is a failure after two minutes."""
    path = tmp_path / "program.py"
    path.write_text(program, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(path), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout.splitlines()


def test_a_spawn_pool_gives_the_vectors_of_one_process(tmp_path):
    """Each process loads for itself. Fault 80."""
    assert ["nearest cosine 1.0"] == run(tmp_path, SPAWN_POOL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("master", ["loaded", "used"])
def test_workers_of_a_master_that_preloaded_give_right_vectors(tmp_path, master):
    """As with gunicorn's `preload_app`: the master has loaded, or also embedded, when the workers fork. Fault 80."""
    assert ["nearest cosine 1.0"] * 2 == run(tmp_path, PRELOADED_WORKERS, master)
