"""A project of toy profiles, a stranger's plugin that serves them, and three ways to run the command line."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner

from embedkit.cli.main import run
from embedkit.config import read_plugin_settings, read_variables
from embedkit.registry import build_registry

PROFILES = """
default = "small"

[profiles.small]
description = "Sixteen numbers"
provider = "toy"
model = "words"
dimensions = 16
batch_size = 4

[profiles.twin]
description = "The same space, other batches"
provider = "toy"
model = "words"
dimensions = 16
batch_size = 8

[profiles.large]
provider = "toy"
model = "words"
dimensions = 32
query_prompt = "query: "
reranker = "longest"

[profiles.other]
provider = "toy"
model = "other words"
dimensions = 16

[profiles.blind]
provider = "blind"
model = "unseen"

[profiles.damaged]
provider = "damaged"
model = "half of it"

[profiles.fetched]
provider = "fetched"
model = "far away"

[profiles.absent]
provider = "absent"
model = "nobody"

[profiles.buggy]
provider = "buggy"
model = "divided"

[profiles.secretive]
provider = "secretive"
model = "hidden"

[profiles.secretive.options]
api_key_env = "SHOP_KEY"
base_url = "https://user:hunter2@shop.example/v1"

[rerankers.longest]
provider = "longest"
model = "ruler"

[providers.absent]
install = "python -m pip install toy-absent"
"""

PLUGIN = '''
"""A stranger's plugin."""
import os
import time

import attrs
import numpy as np
from embedkit import hookimpl
from embedkit.errors import ModelLoadError, RateLimitError
from embedkit.options import Secret, option
from embedkit.protocols import FetchProgress, Provider, RerankProvider
from embedkit.testing import toy_provider


@attrs.frozen(kw_only=True)
class NoOptions:
    pass


@attrs.frozen(kw_only=True)
class SecretOptions:
    api_key_env: Secret = option(help="variable of the key", belongs_to="connection")
    base_url: str = option(help="address of the server", default="", belongs_to="connection")
    timeout_s: float = option(help="seconds to wait", default=30.0, belongs_to="connection")


def hold_up():
    time.sleep(float(os.environ.get("TOY_DELAY_S", "0")))


n_batches = 0


def fail_late():
    global n_batches
    n_batches += 1
    if n_batches == 7:
        raise RateLimitError("The quota is used up.", hint="wait until tomorrow")


def refuse(profile, options):
    raise ModelLoadError("The weights are damaged.")


def divide(profile, options):
    return 1 / 0


def fetch(profile, options):
    for n_bytes in (0, 400_000, 1_200_000):
        yield FetchProgress(n_bytes=n_bytes, total_bytes=1_200_000)


class Longest:
    device, scores = "cpu", "logits"

    def score(self, query, documents):
        return np.array([len(document) for document in documents], np.float32)

    def close(self):
        pass


@hookimpl
def embedkit_providers():
    toy = toy_provider(before_batch=hold_up)
    return [
        toy,
        attrs.evolve(
            toy_provider(name="blind"),
            identify=lambda profile, options: None,
            describe=lambda profile, options: ["packed, float32", "not bfloat16: it does not agree"],
        ),
        attrs.evolve(toy_provider(name="fetched"), fetch=fetch),
        attrs.evolve(toy_provider(name="here"), fetch=lambda profile, options: iter(())),
        attrs.evolve(toy_provider(name="damaged"), identify=refuse, describe=refuse),
        toy_provider(name="tired", before_batch=fail_late),
        attrs.evolve(toy, name="buggy", load=divide),
        Provider(name="plain", summary="has no options", options=NoOptions, load=divide),
        Provider(name="secretive", summary="keeps a secret", options=SecretOptions, load=divide),
    ]


@hookimpl
def embedkit_rerankers():
    return [RerankProvider(name="longest", summary="by length", options=NoOptions, load=lambda *_: Longest())]
