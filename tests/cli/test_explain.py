"""`embedkit explain`."""


def test_json_tells_value_origin_and_what_is_hidden(call, write, monkeypatch):
    """Fault 12. The environment stands above .env, .env above the file, and each layer is named."""
    write(".env", "EMBEDDING_BATCH_SIZE=5\n")
    monkeypatch.setenv("EMBEDDING_BATCH_SIZE", "6")
    result = call("explain", "--json")
    assert 0 == result.code
    assert {
        "value": 6,
        "from": {
            "source": "environment variable EMBEDDING_BATCH_SIZE",
            "hides": {
                "value": "5",
                "source": ".env:1 EMBEDDING_BATCH_SIZE",
                "hides": {"value": 4, "source": "profiles.toml [profiles.small]"},
            },
        },
    } == result.json["settings"]["batch_size"]
    assert {"value": "auto", "from": {"source": "default"}} == result.json["settings"]["device"]
    assert {"source": "profiles.toml default"} == result.json["chosen_by"]


def test_the_table_tells_the_same_to_people(call, write, monkeypatch):
    """One line for each setting."""
    write(".env", "EMBEDDING_PROFILE=twin\n")
    monkeypatch.setenv("EMBEDDING_PROFILE", "large")
    result = call("explain")
    assert 0 == result.code
    assert (
        "profile large, from environment variable EMBEDDING_PROFILE (hides 'twin' in .env:1 EMBEDDING_PROFILE)"
        == result.stdout.splitlines()[0]
    )
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    assert ["dimensions", "32", "profiles.toml"] in lines
    assert ["normalize", "true", "default"] in lines
    assert "max_tokens  512    default: a text is cut off after so many words" in result.stdout


def test_a_profile_is_named_by_argument_or_option(call):
    """Before the command, after it, or as its argument."""
    for arguments in (("explain", "twin"), ("--profile", "twin", "explain"), ("explain", "--profile", "twin")):
        assert "profile twin, named on the command line" == call(*arguments).stdout.splitlines()[0]


def test_two_profiles_are_refused(call):
    """Nobody knows which was meant."""
    result = call("explain", "twin", "--profile", "small")
    assert 2 == result.code
    assert "Two profiles were named: twin and --profile small." in result.stderr


def test_an_override_of_the_model_shows_what_was_dropped(call, monkeypatch):
    """The prompt went with the model, and it is said which profile declares that model."""
    monkeypatch.setenv("EMBEDDING_MODEL", "other words")
    settings = call("explain", "large", "--json").json["settings"]
    assert ("other words", None) == (settings["model"]["value"], settings["dimensions"]["value"])
    assert "32 of profiles.toml [profiles.large] was dropped with the model" in settings["dimensions"]["from"]["note"]
    assert "EMBEDDING_PROFILE=other" in settings["query_prompt"]["from"]["note"]


def test_a_secret_is_never_shown(call, write, monkeypatch):
    """Only its variable, and whether that is set; nor is the user in an address."""
    monkeypatch.setenv("SHOP_KEY", "sk-very-secret")
    table, data = call("explain", "secretive"), call("explain", "secretive", "--json")
    assert "SHOP_KEY (set)" in table.stdout
    assert "https://***@shop.example/v1" in table.stdout
    assert ("SHOP_KEY", True) == (
        data.json["options"]["api_key_env"]["variable"],
        data.json["options"]["api_key_env"]["is_set"],
    )
    for output in (table.stdout, data.stdout):
        assert "sk-very-secret" not in output
        assert "hunter2" not in output
    monkeypatch.delenv("SHOP_KEY")
    assert "SHOP_KEY (not set)" in call("explain", "secretive").stdout


def test_an_absent_provider_does_not_hinder(call, write, monkeypatch):
    """Fault 27. Options are shown as they are written, but for what may be a secret."""
    text = """
    [profiles.gone]
    provider = "absent"
    model = "nobody"
    [profiles.gone.options]
    region = "eu"
    api_key = "sk-very-secret"
    url = "https://user:hunter2@shop.example"
    headers = {Authorization = "Bearer sk-very-secret"}
    """
    monkeypatch.setenv("EMBEDKIT_PROFILES", str(write("gone.toml", text)))
    table, data = call("explain", "gone"), call("explain", "gone", "--json")
    assert (0, 0) == (table.code, data.code)
    assert ("eu", "***") == (data.json["options"]["region"]["value"], data.json["options"]["api_key"]["value"])
    assert "The provider 'absent' is not installed." == data.json["provider"]["problem"]
    assert "The provider 'absent' is not installed." in table.stdout
    assert "sk-very-secret" not in table.stdout + data.stdout
    assert "hunter2" not in table.stdout + data.stdout


