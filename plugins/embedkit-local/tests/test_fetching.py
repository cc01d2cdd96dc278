"""A hub model is fetched with progress; what cannot be fetched says how to mend it. A server on loopback is the hub."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from embedkit_local.fetching import fetch, is_needed
from embedkit_local.options import LocalOptions

from embedkit.errors import ModelLoadError

COMMIT = "abcdef0123456789abcdef0123456789abcdef01"


class Handler(BaseHTTPRequestHandler):
    """Answer as the hub does for the one repository owner/tiny."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Keep quiet."""

    def do_HEAD(self):
        """Answer without the content."""
        self.answer()

    def do_GET(self):
        """Answer with the content."""
        self.answer()

    def answer(self):
        """List the repository's files, give one of them, or say in the hub's way that it is not there."""
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0]
        listing = re.fullmatch(rf"/api/models/owner/tiny(/revision/(main|{COMMIT}))?", path)
        file = re.fullmatch(rf"/owner/tiny/resolve/(?:main|{COMMIT})/(.+)", path)
        if listing:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in self.server.files.items()]
            body = json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}).encode()
            self.send(200, body, {"Content-Type": "application/json"})
        elif file and file.group(1) in self.server.files:
            body = self.server.files[file.group(1)]
            self.send(200, body, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            code = "RevisionNotFound" if "/owner/tiny" in path else "RepoNotFound"
            self.send(404, b"{}", {"X-Error-Code": code})

    def send(self, status, body, headers):
        """Write an answer."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def serve(directory):
    """Serve a directory as the hub serves a repository; gives the address, and what was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def repository(make_bert):
    """A tiny model with files that are not needed."""
    directory = make_bert()
    for name in (
        "pytorch_model.bin",
        "onnx/model.onnx",
        "onnx/config.json",
        "modeling.py",
        "README.md",
        ".gitattributes",
    ):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(b"x" * 1000)
    return directory


def run(code, endpoint, *, lines="", **environ):
    """Run a program whose hub is *endpoint*: huggingface_hub reads its variables at import."""
    environ = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", **environ}
    return subprocess.run(
        [sys.executable, "-c", code], input=lines, capture_output=True, text=True, check=False, env=environ, timeout=120
    )


PULL_AND_EMBED = """
import os
from embedkit.profile import Profile
from embedkit_local.plugin import fetch_local, identify_local, load_local
from embedkit_local.options import LocalOptions
profile, options = Profile(model="owner/tiny", device="cpu"), LocalOptions()
assert identify_local(profile, options) is None
steps = list(fetch_local(profile, options))
assert len({step.total_bytes for step in steps}) == 1
assert steps[0].n_bytes == 0 and steps[-1].n_bytes == steps[-1].total_bytes
assert [step.n_bytes for step in steps] == sorted(step.n_bytes for step in steps)
space = identify_local(profile, options)
backend = load_local(profile, options)
assert backend.space == space
(batch,) = backend.encode(["a b"], role="document")
assert batch.vectors.shape == (1, 32)
print(space.revision)
"""


def test_pulled_model_is_identified_and_embeds(repository):
    """Only what is needed is fetched, and the commit is remembered."""
    with serve(repository) as (endpoint, asked):
        done = run(PULL_AND_EMBED, endpoint)
    assert COMMIT == done.stdout.strip(), done.stderr
    fetched = [path.rpartition("/resolve/")[2].partition("/")[2] for path in asked if "/resolve/" in path]
    # Until they are there the model counts as not fetched, so they come last.
    assert "model.safetensors" == fetched[-1]
    assert {"model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"} <= set(fetched)
    assert not {"pytorch_model.bin", "onnx/model.onnx", "modeling.py", "README.md"} & set(fetched)


LOAD = """
from embedkit.profile import Profile
from embedkit.errors import EmbedkitError
from embedkit_local.plugin import load_local
from embedkit_local.options import LocalOptions
import sys
revision = sys.argv[1] if len(sys.argv) > 1 else None
try:
    print(load_local(Profile(name="mine", model="owner/tiny", device="cpu"), LocalOptions()).space.revision)
except EmbedkitError as error:
    print(type(error).__name__, str(error))
"""


def test_loading_fetches_once_and_then_needs_no_network(repository):
    """The second process loads with the server gone. Nothing is fetched silently: somebody may have meant another."""
    said = "owner/tiny (profile mine) is not on this machine: fetching"
    with serve(repository) as (endpoint, _):
        first = run(LOAD, endpoint)
    second = run(LOAD, endpoint)
    assert [COMMIT, COMMIT] == [first.stdout.strip(), second.stdout.strip()]
    assert [1, 0] == [first.stderr.count(said), second.stderr.count(said)]


def test_pulling_again_without_a_network_is_no_failure(repository):
    """What is here stays: a pinned commit is not even asked for, and for a branch a warning is logged."""
    with serve(repository) as (endpoint, asked):
        run(FETCH, endpoint, lines="owner/tiny main\n")
        n_asked = len(asked)
        done = run(FETCH, endpoint, lines=f"owner/tiny {COMMIT}\n")
        assert (0, "", n_asked) == (done.returncode, done.stdout, len(asked)), done
    done = run(FETCH, endpoint, lines="owner/tiny main\n")
    assert (0, "") == (done.returncode, done.stdout), done
    assert "owner/tiny is here" in done.stderr


def test_offline_without_the_model_names_the_variable(repository):
    """HF_HUB_OFFLINE is named, and the mend; no traceback. Fault 70."""
    done = run(LOAD, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert done.stdout.startswith("ModelLoadError The model 'owner/tiny' is not on this machine, and HF_HUB_OFFLINE"), (
        done
    )
    assert "embedkit pull mine" in done.stdout


def test_hub_out_of_reach_says_how_to_mend_it():
    """Nobody listens. Fault 70."""
    done = run(LOAD, "http://127.0.0.1:9")
    assert "the hub cannot be reached" in done.stdout, done
    assert "embedkit pull mine" in done.stdout


FETCH = """
import sys
from embedkit.errors import EmbedkitError
from embedkit_local.fetching import fetch
from embedkit_local.options import LocalOptions
for model, revision in [line.split() for line in sys.stdin]:
    try:
        list(fetch(model, LocalOptions(revision=revision)))
    except EmbedkitError as error:
        print(type(error).__name__, error.problem)
"""


def test_absent_model_and_absent_revision_are_told_apart(repository):
    """The hub has two kinds of 404."""
    with serve(repository) as (endpoint, _):
        done = run(FETCH, endpoint, lines="owner/absent main\nowner/tiny absent\n")
    first, second = done.stdout.splitlines()
    assert first.startswith("ModelLoadError The hub has no model 'owner/absent'"), done
    assert second.startswith("ModelLoadError The model 'owner/tiny' has no such revision"), done


def test_closing_stops_the_download(repository):
    """Whoever stops listening is not kept waiting for the rest, and the weights are not kept as if they were whole."""
    code = """
import sys
from embedkit_local.fetching import fetch
from embedkit_local.options import LocalOptions
steps = fetch("owner/tiny", LocalOptions(), poll_s=0.01)
next(steps)
steps.close()
from embedkit.profile import Profile
from embedkit_local.plugin import identify_local
print(identify_local(Profile(model="owner/tiny"), LocalOptions()))
"""
    with serve(repository) as (endpoint, _):
        done = run(code, endpoint)
    assert "None" == done.stdout.strip(), done.stderr


def test_model_with_pickle_weights_only_is_not_fetched(repository):
    """It is refused before anything is downloaded. Fault 73."""
    (repository / "model.safetensors").unlink()
    with serve(repository) as (endpoint, asked):
        done = run(FETCH, endpoint, lines="owner/tiny main\n")
    assert done.stdout.startswith("ModelLoadError The model 'owner/tiny' has no safetensors"), done
    assert not [path for path in asked if "/resolve/" in path]


def test_directory_and_package_have_nothing_to_fetch(repository):
    """The hub is not asked; a directory that is not there is still an error. Fault 69."""
    assert [] == list(fetch(str(repository), LocalOptions()))
    assert [] == list(fetch("package:json/", LocalOptions()))
    with pytest.raises(ModelLoadError, match="does not exist"):
        list(fetch("./nodir", LocalOptions()))


@pytest.mark.parametrize(
    ("name", "with_code", "needed"),
    [
        ("model.safetensors", False, True),
        ("model-00001-of-00002.safetensors", False, True),
        ("model.safetensors.index.json", False, True),
        ("2_Dense/model.safetensors", False, True),
        ("model.fp16.safetensors", False, False),
        ("pytorch_model.bin", False, False),
        ("onnx/model_quantized.onnx", False, False),
        ("openvino/openvino_config.json", False, False),
        ("spiece.model", False, True),
        ("vocab.txt", False, True),
        ("modeling.py", False, False),
        ("modeling.py", True, True),
        (".gitattributes", False, False),
        ("README.md", False, False),
    ],
)
def test_only_needed_files_are_fetched(name, with_code, needed):
    """Weights in one format, tokenizer, configuration; code only where it is trusted. Fault 73."""
    assert needed == is_needed(name, with_code=with_code)