'''


@attrs.frozen
class Result:
    """Hold what a command line gave."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self):
        """What stands on stdout, as JSON."""
        return json.loads(self.stdout)


def install(folder, name, source, version="1.0"):
    """Put a distribution with one module and one entry point into a folder, as an installer would."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    information = folder / f"{module}-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
    )
    (information / "entry_points.txt").write_text(f"[embedkit]\n{name} = {module}\n", encoding="utf-8")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """Give a folder with the stranger's plugin."""
    folder = tmp_path_factory.mktemp("stranger")
    install(folder, "toy-stranger", PLUGIN)
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch, stranger):
    """Stand in a project of its own, with the stranger's plugin and no other, and no variable of ours."""
    for variable in list(os.environ):
        if variable.startswith(
            ("EMBEDDING_", "EMBEDKIT_", "ENABLE_RERANKER", "SHOP_KEY", "_EMBEDKIT", "PYTHONUNBUFFERED")
        ):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("EMBEDKIT_PLUGINS", "toy-stranger")
    monkeypatch.setenv("PYTHONPATH", str(stranger), prepend=os.pathsep)
    monkeypatch.syspath_prepend(stranger)
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "profiles.toml").write_text(PROFILES, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def call(project):
    """Run a command line in this process."""

    def run_here(*arguments, stdin=""):
        settings = read_plugin_settings(read_variables())
        with CliRunner().isolation(input=stdin) as (stdout, stderr, _):
            code = run(arguments, registry=build_registry(entry_points(group="embedkit"), settings))
        return Result(code, stdout.getvalue().decode(), stderr.getvalue().decode())

    return run_here


@pytest.fixture
def launch(project):
    """Run a command line in a process of its own."""

    def run_there(*arguments, stdin="", **environ):
        done = subprocess.run(
            [sys.executable, "-m", "embedkit", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=os.environ | environ,
            timeout=60,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run_there


class Terminal:
    """A process on a terminal of 80 columns: what it shows, and a hand that types."""

    def __init__(self, arguments, environ, stdout=None):
        import fcntl
        import pty
        import struct
        import termios

        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "embedkit", *arguments],
            stdin=slave,
            stdout=stdout or slave,
            stderr=slave,
            env=environ,
        )
        os.close(slave)
        self.text = ""

    @property
    def plain(self):
        """What is shown, without what steers the terminal."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text)

    def wait_for(self, expected, timeout_s=30):
        """Read until a text appears."""
        deadline = time.monotonic() + timeout_s
        while expected not in self.plain:
            assert time.monotonic() < deadline, f"{expected!r} did not appear in: {self.text}"
            assert self._read(), f"the process ended without {expected!r}: {self.text}"

    def type(self, text):
        """Type a line."""
        os.write(self._master, f"{text}\n".encode())

    def interrupt(self):
        """Send what Ctrl-C sends."""
        self._process.send_signal(signal.SIGINT)

    def interrupt_until_gone(self):
        """Press Ctrl-C again and again: one that comes just before a process reads a line is seen only after it."""
        while self._process.poll() is None:
            self.interrupt()
            patience = time.monotonic() + 3
            while self._read() and time.monotonic() < patience:
                pass

    def finish(self, timeout_s=60):
        """Read to the end, and give the exit code."""
        deadline = time.monotonic() + timeout_s
        while self._read():
            assert time.monotonic() < deadline, f"the process did not end: {self.text}"
        return self._process.wait(timeout=30)

    def close(self):
        """Leave nothing behind."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(timeout=30)
        os.close(self._master)

    def _read(self):
        ready, _, _ = select.select([self._master], [], [], 0.5)
        if not ready:
            return self._process.poll() is None
        try:
            chunk = os.read(self._master, 65536)
        except OSError:  # Linux says so when the other side is closed
            return False
        self.text += chunk.decode(errors="replace").replace("\r\n", "\n")
        return bool(chunk)


@pytest.fixture
def terminal(project):
    """Run a command line on a terminal."""
    pytest.importorskip("pty", reason="this machine has no pseudo-terminals")
    opened = []

    def open_terminal(*arguments, stdout=None, **environ):
        defaults = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        opened.append(Terminal(arguments, defaults | {"TERM": "xterm-256color"} | environ, stdout))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


@pytest.fixture
def write(project):
    """Write a file of the project."""

    def write_file(name, text):
        path = project / Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
        return path

    return write_file
