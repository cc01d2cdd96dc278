"""What applications call: embedders that are shared, rerankers, and lists of what is declared and installed."""

from __future__ import annotations

import gc
import importlib.metadata
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from embedkit.api import get_embedder, get_reranker, list_profiles, list_providers, prepare
from embedkit.config import read_config
from embedkit.embedder import Embedder
from embedkit.errors import (
    BackendError,
    BrokenPluginError,
    ConfigError,
    DuplicateProviderError,
    SettingError,
    UnknownProfileError,
    UnknownProviderError,
)
from embedkit.profile import Profile
from embedkit.registry import build_registry
from embedkit.reranker import Ranked

ROOT = Path(__file__).resolve().parents[1]

PLUGIN = """
import attrs
import numpy as np
from embedkit import hookimpl
from embedkit.options import Secret, option
from embedkit.protocols import Provider, RerankProvider
from embedkit.testing import toy_provider

LOADED = []  # the profile of each backend
TOY = toy_provider()


@attrs.frozen(kw_only=True)
class Options:
    revision: str = option(help="of the model", default="main")
    key_env: Secret | None = option(help="a secret", default=None, belongs_to="connection")


def load(profile, options):
    LOADED.append(profile)
    return TOY.load(profile, TOY.options())


class Judge:
    device, scores = "cpu", "logits"

    def __init__(self, profile, options):
        LOADED.append(profile)
        self.options = options

    def score(self, query, documents):
        return np.array([document.count(self.options.revision) for document in documents], np.float32)

    def close(self):
        pass


@hookimpl
def embedkit_providers():
    return [Provider(name=name, summary=f"for tests: {name}", options=Options, load=load) for name in NAMES]


@hookimpl
def embedkit_rerankers():
    return [RerankProvider(name="judge", summary="for tests", options=Options, load=Judge)]
"""

TOY = """
from embedkit import hookimpl
from embedkit.testing import toy_provider

LOADED = []

@hookimpl
def embedkit_providers():
    return [toy_provider(dimensions={dimensions})]
"""

TOML = """
default = "one"

[profiles.one]
provider = "toy"
model = "m"

[profiles.one.options]
key_env = "TOY_KEY"

[profiles.two]
provider = "toy"
model = "n"
reranker = "letters"

[profiles.absent]
provider = "openai"
model = "m"

[profiles.bad]
provider = "bad"
model = "m"

[profiles.same]
provider = "same"
model = "m"

[rerankers.letters]
provider = "judge"
model = "m"

[rerankers.letters.options]
revision = "e"

[rerankers.nobodys]
provider = "nobody"
model = "m"
"""

_numbers = itertools.count()


def write_plugin(folder, *names, distribution="embedkit-toy", entry="toy", code=None):
    """Write a distribution with one plugin that offers providers of these names; give its module's name."""
    module = f"api_plugin_{next(_numbers):03}"
    (folder / f"{module}.py").write_text(code or f"NAMES = {names!r}\n{PLUGIN}", encoding="utf-8")
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[embedkit]\n{entry} = {module}\n", encoding="utf-8")
    return module


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Give a folder on the path with a plugin that works."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    write_plugin(folder, "toy")
    yield folder
    for name in set(sys.modules) - before:
        if name.startswith("api_plugin_"):
            del sys.modules[name]


@pytest.fixture
def project(tmp_path):
    """Give a project's root with profiles."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "profiles.toml").write_text(TOML, encoding="utf-8")
    return root


@pytest.fixture
def given(site, project):
    """Give a function that reads the project's configuration and what is installed, as arguments."""
    registries = []

    def read(**environ):
        if not registries:
            found = importlib.metadata.distributions(path=[str(site)])
            registries.append(build_registry([point for one in found for point in one.entry_points]))
        return {"config": read_config(environ=environ, directory=project), "registry": registries[0]}

    return read


def loaded():
    """Give the profiles of all backends that the plugins of this test loaded."""
    return [
        profile for name, module in sys.modules.items() if name.startswith("api_plugin_") for profile in module.LOADED
    ]


