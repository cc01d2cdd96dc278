"""What is laid over a profile: overrides, the coupled rule, the device of a call, and secrets by their variables."""

from __future__ import annotations

import pickle

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.config import OVERRIDE_VARIABLES, read_config
from embedkit.errors import ConfigError, SettingError, UnknownProfileError
from embedkit.options import Origin, Secret, list_options, option
from embedkit.profile import Profile
from embedkit.resolve import require_no_identity_override, resolve_options, resolve_profile, resolve_reranker

TOML = """
default = "big"

[profiles.big]
description = "the big one"
model = "org/big"
dimensions = 1536
batch_size = 32
query_prompt = "Query: "
document_prompt = "Document: "
normalize = false
too_long = "error"
reranker = "judge"
price_per_million_tokens = 0.02

[profiles.big.reference]
text = "t"
components = [1.0, 0.5]
source = "s"

[profiles.big.options]
revision = "abc"
append_eos = true
dtype = "bfloat16"
base_url = "http://here"
api_key_env = "BIG_KEY"

[profiles.small]
model = "org/small"

[rerankers.judge]
model = "org/judge"
batch_size = 8
"""


@attrs.frozen(kw_only=True)
class Options:
    """Options of a provider that belong to the model, the machine and the connection."""

    revision: str | None = option(help="the commit", default=None)
    append_eos: bool = option(help="end each text", default=False)
    dtype: str = option(help="precision", default="float32", belongs_to="machine")
    base_url: str | None = option(help="the server", default=None, belongs_to="connection")
    api_key_env: Secret | None = option(  # it gives a field
        help="the key", default=None, belongs_to="connection"
    )


def find_options(provider):
    """Give the options class of the one provider that is installed."""
    return Options if provider == "local" else None


@pytest.fixture
def project(tmp_path):
    """Give a project's root with profiles."""
    (tmp_path / "profiles.toml").write_text(TOML, encoding="utf-8")
    return tmp_path


def read(project, env_file="", **environ):
    """Read the configuration of a project whose .env holds *env_file*."""
    (project / ".env").write_text(env_file, encoding="utf-8")
    return read_config(environ=environ, directory=project)


def resolve(config, name=None, **arguments):
    """Resolve with the toy options class."""
    return resolve_profile(config, name, find_options=find_options, **arguments)


# Without overrides


def test_a_profile_is_what_its_table_states_over_the_defaults(project):
    """And says of each value where it was stated; a default has no origin of its own."""
    profile = resolve(read(project), "small")
    assert attrs.evolve(Profile(name="small", model="org/small")) == profile
    assert {"model": Origin(f"{project / 'profiles.toml'} [profiles.small]")} == profile.origins


def test_without_a_name_the_files_default_is_meant(project):
    """EMBEDDING_PROFILE stands above it, and an explicit name above that."""
    assert "big" == resolve(read(project)).name
    assert "small" == resolve(read(project, EMBEDDING_PROFILE="small")).name
    assert "big" == resolve(read(project, EMBEDDING_PROFILE="small"), "big").name
    with pytest.raises(UnknownProfileError) as caught:
        resolve(read(project), "bigg")
    assert ("the call", True) == (caught.value.origin, caught.value.hint.startswith("did you mean big?"))


def test_an_unknown_profile_in_the_environment_harms_only_who_asks_for_it(project):
    """Fault 6. A call that names its profile does not care."""
    config = read(project, EMBEDDING_PROFILE="nope")
    assert "small" == resolve(config, "small").name
    with pytest.raises(UnknownProfileError, match="environment variable EMBEDDING_PROFILE"):
        resolve(config)


# Overrides


def test_overrides_apply_to_whichever_profile_was_chosen(project):
    """The environment is last, also over a profile that the call names."""
    config = read(project, EMBEDDING_BATCH_SIZE="7", EMBEDDING_DEVICE="cuda:1")
    for name in (None, "big", "small"):
        profile = resolve(config, name)
        assert (7, "cuda:1") == (profile.batch_size, profile.device)


def test_an_override_says_all_that_it_hides(project):
    """Fault 12. Down to the table."""
    path = project / "profiles.toml"
    profile = resolve(read(project, "EMBEDDING_BATCH_SIZE=64\n", EMBEDDING_BATCH_SIZE="7"))
    origin = (
        "environment variable EMBEDDING_BATCH_SIZE "
        f"(hides '64' in {project / '.env'}:1 EMBEDDING_BATCH_SIZE (hides 32 in {path} [profiles.big]))"
    )
    assert (7, origin) == (profile.batch_size, str(profile.origins["batch_size"]))


