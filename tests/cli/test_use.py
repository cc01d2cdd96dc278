"""`embedkit use`."""

import json
from pathlib import Path

import pytest


def test_a_new_env_file_gets_the_line(call, project):
    """It is said where, and what was there before."""
    result = call("use", "large")
    assert 0 == result.code
    assert "EMBEDDING_PROFILE=large\n" == (project / ".env").read_text(encoding="utf-8")
    assert "written: EMBEDDING_PROFILE=large to .env:1 (was not set there)" in result.stdout
    assert "active: large, from .env:1 EMBEDDING_PROFILE" in call("profiles").stderr


def test_only_one_line_of_an_existing_file_changes(call, write):
    """Comments, order and line endings stay."""
    path = write(".env", "# ours\r\nOTHER=1\r\nEMBEDDING_PROFILE=small # the fast one\r\n")
    result = call("use", "twin")
    assert b"# ours\r\nOTHER=1\r\nEMBEDDING_PROFILE=twin # the fast one\r\n" == path.read_bytes()
    assert "to .env:3 (was small)" in result.stdout


def test_what_changes_is_shown_side_by_side(call):
    """The identity always; the rest where it differs, and marked."""
    rows = [line.split() for line in call("use", "large").stdout.splitlines()]
    assert ["now:", "small", "then:", "large"] in rows
    assert ["provider", "toy", "toy"] in rows
    assert ["dimensions", "16", "32", "*"] in rows
    assert ["query_prompt", "-", "'query:", "'", "*"] in rows
    assert [] == [row for row in rows if row[:1] in (["normalize"], ["description"])]


@pytest.mark.parametrize(
    ("old", "new", "expected", "reason"),
    [
        ("small", "twin", "yes", "the same"),
        ("small", "large", "no", "16 and 32 dimensions"),
        ("small", "other", "no", "space "),
        ("small", "blind", "unknown", "loaded"),
        ("small", "absent", "unknown", "cannot be used here"),
        ("absent", "small", "unknown", "cannot be used here"),
        ("small", "damaged", "unknown", "The weights are damaged."),
    ],
)
def test_whether_vectors_are_comparable_is_said(call, old, new, expected, reason):
    """By declared dimensions, by files, or not at all before both are loaded."""
    call("use", old)
    result = call("use", new, "--dry-run", "--json")
    assert (0, expected) == (result.code, result.json["comparable"])
    assert reason in result.json["reason"]


def test_the_same_space_under_another_name_is_found_by_its_fingerprint(call, write, monkeypatch):
    """The settings differ (one states no dimensions), and the space does not."""
    text = '[profiles.a]\nprovider="toy"\nmodel="m"\ndimensions=64\n[profiles.b]\nprovider="toy"\nmodel="m"\n'
    monkeypatch.setenv("EMBEDKIT_PROFILES", str(write("two.toml", f'default = "a"\n{text}')))
    result = call("use", "b", "--dry-run", "--json").json
    assert "yes" == result["comparable"]
    assert result["reason"].startswith("both are space ")


def test_json_tells_all_of_it(call, project):
    """For programs."""
    result = call("use", "large", "--json")
    assert 0 == result.code
    data = result.json
    assert ("large", "small", None, True) == (data["profile"], data["previous"], data["was"], data["written"])
    assert {"now": "16", "then": "32"} == data["changes"]["dimensions"]
    assert "provider" not in data["changes"]
    assert (str(project / ".env"), 1) == (data["env_file"], data["line"])
    assert ([], []) == (data["commented_out"], data["warnings"])


def test_a_dry_run_writes_nothing(call, project):
    """And says so."""
    result = call("use", "large", "--dry-run")
    assert 0 == result.code
    assert not (project / ".env").exists()
    assert "would be written: EMBEDDING_PROFILE=large" in result.stdout
    assert "Nothing was written." in result.stdout


def test_an_unknown_name_is_refused_and_nothing_is_written(call, project):
    """Fault 6. With the nearest name."""
    result = call("use", "lagre")
    assert 2 == result.code
    assert "did you mean large?" in result.stderr
    assert not (project / ".env").exists()


def test_without_a_terminal_nobody_is_asked(call, project):
    """The flag form is told instead."""
    result = call("use", stdin="1\n")
    assert 2 == result.code
    assert "embedkit use NAME (declared: absent, blind," in result.stderr
    assert not (project / ".env").exists()


def test_a_profile_that_does_not_exist_any_more_can_be_left(call, write):
    """It is the very thing that a switch mends."""
    path = write(".env", "EMBEDDING_PROFILE=gone\n")
    result = call("use", "large")
    assert 0 == result.code
    assert "EMBEDDING_PROFILE=large\n" == path.read_text(encoding="utf-8")
    assert "warning: until now EMBEDDING_PROFILE named gone, which is not declared (.env:1" in result.stderr
    assert "(was gone)" in result.stdout


