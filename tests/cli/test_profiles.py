"""`embedkit profiles`."""


def find(listed, name):
    """Give the listed profile of a name."""
    return next(one for one in listed if one["name"] == name)


def test_json_tells_of_every_profile(call):
    """The project's profiles over the packaged ones, the active one marked, where each is declared."""
    result = call("profiles", "--json")
    assert 0 == result.code
    small = find(result.json, "small")
    assert {
        "name": "small",
        "active": True,
        "description": "Sixteen numbers",
        "provider": "toy",
        "provider_state": "installed",
        "hint": "",
        "model": "words",
        "dimensions": 16,
        "batch_size": 4,
        "device": "auto",
        "declared_in": "profiles.toml [profiles.small]",
        "overridden_by": {},
    } == small
    assert ["small"] == [one["name"] for one in result.json if one["active"]]
    assert "packaged profiles.toml [profiles.mini]" == find(result.json, "mini")["declared_in"]


def test_a_missing_provider_is_told_with_its_hint(call):
    """Fault 27. The install command is the declared one."""
    absent = find(call("profiles", "--json").json, "absent")
    assert ("not installed", "python -m pip install toy-absent") == (absent["provider_state"], absent["hint"])
    table = call("profiles")
    assert "absent (not installed)" in table.stdout
    assert "absent is not installed: python -m pip install toy-absent" in table.stderr


def test_a_provider_that_the_allow_list_keeps_out_is_not_called_absent(call, monkeypatch):
    """Fault 30. Installing it once more would mend nothing."""
    monkeypatch.setenv("EMBEDKIT_PLUGINS", "nobody")
    kept_out = find(call("profiles", "--json").json, "mini")
    assert ("not allowed", "EMBEDKIT_PLUGINS or EMBEDKIT_DISABLE_PLUGIN_AUTOLOAD keeps it out") == (
        kept_out["provider_state"],
        kept_out["hint"],
    )
    table = call("profiles")
    assert "local (not allowed)" in table.stdout
    assert "local is not allowed: EMBEDKIT_PLUGINS or" in table.stderr
    assert "plugins/embedkit-local" not in table.stderr
    switch = call("use", "mini", "--dry-run").stderr
    assert "not allowed by EMBEDKIT_PLUGINS" in switch
    assert "plugins/embedkit-local" not in switch


def test_the_table_marks_the_active_profile_and_says_who_chose_it(call, write):
    """The table is data on stdout; the rest is talk on stderr."""
    write(".env", "# ours\nEMBEDDING_PROFILE=large\n")
    result = call("profiles")
    marked = [line.split() for line in result.stdout.splitlines() if line.startswith("*")]
    assert [["*", "large", "toy", "words", "32", "256", "profiles.toml"]] == marked
    assert "active: large, from .env:2 EMBEDDING_PROFILE" in result.stderr


def test_overrides_are_applied_to_the_active_profile_and_named(call, monkeypatch):
    """Whoever wonders about a value sees the variable."""
    monkeypatch.setenv("EMBEDDING_BATCH_SIZE", "7")
    result = call("profiles")
    assert (
        "EMBEDDING_BATCH_SIZE overrides its batch_size: environment variable EMBEDDING_BATCH_SIZE (hides 4"
        in result.stderr
    )
    small = find(call("profiles", "--json").json, "small")
    assert 7 == small["batch_size"]
    assert ["EMBEDDING_BATCH_SIZE"] == list(small["overridden_by"])
    assert 8 == find(call("profiles", "--json").json, "twin")["batch_size"]


def test_a_misspelt_variable_is_warned_about(call, monkeypatch):
    """Fault 11. The nearest name is given."""
    monkeypatch.setenv("EMBEDDING_BATCHSIZE", "7")
    assert (
        "warning: EMBEDDING_BATCHSIZE is no variable of embedkit; did you mean EMBEDDING_BATCH_SIZE?"
        in call("profiles").stderr
    )


def test_an_unknown_active_profile_is_refused_with_the_nearest(call, monkeypatch):
    """Fault 6. The exit code is that of a configuration fault."""
    monkeypatch.setenv("EMBEDDING_PROFILE", "smal")
    result = call("profiles")
    assert 2 == result.code
    assert (
        "There is no profile 'smal'.\n  from: environment variable EMBEDDING_PROFILE\n  hint: did you mean small?"
        in result.stderr
    )
    assert "" == result.stdout


def test_a_terminal_shows_the_table_in_eighty_columns(terminal):
    """Nothing runs over the edge, and nothing is cut."""
    shown = terminal("profiles")
    assert 0 == shown.finish()
    assert "declared in" in shown.plain
    table, _, _ = shown.plain.partition("absent is not installed")
    assert 80 >= max(len(line) for line in table.splitlines())