def test_overrides_are_left_out_where_that_is_asked(project):
    """A list of profiles shows those that are not active as they were declared."""
    assert 32 == resolve(read(project, EMBEDDING_BATCH_SIZE="7"), override=False).batch_size


def test_the_device_of_a_call_stands_above_every_layer(project):
    """`--device` and `get_embedder(device=…)`."""
    profile = resolve(read(project, EMBEDDING_DEVICE="cuda"), device="cpu")
    assert ("cpu", "the call (hides 'cuda' in environment variable EMBEDDING_DEVICE)") == (
        profile.device,
        str(profile.origins["device"]),
    )
    with pytest.raises(SettingError, match="device must be a string that is not empty, not ''") as caught:
        resolve(read(project), device="")
    assert "the call" == caught.value.origin


@pytest.mark.parametrize(
    ("name", "value", "problem", "hint"),
    [
        (
            "EMBEDDING_BATCH_SIZE",
            "lots",
            "batch_size must be a whole number of at least 1, not 'lots'.",
            "unset the variable, or set a value such as 256",
        ),
        (
            "EMBEDDING_BATCH_SIZE",
            "0",
            "batch_size must be a whole number of at least 1, not '0'.",
            "unset the variable, or set a value such as 256",
        ),
        (
            "EMBEDDING_DIMENSIONS",
            "384.0",
            "dimensions must be a whole number of at least 1, not '384.0'.",
            "unset the variable, or set a value such as 384",
        ),
        (
            "EMBEDDING_DIMENSIONS",
            "true",
            "dimensions must be a whole number of at least 1, not 'true'.",
            "unset the variable, or set a value such as 384",
        ),
        ("EMBEDDING_MODEL", "  ", "model must be a string that is not empty, not '  '.", "unset the variable"),
    ],
)
def test_an_override_of_the_wrong_type_names_its_variable(project, name, value, problem, hint):
    """Fault 10."""
    with pytest.raises(SettingError) as caught:
        resolve(read(project, **{name: value}))
    assert (problem, hint) == (caught.value.problem, caught.value.hint)
    assert caught.value.origin.startswith(f"environment variable {name} (hides ")


def test_all_wrong_overrides_are_reported_at_once(project):
    """Fault 10."""
    with pytest.raises(ConfigError) as caught:
        resolve(read(project, EMBEDDING_BATCH_SIZE="lots", EMBEDDING_DIMENSIONS="-1"))
    assert {"dimensions", "batch_size"} == {fault.problem.split()[0] for fault in caught.value.faults}


def test_blanks_around_an_override_do_not_count(project):
    """A trailing blank is easily typed and never meant."""
    profile = resolve(read(project, EMBEDDING_MODEL=" org/new ", EMBEDDING_DIMENSIONS=" 8 "))
    assert ("org/new", 8) == (profile.model, profile.dimensions)


# The coupled rule


def test_another_model_drops_what_belongs_to_the_model(project):
    """Dimensions, prompts, reference, price and description; machine and connection settings stay."""
    profile = resolve(read(project, EMBEDDING_MODEL="org/new"))
    kept = {
        "dtype": "bfloat16",
        "base_url": "http://here",
        "api_key_env": "BIG_KEY",
    }
    assert (
        Profile(name="big", model="org/new", batch_size=32, too_long="error", reranker="judge", options=kept) == profile
    )


def test_what_was_dropped_is_explained(project):
    """`explain` shows for each value what it was, where that stood, and why it is gone."""
    origins = resolve(read(project, EMBEDDING_MODEL="org/new")).origins
    table = f"{project / 'profiles.toml'} [profiles.big]"
    assert {
        "model": f"environment variable EMBEDDING_MODEL (hides 'org/big' in {table})",
        "dimensions": f"default; 1536 of {table} was dropped with the model that it belongs to",
        "query_prompt": f"default; 'Query: ' of {table} was dropped with the model that it belongs to",
        "options": f"{table}; append_eos, revision dropped with the model that they belong to",
    } == {key: str(origins[key]) for key in ("model", "dimensions", "query_prompt", "options")}