def run(script, *, cwd, site, **environ):
    """Run *script* in a process of its own, where the plugins in *site* are installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EMBED", "ENABLE"))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        # Other plugins may be installed beside the tests.
        env={**kept, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "EMBEDKIT_PLUGINS": "toy", **environ},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return done


# Shared embedders


def test_equal_settings_give_the_same_embedder(given):
    """A web service may ask for it with every request; where a value was stated does not count."""
    with get_embedder(**given()) as first:
        with get_embedder("one", **given()) as second, get_embedder(**given(EMBEDDING_BATCH_SIZE="256")) as third:
            assert first is second is third
        assert [] == loaded()
        assert (2, 64) == first.embed_documents(["a", "b"]).vectors.shape
    assert ["one"] == [profile.name for profile in loaded()]


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        ({"profile": "two"}, {}),
        ({"device": "cuda"}, {}),
        ({}, {"EMBEDDING_BATCH_SIZE": "7"}),
        ({}, {"EMBEDDING_MODEL": "other"}),
        ({}, {"TOY_KEY": "another secret"}),
        ({"profile": Profile(provider="toy", model="m", options={"revision": "v2"})}, {}),
    ],
    ids=["profile", "device", "batch size", "model", "secret", "options"],
)
def test_other_settings_give_another_embedder(given, arguments, environ):
    """Device, options and the secret itself count among them."""
    with get_embedder(**given(TOY_KEY="secret")) as first:
        with get_embedder(
            **{**given(TOY_KEY="secret"), **given(**{"TOY_KEY": "secret", **environ}), **arguments}
        ) as other:
            assert first is not other
        with get_embedder(**given(TOY_KEY="secret")) as again:
            assert first is again


def test_another_provider_of_the_same_name_gives_another_embedder(given, site):
    """Two registries in one process, as tests have them, do not get each other's vectors."""
    registries = []
    for dimensions in (8, 16):
        code = TOY.format(dimensions=dimensions)
        module = write_plugin(site, distribution=f"embedkit-{dimensions}", code=code)
        registries.append(build_registry([importlib.metadata.EntryPoint("toy", module, "embedkit")]))
    profile, config = Profile(provider="toy", model="m"), given()["config"]
    with (
        get_embedder(profile, config=config, registry=registries[0]) as first,
        get_embedder(profile, config=config, registry=registries[1]) as second,
    ):
        assert (8, 16) == (first.space.dimensions, second.space.dimensions)


def test_closed_embedders_are_forgotten(given):
    """A process that goes through many profiles does not keep them all."""
    embedder = get_embedder(**given())
    closed = weakref.ref(embedder)
    embedder.close()
    del embedder
    with get_embedder("two", **given()):
        gc.collect()
        assert closed() is None


def test_a_profile_made_in_code_is_taken_as_it_is(given):
    """No variable changes it, and it need not be declared; only the call's own device stands above it."""
    profile = Profile(provider="toy", model="x", dimensions=8)
    environ = {"EMBEDDING_MODEL": "y", "EMBEDDING_DEVICE": "cuda", "EMBEDDING_PROFILE": "unheard"}
    with get_embedder(profile, **given(**environ)) as embedder:
        assert profile is embedder.profile
        assert (1, 8) == embedder.embed_queries(["a"]).vectors.shape
    with get_embedder(profile, device="cpu", **given()) as embedder:
        assert attrs.evolve(profile, device="cpu") == embedder.profile
        assert "the call" == str(embedder.profile.origins["device"])


def test_a_secret_of_a_profile_made_in_code_is_read_too(given):
    """Its options name variables like those in a file."""
    profile = Profile(provider="toy", model="x", options={"key_env": "TOY_KEY"})
    assert "s" == prepare(profile, **given(TOY_KEY="s")).options.key_env.reveal()


def test_the_model_is_given_back_with_the_last_hold(given):
    """Fault 88. Whoever asks afterwards gets a new one, and the old one says that it was closed."""
    first = get_embedder(**given())
    second = get_embedder(**given())
    first.close()
    assert (1, 64) == second.embed_documents(["a"]).vectors.shape
    second.close()
    with pytest.raises(BackendError, match="was closed"):
        first.embed_documents(["a"])
    with get_embedder(**given()) as third:
        assert third is not first
        third.embed_documents(["a"])
    assert 2 == len(loaded())


def test_32_threads_get_one_embedder_and_load_one_model(given):
    """Fault 81."""
    together = threading.Barrier(32)
    arguments = given()

    def work(number):
        together.wait()
        embedder = get_embedder(**arguments)
        return embedder, embedder.embed_query(f"text {number % 4}").tobytes()

    with ThreadPoolExecutor(32) as pool:
        embedders, vectors = zip(*pool.map(work, range(32)), strict=True)
    assert (1, 4, 1) == (len(set(embedders)), len(set(vectors)), len(loaded()))
    for embedder in embedders:
        assert not embedder.closed
        embedder.close()
    assert embedders[0].closed


def test_settings_are_read_anew_by_each_call(project, site):
    """An edited file counts from the next call on, in a process that goes on running."""
    script = """
import pathlib, embedkit
first = embedkit.get_embedder()
path = pathlib.Path("profiles.toml")
path.write_text(path.read_text(encoding="utf-8").replace('model = "m"', 'model = "new"', 1), encoding="utf-8")
print(first.profile.model, embedkit.get_embedder().profile.model, first is embedkit.get_embedder())
"""
    assert "m new False\n" == run(script, cwd=project, site=site).stdout


