"""`embedkit doctor`."""

import pytest


def test_a_sound_profile_gives_exit_code_0(call):
    """Findings go to stdout as they come, the count to stderr."""
    result = call("doctor", "large")
    assert 0 == result.code
    assert "ok       profile        large (named in the call): words through provider toy" in result.stdout
    assert "ok       prompts        Before a query: 'query: '." in result.stdout
    assert "\nno problems\n" == result.stderr


def test_a_problem_gives_exit_code_1_with_what_mends_it(call):
    """Below it, so that one can type it."""
    result = call("doctor", "twin")
    assert 1 == result.code
    assert "PROBLEM  prompts        No query prompt is used, and profile 'large' declares" in result.stdout
    assert (
        "                        hint: EMBEDDING_PROFILE=large, or copy its query_prompt to [profiles.twin]"
        in result.stdout
    )
    assert "\n1 problem\n" == result.stderr


def test_json_holds_every_finding(call):
    """For programs."""
    result = call("doctor", "--profile", "large", "--json")
    assert 0 == result.code
    assert 0 == result.json["problems"]
    topics = {finding["topic"] for finding in result.json["findings"]}
    assert {"python", "plugins", "configuration", "profile", "model", "reference", "prompts"} == topics
    assert {"topic", "level", "sentence", "hint"} == set(result.json["findings"][0])


def test_nothing_is_loaded_on_request(call):
    """A profile that cannot be loaded passes without."""
    assert 1 == call("doctor", "buggy").code
    result = call("doctor", "buggy", "--no-load")
    assert (0, False) == (result.code, "Loaded" in result.stdout)


def test_a_fault_of_a_provider_is_a_finding_and_no_traceback(call):
    """Division by zero in a stranger's code."""
    result = call("doctor", "buggy")
    assert "the provider 'buggy' failed: ZeroDivisionError: division by zero" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["profiles.toml", ".env"])
def test_a_broken_file_is_a_finding(launch, write, name):
    """Also a `.env`, which says which plugins may be read."""
    write(name, "what = 'is this\n")
    result = launch("doctor")
    assert 1 == result.code
    assert "PROBLEM  configuration" in result.stdout


def test_an_absent_provider_comes_with_its_install_command(call):
    """From the file, never made up."""
    result = call("doctor", "absent")
    assert 1 == result.code
    assert "python -m pip install toy-absent" in result.stdout


def test_secrets_in_addresses_are_not_shown(call):
    """A user and password in a URL."""
    result = call("doctor", "secretive")
    assert "hunter2" not in result.stdout + result.stderr
