"""Measuring profiles: turns in processes of their own, side by side."""

import os
import subprocess
import sys
import time
from pathlib import Path

import attrs
import pytest

from embedkit.benchmark import (
    Contender,
    Job,
    Summary,
    Turn,
    compute_ratio,
    find_noise,
    measure_turn,
    read_peak_memory,
    run_benchmark,
)
from embedkit.config import read_config
from embedkit.errors import InputError, SettingError, UnknownProfileError
from embedkit.profile import Profile
from embedkit.sample_texts import build_queries, build_texts

PLUGIN = '''
"""A stranger's plugin, with providers that fail in every way."""
import logging
import os
import sys

import attrs
from embedkit import hookimpl
from embedkit.errors import ModelLoadError
from embedkit.testing import toy_provider


def refuse(profile, options):
    raise ModelLoadError("The weights are damaged.", origin="weights.bin", hint="fetch them again")


def divide(profile, options):
    return 1 / 0


def die(profile, options):
    os.write(2, b"The library gave up.\\n")
    os._exit(7)


toy = toy_provider()


def chatter(profile, options):
    print("loading, please wait")
    sys.stderr.write("and wait\\n")
    logging.getLogger("embedkit").warning("slow today")
    return toy.load(profile, options)


def hang(profile, options):
    import time
    from pathlib import Path
    Path(profile.model).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(60)


@hookimpl
def embedkit_providers():
    loads = {"refusing": refuse, "buggy": divide, "dying": die, "chatty": chatter, "hanging": hang}
    return [toy, *(attrs.evolve(toy, name=name, load=load) for name, load in loads.items())]
'''

TURN = Turn(
    texts_per_s=100.0,
    tokens_per_s=None,
    query_p50_s=0.005,
    query_p95_s=0.009,
    load_s=1.0,
    first_vector_s=2.0,
    peak_memory_bytes=10**9,
    documents_s=4.0,
    other_cpus=0.0,
)