def test_nothing_but_the_working_directory_and_the_environment_is_needed(project, site):
    """The six lines that a program begins with; also from 32 threads at once, which read plugins and files."""
    script = """
import concurrent.futures, sys, embedkit
with concurrent.futures.ThreadPoolExecutor(32) as pool:
    found = list(pool.map(lambda _: embedkit.get_embedder(), range(32)))
print(len(set(found)), found[0].embed_documents(["a", "b"]).vectors.shape)
plugin = next(module for name, module in sys.modules.items() if name.startswith("api_plugin_"))
print(len(plugin.LOADED), [provider.name for provider in embedkit.list_providers()])
"""
    assert "1 (2, 64)\n1 ['toy']\n" == run(script, cwd=project, site=site).stdout


def test_the_allow_list_of_an_env_file_is_honoured(project, site):
    """Fault 30. Also by the process's own registry."""
    (project / ".env").write_text("EMBEDKIT_PLUGINS=other\n", encoding="utf-8")
    script = "import os, embedkit; del os.environ['EMBEDKIT_PLUGINS']; print(embedkit.list_providers())"
    assert "[]\n" == run(script, cwd=project, site=site).stdout
    (project / ".env").write_text("EMBEDKIT_PLUGINS=other,toy\n", encoding="utf-8")
    assert "for tests: toy" in run(script, cwd=project, site=site).stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_gets_an_embedder_although_the_lock_was_held(project, site):
    """Fault 80. A lock that another thread of the parent holds at the fork is never released in the child."""
    script = """
import os, signal, embedkit
from embedkit import api
parent = embedkit.get_embedder()
expected = parent.embed_query("a").tobytes()
with api._state.lock:
    child = os.fork()
    if child == 0:
        code = 1
        signal.alarm(20)  # a child that hangs ends by itself
        try:
            code = 0 if embedkit.get_embedder().embed_query("a").tobytes() == expected else 2
        finally:
            os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), embedkit.get_embedder() is parent)
"""
    assert "0 True\n" == run(script, cwd=project, site=site).stdout


# What goes wrong


def test_an_unknown_profile_or_a_wrong_setting_is_a_config_error(given):
    """Faults 6, 8 and 10."""
    with pytest.raises(UnknownProfileError):
        get_embedder("unheard", **given())
    with pytest.raises(SettingError, match="EMBEDDING_BATCH_SIZE"):
        get_embedder(**given(EMBEDDING_BATCH_SIZE="lots"))
    with pytest.raises(SettingError, match="'revison' is no known setting"):
        get_embedder(Profile(provider="toy", model="m", options={"revison": "x"}), **given())


def test_a_provider_that_is_not_installed_is_told_with_its_command(given, project):
    """Fault 27. The command stands in profiles.toml; the error says which table names the provider."""
    with pytest.raises(UnknownProviderError) as caught:
        get_embedder("absent", **given())
    assert f"{project / 'profiles.toml'} [profiles.absent]" == caught.value.origin
    assert caught.value.hint.startswith("python -m pip install -e plugins/embedkit-openai; ")


def test_a_broken_or_doubled_provider_harms_only_who_asks_for_it(given, site):
    """Faults 26 to 28."""
    write_plugin(site, distribution="embedkit-bad", entry="bad", code="1 / 0")
    for name in ("left", "right"):
        write_plugin(site, "same", distribution=f"embedkit-{name}", entry=name)
    with get_embedder(**given()) as embedder:
        assert (1, 64) == embedder.embed_documents(["a"]).vectors.shape
    with pytest.raises(BrokenPluginError, match=r"embedkit-bad 1\.0 could not be loaded: ZeroDivisionError"):
        get_embedder("bad", **given())
    with pytest.raises(
        DuplicateProviderError, match=r"embedkit-left 1\.0 \(as left\), embedkit-right 1\.0 \(as right\)"
    ):
        get_embedder("same", **given())