def test_variables_for_what_was_dropped_still_apply(project):
    """Also one that says again what the profile had said of the old model."""
    for dimensions in (8, 1536):
        profile = resolve(read(project, EMBEDDING_MODEL="org/new", EMBEDDING_DIMENSIONS=str(dimensions)))
        assert dimensions == profile.dimensions
        assert (
            "environment variable EMBEDDING_DIMENSIONS; "
            f"1536 of {project / 'profiles.toml'} [profiles.big] was dropped with the model that it belongs to"
        ) == str(profile.origins["dimensions"])


def test_an_override_equal_to_the_profiles_value_is_none(project):
    """Nothing is dropped, and the value keeps its origin; the same for a default that nobody stated."""
    declared = resolve(read(project))
    stated = read(project, EMBEDDING_MODEL="org/big", EMBEDDING_PROVIDER="local", EMBEDDING_DEVICE="auto")
    assert (declared, declared.origins) == (resolve(stated), resolve(stated).origins)


def test_a_variable_that_environment_and_env_file_set_counts_once(project):
    """What .env says under the environment's value is hidden, and drops nothing."""
    assert 1536 == resolve(read(project, "EMBEDDING_MODEL=org/new\n", EMBEDDING_MODEL="org/big")).dimensions


def test_another_provider_drops_all_options(project):
    """They are that provider's; the model and what belongs to it stays."""
    profile = resolve(read(project, EMBEDDING_PROVIDER="remote"))
    assert ("remote", {}, "org/big", 1536, "Query: ") == (
        profile.provider,
        profile.options,
        profile.model,
        profile.dimensions,
        profile.query_prompt,
    )
    assert str(profile.origins["options"]).endswith(" was dropped with the provider that they belong to")


def test_another_provider_and_model_drop_both(project):
    """Nothing of the old ones is left but the settings of the machine."""
    profile = resolve(read(project, EMBEDDING_PROVIDER="remote", EMBEDDING_MODEL="org/new"))
    expected = Profile(
        name="big", provider="remote", model="org/new", batch_size=32, too_long="error", reranker="judge"
    )
    assert expected == profile


def test_options_that_nobody_knows_stay(project):
    """They are refused later, by name, with the others that the provider does not have."""
    (project / "profiles.toml").write_text(TOML.replace("revision =", "revison ="), encoding="utf-8")
    profile = resolve(read(project, EMBEDDING_MODEL="org/new"))
    assert "revison" in profile.options
    with pytest.raises(SettingError, match=r"did you mean revision\?"):
        resolve_options(profile, Options, {})


def test_options_of_a_provider_that_is_not_installed_stay(project):
    """Nobody can say what belongs to the model; the provider's absence is the error that will be raised."""
    config = read(project, EMBEDDING_MODEL="org/new")
    profile = resolve_profile(config, find_options=lambda _: None)
    assert ("abc", None) == (profile.options["revision"], profile.dimensions)


def test_the_profile_that_declares_the_other_model_is_named(project):
    """The embedder's warning about missing prompts ends with this note."""
    profile = resolve(read(project, EMBEDDING_MODEL="org/small"))
    note = "; profile 'small' declares org/small with its own settings: EMBEDDING_PROFILE=small"
    assert profile.origins["query_prompt"].note.endswith(note)


def test_a_prompt_that_was_never_stated_is_noted_too(project):
    """The other model may want one: the embedder warns where the model brings none of its own."""
    profile = resolve(read(project, EMBEDDING_MODEL="org/big"), "small")
    assert (None, True) == (profile.query_prompt, "EMBEDDING_PROFILE=big" in profile.origins["query_prompt"].note)
    assert "query_prompt" not in resolve(read(project), "small").origins


def test_plain_variables_work_with_no_profile_at_all(tmp_path):
    """A project that only sets a model and its dimensions has nothing of the packaged default's model."""
    (tmp_path / "pyproject.toml").touch()
    config = read_config(environ={"EMBEDDING_MODEL": "m", "EMBEDDING_DIMENSIONS": "9"}, directory=tmp_path)
    profile = resolve(config)
    assert ("local", "m", 9, None, None) == (
        profile.provider,
        profile.model,
        profile.dimensions,
        profile.query_prompt,
        profile.document_prompt,
    )
    assert "append_eos" not in profile.options