def test_a_password_in_a_models_address_is_hidden_wherever_it_shows(call, write, monkeypatch):
    """Also as the value that an override hides, and in the lists."""
    text = """
    default = "far"
    [profiles.far]
    provider = "toy"
    model = "https://user:hunter2@shop.example/words"
    """
    monkeypatch.setenv("EMBEDKIT_PROFILES", str(write("far.toml", text)))
    for model in ("", "words"):
        monkeypatch.setenv("EMBEDDING_MODEL", model)
        for arguments in (("explain",), ("explain", "--json"), ("profiles",), ("profiles", "--json")):
            result = call(*arguments)
            assert "***@shop.example" in result.stdout + result.stderr
            assert "hunter2" not in result.stdout + result.stderr


def test_options_of_a_dropped_provider_are_named_by_key_alone(call, monkeypatch):
    """Nobody knows which of them hold a secret."""
    monkeypatch.setenv("EMBEDDING_PROVIDER", "toy")
    result = call("explain", "secretive")
    assert "options: api_key_env, base_url of profiles.toml [profiles.secretive] was dropped" in result.stdout
    assert "hunter2" not in result.stdout


def test_wrong_options_are_shown_and_refused(call, write, monkeypatch):
    """Fault 7. The rest is explained all the same."""
    text = """
    [profiles.wrong]
    provider = "toy"
    model = "words"
    options = { max_token = 3 }
    """
    monkeypatch.setenv("EMBEDKIT_PROFILES", str(write("wrong.toml", text)))
    result = call("explain", "wrong")
    assert 2 == result.code
    assert "profile wrong" in result.stdout
    assert "'max_token' is no known setting." in result.stderr
    assert "did you mean max_tokens?" in result.stderr


def test_the_files_that_were_read_are_named(call, project):
    """So that nobody edits another one."""
    result = call("explain", "--json")
    assert str(project / "profiles.toml") == result.json["files"]["profiles"][0]
    assert None is result.json["files"]["env_file"]
    assert ".env      none; it would be .env" in call("explain").stdout


def test_a_missing_file_of_profiles_and_a_misspelt_variable_are_said(call, project, monkeypatch):
    """Faults 1 and 11. Both may be why a value is not the one that somebody expects."""
    (project / "profiles.toml").unlink()
    monkeypatch.setenv("EMBEDDING_BATCHSIZE", "7")
    result = call("explain", "mini")
    assert 0 == result.code
    assert f"no profiles.toml of your own from {project} upward" in result.stdout
    assert "warning: EMBEDDING_BATCHSIZE is no variable of embedkit" in result.stderr
    assert 1 == len(call("explain", "mini", "--json").json["warnings"])


def test_a_table_inside_a_profile_is_shown(call, write, monkeypatch):
    """The reference vector of a model, and nothing where a provider has no options."""
    text = """
    [profiles.known]
    provider = "plain"
    model = "words"
    reference = { text = "hello", components = [0.5, 1], source = "a page" }
    """
    monkeypatch.setenv("EMBEDKIT_PROFILES", str(write("known.toml", text)))
    data = call("explain", "known", "--json").json
    expected = {"text": "hello", "components": [0.5, 1.0], "source": "a page"}
    assert expected == data["settings"]["reference"]["value"]
    assert {} == data["options"]
    assert "\noption " not in call("explain", "known").stdout


def test_an_unknown_profile_is_refused(call):
    """Fault 6."""
    result = call("explain", "lagre")
    assert 2 == result.code
    assert "did you mean large?" in result.stderr


def test_the_last_run_is_shown_where_it_is_known(call):
    """How the model was run when it was last loaded here; a damaged model is no reason to explain nothing."""
    assert ["packed, float32", "not bfloat16: it does not agree"] == call("explain", "blind", "--json").json["last_run"]
    lines = call("explain", "blind").stdout.splitlines()
    start = lines.index("last run  packed, float32")
    assert "          not bfloat16: it does not agree" == lines[start + 1]
    assert [[], []] == [call("explain", name, "--json").json["last_run"] for name in ("small", "damaged")]
