"""The shape of a message, and errors that come out of other processes whole."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import attrs
import numpy as np
import pytest

from embedkit import errors
from embedkit.errors import (
    BackendError,
    BrokenPluginError,
    ConfigError,
    EmbedkitError,
    IncompleteError,
    InputError,
    PluginError,
    SettingError,
    SpaceMismatchError,
)
from embedkit.space import Space, require_same_space
from embedkit.vectors import Embeddings, Report, join

SPACE = Space(weights="f00d", dimensions=3, normalized=False)
OTHER_SPACE = attrs.evolve(SPACE, weights="beef")


def list_kinds(kind=EmbedkitError):
    """List an error class and all below it that embedkit defines."""
    own = [kind] if kind.__module__ == errors.__name__ else []
    return own + [found for below in kind.__subclasses__() for found in list_kinds(below)]


def build_error(kind):
    """Make an error of any kind, with every part filled in."""
    if kind is SpaceMismatchError:
        return kind(SPACE, OTHER_SPACE, origin="notes.npz", hint="embed again")
    parts = {"origin": "profiles.toml [profiles.speed]", "hint": "set a number such as 32"}
    if kind is InputError:
        parts["positions"] = iter([1, 5])
    if kind is IncompleteError:
        failures = {1: InputError("too long", positions=[1])}
        done = Embeddings(np.ones((1, 3), np.float32), SPACE, Report(n_texts=2, failures=failures))
        parts |= {"done": done, "missing": iter([1])}
    return kind("batch_size must be 1 or more, not 'lots'.", **parts)


def show_state(error):
    """Give everything that an error carries, as text: arrays and nested errors compare badly."""
    state = {name: vars(value) if isinstance(value, EmbedkitError) else value for name, value in vars(error).items()}
    return type(error), error.args, str(error), repr(sorted(state.items()))


def test_message_is_problem_then_origin_then_hint():
    """A reader sees what is wrong, where it comes from, and what to type; empty parts take no line."""
    full = EmbedkitError("It is wrong.", origin="the call", hint="mend it")
    assert "It is wrong.\n  from: the call\n  hint: mend it" == str(full)
    assert "It is wrong.\n  hint: mend it" == str(EmbedkitError("It is wrong.", hint="mend it"))
    assert "It is wrong." == str(EmbedkitError("It is wrong."))
    assert ("It is wrong.", "the call", "mend it") == (full.problem, full.origin, full.hint)


def test_faults_are_numbered_in_one_error():
    """All faults of a file are shown at once, each with its own origin and hint."""
    faults = [SettingError("First.", origin="line 1", hint="mend it"), ConfigError("Second.")]
    combined = ConfigError.combine(faults)
    expected = "The configuration has 2 faults.\n1. First.\n     from: line 1\n     hint: mend it\n2. Second."
    assert expected == str(combined)
    assert tuple(faults) == combined.faults


def test_single_fault_stays_itself():
    """One fault needs no list around it, and keeps its class."""
    fault = SettingError("Only.")
    assert fault is ConfigError.combine([fault])
    assert () == fault.faults


def test_input_error_is_a_value_error():
    """Who does not know embedkit catches bad input as Python names it."""
    with pytest.raises(ValueError, match="blank") as caught:
        raise InputError("The text is blank.", positions=[3])
    assert (3,) == caught.value.positions
    assert () == InputError("x").positions


def test_mismatch_has_a_hint_of_its_own():
    """Where nobody knows better, the mend is to embed both sides alike."""
    assert "embed both sides with the same profile" == SpaceMismatchError(SPACE, OTHER_SPACE).hint
    assert "embed again" == build_error(SpaceMismatchError).hint


def test_every_kind_stands_where_callers_catch_it():
    """One except clause for each family: configuration, plugins, backends."""
    kinds = {kind.__name__: kind for kind in list_kinds()}
    assert {"ConfigError", "UnknownProfileError", "SettingError"} == {
        name for name, kind in kinds.items() if issubclass(kind, ConfigError)
    }
    assert {"PluginError", "UnknownProviderError", "DuplicateProviderError", "BrokenPluginError"} == {
        name for name, kind in kinds.items() if issubclass(kind, PluginError)
    }
    assert {
        "BackendError",
        "MissingDependencyError",
        "ModelLoadError",
        "DeviceUnavailableError",
        "AuthenticationError",
        "RateLimitError",
        "TransportError",
        "ContractError",
        "IncompleteError",
    } == {name for name, kind in kinds.items() if issubclass(kind, BackendError)}


@pytest.mark.parametrize("kind", list_kinds(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("clone", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])  # noqa: S301  # made here
def test_every_error_survives_pickling(kind, clone):
    """Message, origin, hint and what a kind carries beside them all come out as they went in. Fault 86."""
    error = build_error(kind)
    assert show_state(error) == show_state(clone(error))


def test_combined_faults_and_notes_survive_pickling():
    """The faults of a file, and what was added on the way up, are not lost. Fault 86."""
    error = ConfigError.combine([SettingError("First.", hint="a"), SettingError("Second.")])
    error.add_note("seen on the way")
    clone = pickle.loads(pickle.dumps(error))  # noqa: S301  # made here
    assert str(error) == str(clone)
    assert [SettingError, SettingError] == [type(fault) for fault in clone.faults]
    assert ["seen on the way"] == clone.__notes__


def test_subclass_of_a_plugin_survives_pickling():
    """A plugin's own error with required arguments of its own needs no code for this. Fault 86."""
    clone = pickle.loads(pickle.dumps(QuotaError(limit=7)))  # noqa: S301  # made here
    assert ("The quota is 7.", 7) == (str(clone), clone.limit)


class QuotaError(BrokenPluginError):
    """An error as a plugin might define it."""

    def __init__(self, *, limit):
        super().__init__(f"The quota is {limit}.")
        self.limit = limit


def test_errors_come_out_of_a_process_pool():
    """A real pool of spawned processes gives the error itself, and goes on working. Fault 86."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(SpaceMismatchError) as caught:
            pool.submit(require_same_space, SPACE, OTHER_SPACE, origin="notes.npz").result(timeout=60)
        assert (SPACE, OTHER_SPACE, "notes.npz") == (caught.value.expected, caught.value.found, caught.value.origin)
        with pytest.raises(InputError, match="not even one"):
            pool.submit(join, []).result(timeout=60)