def test_a_warning_is_logged_once_in_a_process(given, project, caplog):
    """Fault 11. Not with every request; a new one is logged."""
    (project / ".env").write_text("EMBEDDING_BATCHSIZE=1\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="embedkit"):
        for _ in range(3):
            prepare(**given())
        (project / ".env").write_text("EMBEDDING_BATCHSIZE=1\nEMBEDDING_DEVICES=1\n", encoding="utf-8")
        get_reranker("two", **given())
    said = [record.getMessage().split()[0] for record in caplog.records if record.name == "embedkit"]
    assert ["EMBEDDING_BATCHSIZE", "EMBEDDING_DEVICES"] == said


# Lists


def test_profiles_are_listed_with_the_state_of_their_provider(given, site, project):
    """Whether each can be used, and what mends it where it cannot."""
    write_plugin(site, distribution="embedkit-bad", entry="bad", code="1 / 0")
    for name in ("left", "right"):
        write_plugin(site, "same", distribution=f"embedkit-{name}", entry=name)
    listed = {one.profile.name: one for one in list_profiles(**given())}
    names = ["absent", "bad", "mini", "one", "openai-small", "quality", "same", "speed", "two"]
    assert names == list(listed)
    states = {"absent": "not installed", "bad": "broken", "same": "clash", "one": "installed", "mini": "not installed"}
    assert states == {name: listed[name].provider_state for name in states}
    assert ("python -m pip install -e plugins/embedkit-openai", "") == (listed["absent"].hint, listed["one"].hint)
    assert listed["bad"].hint.startswith("The plugin 'bad' of embedkit-bad 1.0 could not be loaded")
    assert listed["same"].hint.startswith("Several plugins offer the provider 'same'")
    assert ["one"] == [name for name, one in listed.items() if one.active]
    assert (f"{project / 'profiles.toml'} [profiles.one]", "packaged profiles.toml [profiles.mini]") == (
        listed["one"].declared_in,
        listed["mini"].declared_in,
    )


def test_overrides_show_on_the_active_profile_alone(given):
    """They would apply to whichever is chosen, but only one is."""
    environ = {"EMBEDDING_PROFILE": "two", "EMBEDDING_BATCH_SIZE": "7"}
    listed = {one.profile.name: one for one in list_profiles(**given(**environ))}
    assert (7, 256, True, False) == (
        listed["two"].profile.batch_size,
        listed["one"].profile.batch_size,
        listed["two"].active,
        listed["one"].active,
    )


def test_providers_are_listed_by_name_but_for_those_that_clash(given, site):
    """Only what can be used."""
    write_plugin(site, "zeta", "alpha", distribution="embedkit-more", entry="aaa")
    for name in ("left", "right"):
        write_plugin(site, "same", distribution=f"embedkit-{name}", entry=name)
    listed = list_providers(registry=given()["registry"])
    assert [
        ("alpha", "for tests: alpha", "embedkit-more 1.0"),
        ("toy", "for tests: toy", "embedkit-toy 1.0"),
        ("zeta", "for tests: zeta", "embedkit-more 1.0"),
    ] == [(one.name, one.summary, one.distribution) for one in listed]


def test_lists_work_with_no_plugin_at_all(project):
    """Whoever installs the core alone learns what to install."""
    script = """
import json, embedkit
from embedkit.registry import build_registry
nothing = build_registry([])
listed = {one.profile.name: [one.provider_state, one.hint] for one in embedkit.list_profiles(registry=nothing)}
print(json.dumps([listed["mini"], embedkit.list_providers(registry=nothing)]))
"""
    done = run(script, cwd=project, site=ROOT / "nowhere")
    assert [["not installed", "python -m pip install -e plugins/embedkit-local"], []] == json.loads(done.stdout)


# Rerankers


def test_a_reranker_comes_with_its_own_options_when_it_is_switched_on(given):
    """Nothing is loaded before it ranks."""
    with get_reranker("two", **given(ENABLE_RERANKER="true")) as reranker:
        assert [] == loaded()
        assert [Ranked(1, 2.0), Ranked(0, 1.0)] == reranker.rerank("q", ["he", "see"])
    assert ["letters"] == [profile.name for profile in loaded()]


def test_no_reranker_is_given_unless_it_is_switched_on(given):
    """Nor is its provider looked for."""
    assert get_reranker("two", **given()) is None
    assert get_reranker(Profile(model="m", reranker="nobodys"), **given()) is None


def test_a_profile_made_in_code_may_name_a_reranker(given):
    """Fault 27. A provider of rerankers that is not installed is named with the table that asks for it."""
    environ = {"ENABLE_RERANKER": "1"}
    profile = Profile(provider="toy", model="m", reranker="letters")
    assert "letters" == get_reranker(profile, **given(**environ)).profile.name
    with pytest.raises(UnknownProviderError, match=r"from: .*profiles\.toml \[rerankers\.nobodys\]"):
        get_reranker(attrs.evolve(profile, reranker="nobodys"), **given(**environ))
    with pytest.raises(ConfigError, match="profile 'one' names no reranker"):
        get_reranker(**given(**environ))


def test_the_reranker_of_the_process_needs_no_arguments(project, site):
    """Fault 81. The configuration and the plugins are found as for an embedder."""
    script = "import embedkit; print(embedkit.get_reranker().rerank('q', ['he', 'see'], k=1))"
    environ = {"ENABLE_RERANKER": "1", "EMBEDDING_PROFILE": "two"}
    assert "[Ranked(position=1, score=2.0)]\n" == run(script, cwd=project, site=site, **environ).stdout


def test_an_embedder_is_what_is_given(given):
    """The type is promised: it is final, and never a provider's own."""
    with get_embedder(**given()) as embedder:
        assert type(embedder) is Embedder
