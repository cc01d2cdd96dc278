"""The command `embedkit`: global options, exit codes, the one catch, completion."""

import importlib.metadata
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import install


def test_the_version_is_that_of_the_distribution(launch):
    """Also by `python -m embedkit`."""
    result = launch("--version")
    assert (0, f"embedkit {importlib.metadata.version('embedkit-core')}\n") == (result.code, result.stdout)


@pytest.mark.parametrize("arguments", [("--help",), ("-h",)])
def test_help_lists_the_commands_and_how_to_complete_them(call, arguments):
    """And the exit codes."""
    result = call(*arguments)
    assert 0 == result.code
    for command in ("profiles", "use", "explain", "embed", "search", "pull", "plugins"):
        assert f"\n  {command} " in result.stdout
    assert 'eval "$(_EMBEDKIT_COMPLETE=bash_source embedkit)"' in result.stdout
    assert "130 interrupted" in " ".join(result.stdout.split())


@pytest.mark.parametrize("command", ["profiles", "use", "explain", "embed", "search", "pull", "plugins"])
def test_the_help_of_a_command_has_examples_and_fits(call, command):
    """In eighty columns, with one line for each option."""
    result = call(command, "--help")
    assert 0 == result.code
    assert f"embedkit {command}" in result.stdout.partition("Examples:")[2]
    assert 80 >= max(map(len, result.stdout.splitlines()))
    assert "..." not in result.stdout.partition("\n\n")[0] or command in ("embed", "search")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("explan", "x"), "Did you mean 'explain'?"),
        (("--nothing",), "No such option"),
        (("--profile", "small", "profiles"), "profiles does not take --profile."),
        (("--profile", "small", "use", "large"), "use does not take --profile."),
        (("--profile", "small", "plugins"), "plugins does not take --profile."),
    ],
)
def test_wrong_usage_has_exit_code_2(call, arguments, expected):
    """And is told on stderr."""
    result = call(*arguments)
    assert (2, "") == (result.code, result.stdout)
    assert expected in result.stderr


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(
            b"[profiles.a\n", ["profiles.toml is not valid TOML", "from: profiles.toml:1"], id="syntax (fault 2)"
        ),
        pytest.param("[profiles.é]".encode("latin-1"), ["is not UTF-8", "profiles.toml:1"], id="latin-1 (fault 3)"),
        pytest.param("default = 'a'".encode("utf-16"), ["UTF-16"], id="UTF-16 (fault 3)"),
        pytest.param(b"[profiles.a]\nmodel='x'\n[profiles.a]\nmodel='y'\n", ["profiles.toml:3"], id="twice (fault 4)"),
        pytest.param(b"a = " + b"[" * 2000 + b"]" * 2000, ["nested too deeply"], id="depth (fault 5)"),
        pytest.param(
            b"[profiles.a]\nmodel='x'\nbatchsize=3\n",
            ["'batchsize' is no known setting.", "did you mean batch_size?"],
            id="unknown key (fault 7)",
        ),
        pytest.param(
            b"[profiles.a]\nmodel='x'\nbatch_size='32'\n[profiles.b]\nmodel='x'\nbatch_size=0\n",
            ["The configuration has 2 faults.", "not '32'", "not 0", "[profiles.b]"],
            id="types (fault 8)",
        ),
    ],
)
def test_a_wrong_profiles_file_is_told_by_its_place(launch, project, content, expected):
    """Faults 2, 3, 4, 5, 7 and 8. No traceback; the exit code is that of the configuration."""
    (project / "profiles.toml").write_bytes(content)
    result = launch("profiles")
    assert (2, "") == (result.code, result.stdout)
    for words in expected:
        assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_byte_order_mark_is_accepted(launch, project):
    """Fault 3. As Windows editors write it."""
    path = project / "profiles.toml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert 0 == launch("profiles").code


def test_a_missing_profiles_file_is_told_with_where_it_was_looked_for(call, project, monkeypatch):
    """Fault 1. Both where one is named and where one is searched."""
    (project / "profiles.toml").unlink()
    result = call("explain", "smal")
    assert 2 == result.code
    assert f"no profiles.toml of your own was found from {project} upward" in result.stderr
    monkeypatch.setenv("EMBEDKIT_PROFILES", "nowhere.toml")
    named = call("explain")
    assert 2 == named.code
    assert f"There is no file {project / 'nowhere.toml'}." in named.stderr


