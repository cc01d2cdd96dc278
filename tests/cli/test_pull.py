"""`embedkit pull`."""

import pytest


def test_the_size_is_told_first(call):
    """Then that it is complete; there is no data, so stdout stays empty."""
    result = call("pull", "fetched")
    assert (0, "") == (result.code, result.stdout)
    assert ["fetched: far away: 1.2 MB", "fetched: far away: complete."] == result.stderr.splitlines()


def test_a_provider_without_weights_has_nothing_to_fetch(call):
    """That is no failure."""
    result = call("pull")
    assert 0 == result.code
    assert "small: words: nothing to fetch, for provider toy keeps no weights on this machine." in result.stderr


def test_weights_that_are_here_have_nothing_to_fetch(call, write, monkeypatch):
    """As those of an installed package."""
    text = 'default = "packed"\n[profiles.packed]\nprovider = "here"\nmodel = "in a package"\n'
    monkeypatch.setenv("EMBEDKIT_PROFILES", str(write("packed.toml", text)))
    result = call("pull")
    assert 0 == result.code
    assert "packed: in a package: nothing to fetch, it is on this machine." in result.stderr


def test_the_profile_may_stand_before_the_command(call):
    """As for every other command."""
    assert "fetched: far away: complete." in call("--profile", "fetched", "pull").stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("fetchd",), "did you mean fetched?"),
        (("absent",), "python -m pip install toy-absent"),
        (("small", "--profile", "large"), "Two profiles were named"),
    ],
)
def test_wrong_input_is_refused(call, arguments, expected):
    """Exit code 2."""
    result = call("pull", *arguments)
    assert 2 == result.code
    assert expected in result.stderr