class Steps:
    """A progress that remembers."""

    def __init__(self):
        self.begun = []
        self.n_done = 0

    def begin(self, doing, total=None):
        """Remember a piece of work."""
        self.begun.append((doing, total))

    def advance(self, n):
        """Count."""
        self.n_done += n


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Install the stranger's plugin for the processes of the turns, and give a configuration without variables."""
    folder = tmp_path / "stranger"
    information = folder / "toys-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / "toys.py").write_text(PLUGIN, encoding="utf-8")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n", encoding="utf-8")
    (information / "entry_points.txt").write_text("[embedkit]\ntoys = toys\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    for variable in list(os.environ):
        if variable.startswith(("EMBEDDING_", "EMBEDKIT_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("EMBEDKIT_PLUGINS", "toys")
    return read_config(environ={}, directory=tmp_path)


@pytest.fixture
def registry(config):
    """Give the registry with the stranger's plugin."""
    from importlib.metadata import entry_points

    from embedkit.config import PluginSettings
    from embedkit.registry import build_registry

    return build_registry(entry_points(group="embedkit"), PluginSettings(allowed=frozenset({"toys"})))


@pytest.fixture
def bench(config, registry):
    """Measure profiles made in code."""

    def run(*profiles, **changes):
        return run_benchmark(profiles, **{"texts": build_texts(30), "config": config, "registry": registry} | changes)

    return run


def toy(name, provider="toy", **changes):
    """Make a profile of the stranger's plugin."""
    return Profile(name=name, provider=provider, model="words", **changes)


def turns(*speeds, **changes):
    """Make turns of given documents a second."""
    return tuple(attrs.evolve(TURN, texts_per_s=speed, **changes) for speed in speeds)


def test_profiles_take_turns_and_every_figure_is_there(bench):
    """A B A B, after a warm-up that is not counted; each turn is a process of its own, and measures all."""
    steps = Steps()
    result = bench(toy("a"), toy("b", dimensions=16), n_rounds=2, progress=steps)
    label = ["a, warm-up", "b, warm-up", *(f"{name}, round {n} of 2" for n in (1, 2) for name in ("a", "b"))]
    assert label == [doing.removesuffix(": loading") for doing, _ in steps.begun if doing.endswith(": loading")]
    assert [(name, 30) for name in label[2:]] == [step for step in steps.begun if step[1] == 30]
    assert (30, 40, 2) == (result.n_texts, result.n_queries, result.n_rounds)
    for contender in result.contenders:
        assert (None, "words", "cpu", "float32") == (
            contender.failure,
            contender.model,
            contender.device,
            contender.dtype,
        )
        assert 2 == len(contender.turns)
        for turn in contender.turns:
            figures = attrs.asdict(turn)
            assert figures.pop("other_cpus") >= 0
            assert [] == [name for name, value in figures.items() if value is None or value <= 0]
            assert turn.query_p50_s <= turn.query_p95_s
            assert turn.load_s < turn.first_vector_s


def test_what_goes_wrong_with_one_profile_leaves_the_others_alone(bench):
    """Refused, a fault of the provider, a dead process, not installed: each is told, and the good one is measured."""
    profiles = [toy(name, name) for name in ("refusing", "buggy", "dying", "absent")]
    *failed, good = bench(*profiles, toy("good"), n_rounds=1).contenders
    refusing, buggy, dying, absent = (contender.failure for contender in failed)
    assert ("The weights are damaged.", "weights.bin", "fetch them again") == (
        refusing.problem,
        refusing.origin,
        refusing.hint,
    )
    assert "ZeroDivisionError: division by zero" == buggy.problem
    assert "see the whole error: echo text | embedkit --profile buggy embed --query" == buggy.hint
    assert "The process of profile 'dying' ended with code 7: The library gave up." == dying.problem
    assert "absent" in absent.problem
    assert [(), (), (), ()] == [contender.turns for contender in failed]
    assert (None, 1) == (good.failure, len(good.turns))


def test_what_a_library_prints_does_not_get_among_the_answers(bench):
    """Only what the library warns of is passed on, once for all rounds."""
    (chatty,) = bench(toy("chatty", "chatty"), n_rounds=2).contenders
    assert (None, ("slow today",), 2) == (chatty.failure, chatty.warnings, len(chatty.turns))


def test_duplicates_count_once_and_cut_texts_are_counted(bench):
    """What is embedded once is measured once; a profile that reads half of a text is not faster for nothing."""
    profile = toy("short", options={"max_tokens": 20})
    texts = ["a few words", "a few words", "word " * 30, "other " * 40]
    result = bench(profile, texts=texts, queries=["what"], n_rounds=1)
    assert (3, 1, 2) == (result.n_texts, result.n_queries, result.contenders[0].n_truncated)


def test_an_identity_override_is_refused_where_it_would_make_several_profiles_one(tmp_path, registry):
    """One profile may be measured with it."""
    (tmp_path / "profiles.toml").write_text(
        'default = "small"\n[profiles.small]\nprovider = "toy"\nmodel = "words"\n', encoding="utf-8"
    )
    config = read_config(environ={"EMBEDDING_MODEL": "other words"}, directory=tmp_path)
    with pytest.raises(SettingError, match="bench works with several profiles, and EMBEDDING_MODEL would make them"):
        run_benchmark(["small", "small"], texts=["text"], config=config, registry=registry)
    (one,) = run_benchmark(texts=["text"], n_rounds=1, config=config, registry=registry).contenders
    assert ("small", "other words", None) == (one.profile, one.model, one.failure)


def test_a_name_that_is_not_declared_and_no_text_are_refused_at_once(bench):
    """A mistake in the call is nobody's result."""
    with pytest.raises(UnknownProfileError, match="There is no profile 'nobody'"):
        bench("nobody", toy("good"))
    with pytest.raises(InputError, match="There is no text"):
        bench(toy("good"), texts=[])


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_an_interruption_ends_the_process_of_the_turn(tmp_path, config):
    """Ctrl-C leaves nothing running."""
    note = tmp_path / "pid"
    program = (
        "from embedkit.benchmark import run_benchmark; from embedkit.profile import Profile;"
        f"run_benchmark([Profile(provider='hanging', model={str(note)!r})], texts=['text'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    with process:
        deadline = time.monotonic() + 30
        while not note.exists() or not note.read_text(encoding="utf-8"):
            assert time.monotonic() < deadline, "the turn did not begin"
            time.sleep(0.05)
        process.send_signal(2)
        _, errors = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text(encoding="utf-8")), 0)


def test_figures_are_summed_up_by_their_median():
    """Of the rounds: the median, the lowest, the highest; a figure that is unknown stays so."""
    contender = Contender(profile="a", model="m", turns=turns(90.0, 100.0, 110.0, 130.0))
    summary = contender.summarize("texts_per_s")
    assert Summary(median=105.0, low=90.0, high=130.0) == summary
    assert pytest.approx(40 / 105) == summary.spread
    assert None is contender.summarize("tokens_per_s")
    assert None is Contender(profile="a", model="m").summarize("texts_per_s")


def test_ratios_are_taken_within_a_round():
    """A machine that slows down for a round moves both, and the ratio stays."""
    first = Contender(profile="a", model="m", turns=turns(100.0, 50.0, 100.0))
    second = Contender(profile="b", model="m", turns=turns(200.0, 100.0, 300.0))
    assert Summary(median=2.0, low=2.0, high=3.0) == compute_ratio(second, first)
    assert None is compute_ratio(second, first, "tokens_per_s")
    assert None is compute_ratio(second, Contender(profile="a", model="m"))


def test_a_noisy_machine_is_told():
    """Rounds that differ, other processes, too short a time; and nothing of a quiet one."""
    quiet = Contender(profile="quiet", model="m", turns=turns(100.0, 104.0, 98.0, other_cpus=0.1))
    noisy = Contender(profile="noisy", model="m", turns=turns(100.0, 130.0, 98.0))
    disturbed = Contender(profile="disturbed", model="m", turns=turns(100.0, 100.0, other_cpus=1.5))
    short = Contender(profile="short", model="m", turns=turns(100.0, documents_s=0.04))
    assert [] == list(find_noise([quiet], n_cpus=2))
    assert ["The rounds of noisy differ by 32% in documents a second: the machine is noisy."] == list(
        find_noise([quiet, noisy], n_cpus=2)
    )
    assert ["Other processes kept up to 1.5 of 2 processors busy: the machine is noisy."] == list(
        find_noise([disturbed], n_cpus=2)
    )
    first, second = turns(100.0, 100.0)
    waiting = Contender(profile="waiting", model="m", turns=(first, attrs.evolve(second, query_p50_s=0.34)))
    (sentence,) = find_noise([waiting], n_cpus=2)
    assert "single query's time" in sentence
    assert ["short embeds these texts in 0.04 s, too fast to measure: take more."] == list(
        find_noise([short], n_cpus=2)
    )


def test_a_turn_tells_its_steps_in_order(registry):
    """First a vector, then the documents; what is measured is what was asked for."""
    told = []
    job = Job(profile=toy("here"), texts=tuple(build_texts(20)), queries=tuple(build_queries(4)))
    figures = measure_turn(job, lambda **event: told.append(event), registry=registry)
    assert [{"event": "vector"}, {"event": "embedding", "n": 20}] == told
    n_words = sum(len(text.split()) for text in job.texts)
    assert pytest.approx(n_words) == figures["tokens_per_s"] * figures["documents_s"]
    assert pytest.approx(20) == figures["texts_per_s"] * figures["documents_s"]


def test_peak_memory_is_of_the_process_that_asks():
    """A process that is started by a large one is not called large."""
    ballast = bytearray(200_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    own = read_peak_memory()
    asked = subprocess.run(
        [sys.executable, "-c", "from embedkit.benchmark import read_peak_memory; print(read_peak_memory())"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert own > len(ballast)
    assert 5_000_000 < int(asked.stdout) < own - 50_000_000