def test_a_broken_provider_is_named_with_its_distribution(call, tmp_path, monkeypatch):
    """Fault 27. Only who asks for it hears of it."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    install(shelf, "absent", "import nowhere_to_be_found")
    monkeypatch.syspath_prepend(shelf)
    monkeypatch.setenv("EMBEDKIT_PLUGINS", "toy-stranger,absent")
    broken = call("embed", "--profile", "absent", stdin="text\n")
    assert 2 == broken.code
    assert "absent 1.0" in broken.stderr
    assert "nowhere_to_be_found" in broken.stderr
    assert "python -m pip install toy-absent" in broken.stderr
    assert "absent 1.0" not in call("embed", stdin="text\n").stderr


def test_an_unknown_exception_keeps_its_traceback(launch):
    """It is a fault of the program, and whoever mends it needs to see where."""
    result = launch("embed", "--profile", "buggy", stdin="text\n")
    assert 1 == result.code
    assert "Traceback (most recent call last)" in result.stderr
    assert "ZeroDivisionError" in result.stderr


def test_a_warning_of_the_library_goes_to_stderr(launch):
    """Fault 11. What it logs is shown, once."""
    result = launch("embed", stdin="text\n", EMBEDDING_BATCHSIZE="7")
    assert 0 == result.code
    assert 1 == result.stderr.count("warning: EMBEDDING_BATCHSIZE is no variable of embedkit")
    assert "warning" not in result.stdout


def test_a_command_leaves_no_handler_behind(call):
    """Whoever runs two commands in one process would hear every warning twice."""
    before = list(logging.getLogger("embedkit").handlers)
    call("profiles")
    assert before == logging.getLogger("embedkit").handlers


@pytest.mark.skipif(sys.platform == "win32", reason="head is no program of Windows")
@pytest.mark.parametrize("n_texts", [0, 5000])
def test_a_reader_that_has_seen_enough_is_no_fault(project, write, n_texts):
    """`embedkit … | head` says nothing, be it noticed while writing or at the end."""
    write("texts.txt", "".join(f"text {number}\n" for number in range(n_texts)))
    with subprocess.Popen(
        [sys.executable, "-m", "embedkit", "embed", "texts.txt"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        if n_texts:
            process.stdout.readline()
        process.stdout.close()
        talk = process.stderr.read()
    assert [] == [line for line in talk.splitlines() if line != "There was no text to embed."]
    assert 1 == process.returncode


def complete(launch, words, position):
    """Ask for completions as bash does."""
    result = launch(_EMBEDKIT_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(position))
    return [line.partition(",")[2] for line in result.stdout.splitlines()]


def test_commands_and_profiles_are_completed(launch):
    """Names of profiles wherever one is due."""
    assert ["plugins", "profiles", "pull"] == complete(launch, "embedkit p", 1)
    assert ["large"] == complete(launch, "embedkit use l", 2)
    assert ["large"] == complete(launch, "embedkit --profile l", 2)
    assert ["secretive", "small", "speed"] == complete(launch, "embedkit embed --profile s", 3)
    assert ["cuda"] == complete(launch, "embedkit embed --device cu", 3)


def test_completion_stays_silent_while_the_configuration_is_wrong(launch, project):
    """A traceback in the middle of typing helps nobody."""
    (project / "profiles.toml").write_text("[", encoding="utf-8")
    result = launch(_EMBEDKIT_COMPLETE="bash_complete", COMP_WORDS="embedkit use l", COMP_CWORD="2")
    assert (0, "", "") == (result.code, result.stdout.strip(), result.stderr)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_get_their_scripts(launch, shell):
    """As the help tells to ask for."""
    if shell == "bash" and os.name == "nt":
        pytest.skip("click asks bash for its version")
    result = launch(_EMBEDKIT_COMPLETE=f"{shell}_source")
    assert 0 == result.code
    assert "_EMBEDKIT_COMPLETE" in result.stdout


@pytest.mark.parametrize(
    "arguments", [("profiles",), ("explain", "--json"), ("plugins",), ("use", "large", "--dry-run")]
)
def test_what_lists_and_explains_draws_nothing_on_a_pipe(project, arguments):
    """Rich is imported by what draws on a terminal."""
    code = (
        "import sys\nfrom embedkit.cli.main import run\n"
        f"assert run({list(arguments)!r}) == 0\nassert 'rich' not in sys.modules, 'rich was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr if done.returncode else "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_told_without_a_traceback(launch, project):
    """What cannot be written is a failure with a sentence."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "embedkit", "profiles"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert 1 == done.returncode
    assert "There is no space left where the output goes.\n" in done.stderr
    assert "Traceback" not in done.stderr
