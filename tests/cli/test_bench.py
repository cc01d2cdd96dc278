"""`embedkit bench`."""

import os
import struct
import subprocess
import sys

import pytest

FIGURES = (
    "texts_per_s",
    "tokens_per_s",
    "query_p50_s",
    "query_p95_s",
    "load_s",
    "first_vector_s",
    "peak_memory_bytes",
    "documents_s",
)


def test_json_has_every_figure_with_its_rounds(call):
    """Median, range and rounds of each; the second is compared with the first."""
    result = call("bench", "small", "large", "--texts", "12", "--rounds", "2", "--json")
    assert 0 == result.code
    assert (12, 40, 2) == (result.json["texts"], result.json["queries"], result.json["rounds"])
    small, large = result.json["profiles"]
    assert ("small", "words", "cpu", "float32", None) == (
        small["profile"],
        small["model"],
        small["device"],
        small["dtype"],
        small["failure"],
    )
    for figure in FIGURES:
        assert small[figure]["rounds"] == [value for value in small[figure]["rounds"] if value > 0]
        assert 2 == len(small[figure]["rounds"])
        assert small[figure]["low"] <= small[figure]["median"] <= small[figure]["high"]
    assert {"median": 1.0, "low": 1.0, "high": 1.0} == small["times_first"]
    assert large["times_first"]["median"] > 0


def test_the_table_puts_profiles_side_by_side(call):
    """One column for each; what is said about the run goes to stderr."""
    result = call("bench", "small", "twin", "--texts", "12", "--rounds", "2")
    assert 0 == result.code
    header, *rows = result.stdout.splitlines()
    assert ["small", "twin"] == header.split()
    assert [
        "device",
        "texts/s",
        "times small",
        "tokens/s",
        "one query, p50 ms",
        "one query, p95 ms",
        "model loaded, s",
        "first vector, s",
        "peak memory",
    ] == [row.strip().split("  ")[0] for row in rows]
    assert "12 texts, 40 queries, 2 rounds: median (lowest - highest)" in result.stderr
    assert "warning: small embeds these texts in" in result.stderr


def test_without_a_name_the_active_profile_is_measured(call, monkeypatch):
    """As everywhere; --profile does the same as an argument, and both are refused."""
    monkeypatch.setenv("EMBEDDING_PROFILE", "twin")
    for arguments, expected in ((("bench",), "twin"), (("--profile", "large", "bench"), "large")):
        measured = call(*arguments, "--texts", "2", "--rounds", "1", "--json").json["profiles"]
        assert [expected] == [one["profile"] for one in measured]
    result = call("bench", "small", "--profile", "large")
    assert 2 == result.code
    assert "named as arguments or by --profile, not both" in result.stderr


def test_texts_come_from_a_file(call, write):
    """One a line; blank lines are none."""
    write("talks.txt", "one text\n\nanother text\n")
    assert 2 == call("bench", "--file", "talks.txt", "--rounds", "1", "--json").json["texts"]
    assert 2 == call("bench", "--file", "talks.txt", "--texts", "5").code
    write("empty.txt", "\n")
    empty = call("bench", "--file", "empty.txt")
    assert 2 == empty.code
    assert "There is no text to measure with." in empty.stderr


def test_a_profile_that_fails_is_reported_and_the_others_are_measured(call):
    """The exit code says that something failed; the hint says what mends it."""
    result = call("bench", "absent", "small", "--texts", "4", "--rounds", "1")
    assert 1 == result.code
    assert ["small"] == result.stdout.splitlines()[0].split()
    assert "absent failed: " in result.stderr
    assert "python -m pip install toy-absent" in result.stderr
    absent, small = call("bench", "absent", "small", "--texts", "4", "--rounds", "1", "--json").json["profiles"]
    assert None is absent["texts_per_s"]
    assert "python -m pip install toy-absent" == absent["failure"]["hint"].partition(";")[0]
    assert None is small["failure"]


def test_one_profile_that_fails_is_an_error_like_any_other(call):
    """Configuration is exit code 2, a failure of the provider 1; there is no table."""
    for profile, code, problem in (("absent", 2, "'absent'"), ("buggy", 1, "ZeroDivisionError: division by zero")):
        result = call("bench", profile, "--texts", "4", "--rounds", "1")
        assert (code, "") == (result.code, result.stdout)
        assert problem in result.stderr


def test_overrides_of_identity_are_refused_for_several_profiles(call, monkeypatch):
    """They would all be the same."""
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "8")
    result = call("bench", "small", "large")
    assert 2 == result.code
    assert "bench works with several profiles, and EMBEDDING_DIMENSIONS would make them the same." in result.stderr
    assert 0 == call("bench", "small", "--texts", "2", "--rounds", "1").code


def test_a_plot_is_drawn(call, project):
    """A PNG with something on it, as wide as a page."""
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    result = call("bench", "small", "large", "--texts", "4", "--rounds", "2", "--plot", "bench.png")
    assert 0 == result.code
    assert "drawn: bench.png" in result.stderr
    content = (project / "bench.png").read_bytes()
    assert b"\x89PNG\r\n\x1a\n" == content[:8]
    width, height = struct.unpack(">II", content[16:24])
    assert (1650, True) == (width, height > 300)


def test_a_plot_that_cannot_be_drawn_is_refused_before_the_work(call):
    """Another kind of file, or no directory."""
    for path, problem in (
        ("bench.svg", "A plot is a PNG, not bench.svg."),
        ("no/bench.png", "There is no directory no."),
    ):
        result = call("bench", "--plot", path)
        assert 2 == result.code
        assert problem in result.stderr


def test_without_matplotlib_the_command_to_install_it_is_given(write, project):
    """Only --plot needs it."""
    write("lean/matplotlib.py", "raise ImportError('not here')\n")
    done = subprocess.run(
        [sys.executable, "-m", "embedkit", "bench", "--plot", "bench.png"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(project / "lean"), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 1 == done.returncode
    assert "--plot needs matplotlib, which cannot be imported: not here." in done.stderr
    assert 'hint: python -m pip install "embedkit-core[plot]"' in done.stderr


def test_it_can_be_interrupted(terminal):
    """The bar says which profile and round, and no number that it does not know; Ctrl-C ends it with 130."""
    screen = terminal("bench", "--texts", "40", "--rounds", "2", TOY_DELAY_S="0.3")
    screen.wait_for("small, round 1 of 2: queries")
    screen.interrupt()
    assert 130 == screen.finish()
    assert "texts" not in screen.text.partition("round 1 of 2: queries")[2]
    assert "Interrupted." in screen.text


@pytest.mark.weights
def test_a_real_model_is_measured(project, launch):
    """The packaged one, with all its figures."""
    result = launch(
        *("bench", "mini", "--texts", "8", "--rounds", "1", "--json"), EMBEDKIT_PLUGINS="local", HF_HUB_OFFLINE="1"
    )
    assert 0 == result.code, result.stderr
    (mini,) = result.json["profiles"]
    assert ("mini", None) == (mini["profile"], mini["failure"])
    assert [] == [figure for figure in FIGURES if not mini[figure]["median"] > 0]
    assert mini["peak_memory_bytes"]["median"] > 100_000_000