def test_a_missing_provider_is_warned_about(call, project):
    """Fault 27. The switch is made, and the install command told."""
    result = call("use", "absent")
    assert 0 == result.code
    assert "EMBEDDING_PROFILE=absent\n" == (project / ".env").read_text(encoding="utf-8")
    assert "warning: The provider 'absent' is not installed." in result.stderr
    assert "python -m pip install toy-absent" in result.stderr


def test_wrong_options_of_the_new_profile_are_refused(call, write, monkeypatch, project):
    """Fault 7. Nothing is written: the next start would fail."""
    text = '[profiles.wrong]\nprovider = "toy"\nmodel = "words"\noptions = { max_token = 3 }\n'
    monkeypatch.setenv("EMBEDKIT_PROFILES", str(write("wrong.toml", text)))
    result = call("use", "wrong")
    assert 2 == result.code
    assert "did you mean max_tokens?" in result.stderr
    assert not (project / ".env").exists()


def test_the_environment_makes_it_ineffective_and_that_is_said(call, project, monkeypatch):
    """Fault 12. It is written all the same: other processes have other environments."""
    monkeypatch.setenv("EMBEDDING_PROFILE", "small")
    result = call("use", "large")
    assert 0 == result.code
    assert "EMBEDDING_PROFILE=large\n" == (project / ".env").read_text(encoding="utf-8")
    assert "warning: EMBEDDING_PROFILE=small is set in the environment, which stands above .env" in result.stderr
    assert "unset EMBEDDING_PROFILE" in result.stderr


def test_the_environment_that_says_the_same_is_no_obstacle(call, monkeypatch):
    """Nothing is ineffective."""
    monkeypatch.setenv("EMBEDDING_PROFILE", "large")
    assert [] == call("use", "large", "--json").json["warnings"]


def test_a_leftover_override_is_warned_about(call, write):
    """It makes every profile the same model."""
    write(".env", "EMBEDDING_MODEL=leftover\n")
    result = call("use", "large")
    assert "warning: EMBEDDING_MODEL=leftover still stands above large (.env:1 EMBEDDING_MODEL" in result.stderr
    assert "--comment-out-overrides" in result.stderr
    assert ["model", "leftover", "leftover"] in [line.split() for line in result.stdout.splitlines()]


def test_leftover_overrides_are_commented_out_on_demand(call, write):
    """Those of the model's identity, and no others."""
    path = write(".env", "EMBEDDING_MODEL=leftover\nEMBEDDING_DIMENSIONS=8\nEMBEDDING_DEVICE=cpu\n")
    result = call("use", "large", "--comment-out-overrides", "--json")
    assert 0 == result.code
    expected = "# EMBEDDING_MODEL=leftover\n# EMBEDDING_DIMENSIONS=8\nEMBEDDING_DEVICE=cpu\nEMBEDDING_PROFILE=large\n"
    assert expected == path.read_text(encoding="utf-8")
    assert ["EMBEDDING_MODEL", "EMBEDDING_DIMENSIONS"] == result.json["commented_out"]
    assert [] == result.json["warnings"]
    assert {"now": "leftover", "then": "words"} == result.json["changes"]["model"]


def test_a_dry_run_comments_nothing_out(call, write):
    """It only says what it would do."""
    path = write(".env", "EMBEDDING_MODEL=leftover\n")
    result = call("use", "large", "--comment-out-overrides", "--dry-run")
    assert "EMBEDDING_MODEL=leftover\n" == path.read_text(encoding="utf-8")
    assert "would be commented out: EMBEDDING_MODEL=leftover in .env:1" in result.stdout


def test_an_override_in_the_environment_cannot_be_commented_out(call, write, monkeypatch):
    """What stands below it in .env can, and it is still said what is above."""
    path = write(".env", "EMBEDDING_MODEL=leftover\n")
    monkeypatch.setenv("EMBEDDING_MODEL", "exported")
    result = call("use", "large", "--comment-out-overrides")
    assert "# EMBEDDING_MODEL=leftover\nEMBEDDING_PROFILE=large\n" == path.read_text(encoding="utf-8")
    call("use", "large")
    assert "EMBEDDING_MODEL=exported still stands above large" in call("use", "large").stderr
    assert 0 == result.code


def test_an_override_that_says_what_the_profile_says_is_none(call, write):
    """Nothing is ineffective."""
    write(".env", "EMBEDDING_DIMENSIONS=32\n")
    assert [] == call("use", "large", "--json").json["warnings"]


def test_another_file_can_be_written(call, write, project):
    """The present profile is read from it, and it is said that it is not read from here."""
    path = write("deploy/prod.env", "EMBEDDING_PROFILE=twin\n")
    result = call("use", "large", "--env-file", "deploy/prod.env", "--json")
    assert 0 == result.code
    assert "EMBEDDING_PROFILE=large\n" == path.read_text(encoding="utf-8")
    assert not (project / ".env").exists()
    assert "twin" == result.json["previous"]
    assert f"set EMBEDKIT_ENV_FILE={Path('deploy', 'prod.env')}" in result.json["warnings"][0]