def test_a_command_on_several_profiles_refuses_an_identity_override(project):
    """It would make them the same; device and batch size do not, and neither does the choice of a profile."""
    harmless = {"EMBEDDING_DEVICE": "cpu", "EMBEDDING_BATCH_SIZE": "1", "EMBEDDING_PROFILE": "small"}
    require_no_identity_override(read(project, **harmless), "compare")
    for name in ("EMBEDDING_PROVIDER", "EMBEDDING_MODEL", "EMBEDDING_DIMENSIONS"):
        with pytest.raises(SettingError) as caught:
            require_no_identity_override(read(project, f"{name}=1\n"), "compare")
        assert f"compare works with several profiles, and {name} would make them the same." == caught.value.problem
        assert (f"{project / '.env'}:1 {name}", True) == (caught.value.origin, f"unset {name}" in caught.value.hint)


# Any layers

FIELDS = list_options(Profile)
LAYERED = {
    "provider": st.sampled_from(["local", "remote"]),
    "model": st.sampled_from(["org/a", "org/b"]),
    "dimensions": st.integers(1, 3),
    "device": st.sampled_from(["auto", "cpu"]),
    "batch_size": st.sampled_from([1, 256]),
}
layer = st.fixed_dictionaries({}, optional=LAYERED)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """Give one project for all examples, which each of them overwrites."""
    return tmp_path_factory.mktemp("any")


@settings(max_examples=150, deadline=None)
@given(table=layer, in_file=layer, in_environ=layer)
def test_the_highest_layer_that_states_a_key_wins_and_is_named(scratch, table, in_file, in_environ):
    """Fault 12. But for dimensions that were dropped with their model, and values that say what is said below."""
    table = {"model": "org/a", **table}
    lines = [f"{key} = {value!r}" for key, value in table.items()]
    (scratch / "profiles.toml").write_text("\n".join(["[profiles.p]", *lines]), encoding="utf-8")
    variables = {key: name for name, key in OVERRIDE_VARIABLES.items()}
    env_file = "\n".join(f"{variables[key]}={value}" for key, value in in_file.items())
    config = read(scratch, env_file, **{variables[key]: str(value) for key, value in in_environ.items()})
    profile = resolve(config, "p")

    overrides = {**in_file, **in_environ}
    is_other_model = overrides.get("model", table["model"]) != table["model"]
    declared = {key: value for key, value in table.items() if not (key == "dimensions" and is_other_model)}
    for key in LAYERED:
        below = declared.get(key, FIELDS[key].default)
        value = overrides.get(key, below)
        assert value == getattr(profile, key)
        source = profile.origins[key].source if key in profile.origins else "default"
        if value != below and key in in_environ:
            assert f"environment variable {variables[key]}" == source
        elif value != below:
            assert source.endswith(f" {variables[key]}")
            assert ".env:" in source
        else:
            assert ("default" if key not in declared else f"{scratch / 'profiles.toml'} [profiles.p]") == source


# Rerankers


@pytest.mark.parametrize("value", ["true", "1", "YES", " on "])
def test_a_reranker_is_given_where_it_is_switched_on(project, value):
    """The profile names it; it comes with its own settings."""
    config = read(project, ENABLE_RERANKER=value)
    reranker = resolve_reranker(config, resolve(config))
    assert ("judge", "org/judge", 8) == (reranker.name, reranker.model, reranker.batch_size)
    assert f"{project / 'profiles.toml'} [rerankers.judge]" == str(reranker.origins["model"])


@pytest.mark.parametrize("value", ["", "false", "0", "No", "off"])
def test_no_reranker_is_given_where_it_is_not_switched_on(project, value):
    """A profile that names one is not enough; unset and empty are off."""
    config = read(project, ENABLE_RERANKER=value)
    assert resolve_reranker(config, resolve(config)) is None


@pytest.mark.parametrize("value", ["maybe", "2", "tru"])
def test_the_switch_of_the_reranker_is_strict(project, value):
    """Fault 10."""
    config = read(project, ENABLE_RERANKER=value)
    with pytest.raises(SettingError) as caught:
        resolve_reranker(config, resolve(config))
    assert f"ENABLE_RERANKER must be true or false, not {value!r}." == caught.value.problem
    assert "environment variable ENABLE_RERANKER" == caught.value.origin
    assert "unset the variable, or set a value such as true" == caught.value.hint


def test_a_switched_on_reranker_that_no_profile_names_is_an_error(project):
    """Saying nothing would return worse results than were asked for."""
    config = read(project, ENABLE_RERANKER="true")
    with pytest.raises(SettingError) as caught:
        resolve_reranker(config, resolve(config, "small"))
    assert "ENABLE_RERANKER is on, and profile 'small' names no reranker." == caught.value.problem
    expected = 'add reranker = "…" to [profiles.small] (declared: judge), or unset ENABLE_RERANKER'
    assert ("environment variable ENABLE_RERANKER", expected) == (caught.value.origin, caught.value.hint)


