"""However embedkit is installed, its profiles are the root's file; a stranger's provider takes one entry point."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "plugins" / "embedkit-example"
PARTS = ("embedkit", "pyproject.toml", "profiles.toml", "README.md", "LICENSE")
LEFT_OUT = shutil.ignore_patterns("__pycache__")

LOOK = """
import json, embedkit
from embedkit.config import read_config
config = read_config()
print(json.dumps([embedkit.__file__, [str(file) for file in config.files], list(config.profiles)]))
"""


def call(*arguments, cwd, **environ):
    """Run a program and give what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EMBED", "ENABLE", "PYTHON"))}
    done = subprocess.run(
        [*map(str, arguments)],
        cwd=cwd,
        env={**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1", **environ},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def look(python, cwd, **environ):
    """Give where embedkit was imported from, the files of profiles that it read, and the profiles' names."""
    package, files, profiles = json.loads(call(python, "-c", LOOK, cwd=cwd, **environ))
    return Path(package).parent, [Path(file) for file in files], profiles


def add_profile(checkout):
    """Edit the root's file."""
    path = checkout / "profiles.toml"
    path.write_text(path.read_text(encoding="utf-8") + '\n[profiles.added]\nmodel = "m"\n', encoding="utf-8")


@pytest.fixture
def checkout(tmp_path):
    """Give a copy of what a checkout consists of, which a test may change."""
    root = tmp_path / "checkout"
    root.mkdir()
    for part in PARTS:
        source = ROOT / part
        copy = shutil.copyfile if source.is_file() else shutil.copytree
        copy(source, root / part, **({} if source.is_file() else {"ignore": LEFT_OUT}))
    return root


@pytest.fixture
def elsewhere(tmp_path):
    """Give a project without profiles of its own."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    return folder


@pytest.fixture
def target(tmp_path):
    """Give a function that builds a wheel and installs it, alone, into a folder."""

    def install(source):
        build = tmp_path / "source"
        shutil.copytree(source, build, ignore=LEFT_OUT)
        pip = (sys.executable, "-m", "pip")
        call(*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", "wheels", build, cwd=tmp_path)
        (wheel,) = (tmp_path / "wheels").glob("*.whl")
        call(*pip, "install", "--no-deps", "--target", "installed", wheel, cwd=tmp_path)
        shutil.rmtree(build)
        return tmp_path / "installed"

    return install


def test_a_plain_checkout_reads_the_roots_file(checkout, elsewhere):
    """And an edit of it."""
    package, files, profiles = look(sys.executable, elsewhere, PYTHONPATH=str(checkout))
    assert (checkout / "embedkit", [checkout / "profiles.toml"]) == (package, files)
    assert "added" not in profiles
    add_profile(checkout)
    assert "added" in look(sys.executable, elsewhere, PYTHONPATH=str(checkout))[2]


def test_an_editable_install_reads_the_roots_file(checkout, elsewhere, tmp_path):
    """And an edit of it: the copy that the build backend leaves beside it is not read."""
    venv.create(tmp_path / "venv", with_pip=False)
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = shutil.which("python", path=str(scripts))
    site = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    # Dependencies and tools are those of the tests, but nothing that is installed editable there.
    Path(site, "tests.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    call(python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--editable", checkout, cwd=tmp_path)
    package, files, profiles = look(python, elsewhere)
    assert (checkout / "embedkit", [checkout / "profiles.toml"]) == (package, files)
    assert "added" not in profiles
    add_profile(checkout)
    assert "added" in look(python, elsewhere)[2]


def test_a_wheel_holds_the_roots_file(checkout, elsewhere, target):
    """As it was when the wheel was built."""
    add_profile(checkout)
    installed = target(checkout)
    package, files, profiles = look(sys.executable, elsewhere, PYTHONPATH=str(installed))
    assert (installed / "embedkit", [installed / "embedkit" / "profiles.toml"]) == (package, files)
    assert "added" in profiles
    assert (checkout / "profiles.toml").read_bytes() == files[0].read_bytes()
    assert (installed / "embedkit" / "py.typed").is_file()


def test_without_any_packaged_file_both_places_are_named(checkout, elsewhere):
    """Fault 1. An installation that lost its file cannot go on, and says what to do."""
    (checkout / "profiles.toml").unlink()
    script = (
        "import embedkit\ntry:\n    embedkit.list_profiles()\nexcept embedkit.EmbedkitError as error:\n    print(error)"
    )
    said = call(sys.executable, "-c", script, cwd=elsewhere, PYTHONPATH=str(checkout))
    places = f"{checkout / 'embedkit' / 'profiles.toml'} nor {checkout / 'profiles.toml'}"
    expected = (
        f"embedkit's own profiles.toml is missing: it is neither {places}.\n  hint: install embedkit-core again\n"
    )
    assert expected == said


def test_a_strangers_provider_is_chosen_by_editing_toml_alone(elsewhere, target):
    """One entry point declares it; no variable, no import and no line of code names it."""
    installed = target(EXAMPLE)
    script = """
import json, embedkit, embedkit_example
embedder = embedkit.get_embedder()
vectors = embedder.embed_documents(["red apple", "green apple", "blue whale"]).vectors
nearest = int((vectors[1:] @ embedder.embed_query("red apple")).argmax())
print(json.dumps([embedkit_example.__file__, embedder.profile.provider, vectors.shape, nearest]))
"""
    toml = elsewhere / "profiles.toml"
    toml.write_text(
        'default = "mine"\n[profiles.mine]\nprovider = "absent"\nmodel = "words"\ndimensions = 32\n', encoding="utf-8"
    )
    state = "import embedkit; print([one.provider_state for one in embedkit.list_profiles() if one.active])"
    assert "['not installed']\n" == call(sys.executable, "-c", state, cwd=elsewhere, PYTHONPATH=str(installed))
    toml.write_text(toml.read_text(encoding="utf-8").replace("absent", "example"), encoding="utf-8")
    file, provider, shape, nearest = json.loads(
        call(sys.executable, "-c", script, cwd=elsewhere, PYTHONPATH=str(installed))
    )
    assert (installed / "embedkit_example", "example") == (Path(file).parent, provider)
    assert ([3, 32], 0) == (shape, nearest)