def test_another_file_may_be_new(call, project):
    """It is made, as .env would be."""
    result = call("use", "large", "--env-file", "new.env")
    assert 0 == result.code
    assert "EMBEDDING_PROFILE=large\n" == (project / "new.env").read_text(encoding="utf-8")


def test_the_file_that_is_read_anyway_can_be_named(call, write):
    """Then there is nothing to warn of."""
    write(".env", "")
    assert [] == call("use", "large", "--env-file", ".env", "--json").json["warnings"]


def test_a_damaged_env_file_is_refused_by_line(launch, write):
    """Fault 13. It is left as it is."""
    path = write(".env", "A=1\nB='open\n")
    result = launch("use", "large")
    assert 2 == result.code
    assert ".env:2" in result.stderr
    assert "A=1\nB='open\n" == path.read_text(encoding="utf-8")


def test_the_same_profile_again_changes_nothing(call, write):
    """And is no failure."""
    write(".env", "EMBEDDING_PROFILE=large\n")
    result = call("use", "large")
    assert 0 == result.code
    assert ".env:1 said EMBEDDING_PROFILE=large already." in result.stdout


def test_a_number_chooses_on_a_terminal(terminal, project):
    """A wrong one is asked for again."""
    shown = terminal("use")
    shown.wait_for("Profile (number or name) [small]: ")
    number = next(line.split()[0] for line in shown.plain.splitlines() if line.split()[1:2] == ["large"])
    shown.type("99")
    shown.wait_for("a number from 1 to ")
    shown.type(number)
    assert 0 == shown.finish()
    assert "not comparable (16 and 32 dimensions)" in shown.plain
    assert "EMBEDDING_PROFILE=large\n" == (project / ".env").read_text(encoding="utf-8")


def test_enter_keeps_the_present_profile(terminal, project):
    """Nothing is written."""
    shown = terminal("use")
    shown.wait_for("[small]: ")
    shown.type("")
    assert 0 == shown.finish()
    assert "small stays." in shown.plain
    assert not (project / ".env").exists()


def test_an_interrupted_question_writes_nothing(terminal, project):
    """The exit code is that of an interruption."""
    shown = terminal("use")
    shown.wait_for("[small]: ")
    shown.interrupt_until_gone()
    assert 130 == shown.finish()
    assert "Interrupted." in shown.plain
    assert not (project / ".env").exists()


@pytest.mark.parametrize(
    ("answer", "expected"), [("y", "# EMBEDDING_MODEL=leftover"), ("n", "EMBEDDING_MODEL=leftover")]
)
def test_a_leftover_is_offered_to_be_commented_out(terminal, write, answer, expected):
    """On a terminal it is a question."""
    path = write(".env", "EMBEDDING_MODEL=leftover\n")
    shown = terminal("use", "large")
    shown.wait_for("Comment out EMBEDDING_MODEL? [Y/n]: ")
    shown.type(answer)
    assert 0 == shown.finish()
    assert f"{expected}\nEMBEDDING_PROFILE=large\n" == path.read_text(encoding="utf-8")
    assert (answer == "n") == ("still stands above" in " ".join(shown.plain.split()))


def test_a_dry_run_asks_nothing(terminal, write):
    """It only tells."""
    path = write(".env", "EMBEDDING_MODEL=leftover\n")
    shown = terminal("use", "large", "--dry-run")
    assert 0 == shown.finish()
    assert "Nothing was written." in shown.plain
    assert "still stands above large" in " ".join(shown.plain.split())
    assert "EMBEDDING_MODEL=leftover\n" == path.read_text(encoding="utf-8")


def test_an_undeclared_present_profile_leaves_no_default_to_choose(terminal, write):
    """The table still comes, and a name is an answer as well."""
    path = write(".env", "EMBEDDING_PROFILE=gone\n")
    shown = terminal("use")
    shown.wait_for("Profile (number or name): ")
    assert [] == [line for line in shown.plain.splitlines() if line.startswith("*")]
    shown.type("twin")
    assert 0 == shown.finish()
    assert "EMBEDDING_PROFILE=twin\n" == path.read_text(encoding="utf-8")


def test_json_never_asks(terminal):
    """Not even on a terminal: a program reads it."""
    shown = terminal("use", "--json")
    assert 2 == shown.finish()
    assert "embedkit use NAME" in shown.plain


def test_json_on_a_terminal_leaves_overrides_alone(terminal, write):
    """For the same reason."""
    path = write(".env", "EMBEDDING_MODEL=leftover\n")
    shown = terminal("use", "large", "--json")
    assert 0 == shown.finish()
    assert "EMBEDDING_MODEL=leftover\nEMBEDDING_PROFILE=large\n" == path.read_text(encoding="utf-8")
    data, _ = json.JSONDecoder().raw_decode(shown.plain)
    assert [] == data["commented_out"]