def test_a_reranker_that_is_not_declared_is_an_error(project):
    """With where the profile names it, and those that are declared."""
    (project / "profiles.toml").write_text(TOML.replace('reranker = "judge"', 'reranker = "jury"'), encoding="utf-8")
    config = read(project, ENABLE_RERANKER="true")
    with pytest.raises(SettingError) as caught:
        resolve_reranker(config, resolve(config))
    assert ("There is no reranker 'jury'.", "declared: judge") == (caught.value.problem, caught.value.hint)
    assert f"{project / 'profiles.toml'} [profiles.big]" == caught.value.origin


# Options and secrets


def test_options_are_typed_by_the_providers_class(project):
    """What is stated is read strictly, the rest is the class's own."""
    options = resolve_options(resolve(read(project)), Options, {})
    assert ("abc", True, "bfloat16") == (options.revision, options.append_eos, options.dtype)


def test_wrong_options_are_named_with_their_table(project):
    """Faults 7 and 8. All at once."""
    text = TOML.replace('revision = "abc"', "revision = 7\nappend_eoss = true")
    (project / "profiles.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        resolve_options(resolve(read(project)), Options, {})
    assert ["revision must be a string, not 7.", "'append_eoss' is no known setting."] == [
        fault.problem for fault in caught.value.faults
    ]
    assert {f"{project / 'profiles.toml'} [profiles.big]"} == {fault.origin for fault in caught.value.faults}
    with pytest.raises(SettingError, match="from: options of profile 'code'"):
        resolve_options(Profile(name="code", model="m", options={"x": 1}), Options, {})


@pytest.mark.parametrize("place", ["environment", ".env"])
def test_a_secret_comes_from_the_variable_that_the_profile_names(project, place):
    """From the environment or .env, each with its origin."""
    config = read(project, BIG_KEY="s3cret") if place == "environment" else read(project, "BIG_KEY=s3cret\n")
    secret = resolve_options(resolve(config), Options, config.variables).api_key_env
    assert ("BIG_KEY", "s3cret") == (secret.variable, secret.reveal())
    assert (
        "environment variable BIG_KEY" if place == "environment" else f"{project / '.env'}:1 BIG_KEY"
    ) == secret.origin


@pytest.mark.parametrize("environ", [{}, {"BIG_KEY": ""}])
def test_a_secret_that_is_not_set_is_named_when_it_is_needed(project, environ):
    """Fault 20. Listing and explaining work without it."""
    config = read(project, **environ)
    secret = resolve_options(resolve(config), Options, config.variables).api_key_env
    assert not secret.is_set
    with pytest.raises(SettingError) as caught:
        secret.reveal()
    assert "The environment variable BIG_KEY is not set, and it should hold a secret." == caught.value.problem
    assert f"{project / 'profiles.toml'} [profiles.big]" == caught.value.origin


@pytest.mark.parametrize("pasted", ["sk-abcdef", "abcdef0123456789", "é", "two words"])
def test_a_secret_that_was_pasted_into_the_file_is_never_shown(project, pasted):
    """Fault 21. The error must not carry it into a log."""
    (project / "profiles.toml").write_text(TOML.replace("BIG_KEY", pasted), encoding="utf-8")
    with pytest.raises(SettingError) as caught:
        resolve_options(resolve(read(project)), Options, {})
    assert "must be the name of an environment variable" in caught.value.problem
    assert pasted not in str(caught.value)


def test_a_secrets_value_shows_in_no_error_origin_or_repr(project):
    """Faults 21 and 90. Neither the one in force nor the one that it hides."""
    text = TOML.replace("revision =", "revison =")
    (project / "profiles.toml").write_text(text, encoding="utf-8")
    config = read(project, "BIG_KEY=s3cret-old\n", BIG_KEY="s3cret-new")
    profile = resolve(config)
    with pytest.raises(ConfigError) as caught:
        resolve_options(profile, Options, config.variables)
    (project / "profiles.toml").write_text(TOML, encoding="utf-8")
    config = read(project, "BIG_KEY=s3cret-old\n", BIG_KEY="s3cret-new")
    options = resolve_options(resolve(config), Options, config.variables)
    shown = f"{caught.value} {options} {options.api_key_env.origin} {profile!r} {config!r}"
    assert "s3cret" not in shown
    assert "s3cret-new" == options.api_key_env.reveal()
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(options)
