"""Declared settings: their strict types, where values come from, secrets, and all faults at once."""

from __future__ import annotations

import copy
import datetime as dt
import pickle
from collections.abc import Mapping
from typing import Literal

import attrs
import pytest

from embedkit.errors import ConfigError, SettingError
from embedkit.options import (
    CALL,
    DEFAULT,
    Origin,
    Secret,
    find_nearest,
    list_options,
    option,
    read_options,
    read_value,
    read_values,
    refuse_unknown_key,
    show_value,
)

TABLE = Origin("profiles.toml [profiles.speed.options]")


@attrs.frozen(kw_only=True)
class Corner:
    """A table in the table."""

    width: int = option(help="wide")
    label: str = option(help="a word", default="", at_least=1)


@attrs.frozen(kw_only=True)
class Settings:
    """One field of every kind."""

    count: int = option(help="how many", default=256, at_least=1, env="TEST_COUNT", belongs_to="machine")
    share: float | None = option(help="a part", default=None, at_least=0)
    name: str = option(help="a name", default="x", at_least=1)
    exact: bool = option(help="yes or no", default=False)
    kind: Literal["mean", "cls", 3] = option(help="which", default="mean")  # it gives a field
    numbers: tuple[float, ...] = option(help="a list", default=())
    words: tuple[str, ...] | None = option(help="a list", default=None)
    table: Mapping[str, object] | None = option(help="a table", default=None)  # it gives a field
    corner: Corner | None = option(help="a table of its own", default=None)  # it gives a field
    key_env: Secret | None = option(help="a key", default=None, belongs_to="connection")  # it gives a field
    undeclared: int = 7


FIELDS = list_options(Settings)


def read(name, raw, **arguments):
    """Read one value of `Settings`."""
    return read_value(FIELDS[name], raw, origin=TABLE, **arguments)


def read_toy_secret(variable, origin):
    """Look a secret up among toy variables."""
    return Secret(variable, {"TOY_KEY": "s3cret"}.get(variable), origin=str(origin))


# ---------- declarations


def test_declared_fields_are_listed_with_all_that_was_declared():
    """What `explain` shows and errors use; fields that were not declared are no settings."""
    assert "undeclared" not in FIELDS
    field = FIELDS["count"]
    declared = (field.name, field.annotation, field.default, field.help, field.belongs_to, field.env, field.at_least)
    assert ("count", int, 256, "how many", "machine", "TEST_COUNT", 1) == declared
    assert attrs.NOTHING is list_options(Corner)["width"].default
    assert ["key_env"] == [name for name, field in FIELDS.items() if field.is_secret]


# ---------- strict types


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("count", 32, 32),
        ("count", 1, 1),
        ("share", 0.5, 0.5),
        ("share", 2, 2.0),
        ("share", 0, 0.0),
        ("share", None, None),
        ("name", "32", "32"),
        ("exact", True, True),
        ("kind", "cls", "cls"),
        ("kind", 3, 3),
        ("numbers", [1, 2.5], (1.0, 2.5)),
        ("numbers", (), ()),
        ("words", ["a"], ("a",)),
        ("words", None, None),
        ("table", {"a": {"b": 1}}, {"a": {"b": 1}}),
        ("corner", None, None),
        ("corner", {"width": 2}, Corner(width=2)),
        ("corner", Corner(width=2), Corner(width=2)),
    ],
)
def test_value_of_the_right_type_is_taken(name, raw, value):
    """A whole number does for a number, a list for a tuple; nothing else is converted."""
    found = read(name, raw)
    assert (value, type(value)) == (found, type(found))


@pytest.mark.parametrize(
    "raw",
    ["32", 0, -1, True, False, 1.0, 0.5, float("nan"), float("inf"), dt.date(2024, 1, 1), [32], {}, None, ""],
    ids=repr,
)
def test_count_is_a_whole_number_of_at_least_one(raw):
    """Whatever else TOML can write is refused with type, range, value, place and mend. Fault 8."""
    with pytest.raises(SettingError) as caught:
        read("count", raw)
    error = caught.value
    assert f"count must be a whole number of at least 1, not {raw!r}." == error.problem
    assert ("profiles.toml [profiles.speed.options]", True) == (error.origin, "count = " in error.hint)


@pytest.mark.parametrize(
    ("name", "raw", "problem"),
    [
        ("share", "0.5", "share must be a number of at least 0, not '0.5'."),
        ("share", True, "share must be a number of at least 0, not True."),
        ("share", -0.1, "share must be a number of at least 0, not -0.1."),
        ("share", float("nan"), "share must be a number of at least 0, not nan."),
        ("share", float("inf"), "share must be a number of at least 0, not inf."),
        ("share", 10**400, "share must be a number of at least 0, not 1000"),
        ("name", 3, "name must be a string that is not empty, not 3."),
        ("name", "  ", "name must be a string that is not empty, not '  '."),
        ("exact", 1, "exact must be true or false, not 1."),
        ("exact", "true", "exact must be true or false, not 'true'."),
        ("kind", "max", "kind must be one of 'mean', 'cls', 3, not 'max'."),
        ("kind", 3.0, "kind must be one of 'mean', 'cls', 3, not 3.0."),
        ("kind", None, "kind must be one of 'mean', 'cls', 3, not None."),
        ("numbers", "12", "numbers must be a list of numbers, not '12'."),
        ("numbers", ["1"], "numbers must be a list of numbers, not ['1']."),
        ("numbers", {1.0}, "numbers must be a list of numbers, not {1.0}."),
        ("words", [1], "words must be a list of strings, not [1]."),
        ("table", [1], "table must be a table, not [1]."),
        ("corner", 7, "corner must be a table, not 7."),
    ],
)
def test_value_of_another_type_is_refused(name, raw, problem):
    """The sentence names what is due and what was found. Fault 8."""
    with pytest.raises(SettingError) as caught:
        read(name, raw)
    assert caught.value.problem.startswith(problem)


def test_table_in_a_table_reports_all_its_faults():
    """Its faults are named with the inner table as their place. Fault 8."""
    with pytest.raises(ConfigError) as caught:
        read("corner", {"widht": 2, "label": ""})
    assert [
        "'widht' is no known setting.",
        "label must be a string that is not empty, not ''.",
        "width is required and missing.",
    ] == [fault.problem for fault in caught.value.faults]
    assert {"profiles.toml [profiles.speed.options] corner"} == {fault.origin for fault in caught.value.faults}


@pytest.mark.parametrize(
    ("name", "raw", "hint"),
    [
        ("count", "32", "without quotes: count = 32"),
        ("count", " 32 ", "without quotes: count = 32"),
        ("count", "0", "such as count = 256"),
        ("count", "many", "such as count = 256"),
        ("exact", "yes", "such as exact = false"),
        ("kind", "maen", "did you mean mean?"),
        ("kind", "nothing like it", ""),
        ("kind", 4, ""),
        ("share", "x", ""),
    ],
)
def test_hint_says_what_to_type_instead(name, raw, hint):
    """A value that can be typed as it stands, or no hint at all. Fault 8."""
    with pytest.raises(SettingError) as caught:
        read(name, raw)
    assert hint == caught.value.hint


# ---------- text of variables


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "32", 32),
        ("count", " 32 ", 32),
        ("share", "0.5", 0.5),
        ("name", " a name ", "a name"),
        ("exact", "TRUE", True),
        ("exact", "1", True),
        ("exact", "on", True),
        ("exact", "Yes", True),
        ("exact", "false", False),
        ("exact", "0", False),
        ("exact", "off", False),
        ("exact", "no", False),
        ("kind", "cls", "cls"),
        ("count", 32, 32),
    ],
)
def test_text_of_a_variable_is_parsed(name, text, value):
    """Numbers and booleans are written out there, with white space around. Fault 10."""
    found = read(name, text, from_text=True)
    assert (value, type(value)) == (found, type(found))


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("count", "lots", "unset the variable, or set a value such as 256"),
        ("count", "1.5", "unset the variable, or set a value such as 256"),
        ("count", "0", "unset the variable, or set a value such as 256"),
        ("count", "9" * 5000, "unset the variable, or set a value such as 256"),
        ("share", "much", "unset the variable"),
        ("share", "nan", "unset the variable"),
        ("exact", "maybe", "unset the variable, or set a value such as false"),
        ("kind", "maen", "did you mean mean?"),
    ],
)
def test_text_of_another_type_is_refused(name, text, hint):
    """The variable is the place to mend. Fault 10."""
    with pytest.raises(SettingError) as caught:
        read(name, text, from_text=True)
    assert caught.value.problem.startswith(f"{name} must be ")
    assert hint == caught.value.hint


# ---------- tables


def test_options_are_read_with_defaults_and_secrets():
    """What the table states is typed, the rest has its default, and a secret is looked up by its variable's name."""
    found = read_options(Settings, {"count": 2, "key_env": "TOY_KEY"}, origin=TABLE, read_secret=read_toy_secret)
    assert (2, "mean", 7) == (found.count, found.kind, found.undeclared)
    assert "s3cret" == found.key_env.reveal()


def test_all_faults_of_a_table_are_reported_at_once():
    """Unknown, missing and wrong keys together, each with its own sentence. Fault 7, 8."""
    table = {"cuont": 3, "share": "x", "corner": {"width": "2", "depth": 1}, "key_env": "sk-123"}
    with pytest.raises(ConfigError) as caught:
        read_options(Settings, table, origin=TABLE, read_secret=read_toy_secret)
    assert ["'cuont'", "share must", "width must", "'depth'", "key_env must"] == [
        " ".join(fault.problem.split()[: 1 if fault.problem.startswith("'") else 2]) for fault in caught.value.faults
    ]
    assert "The configuration has 5 faults." == caught.value.problem
    with pytest.raises(SettingError, match="width is required and missing") as alone:
        read_options(Corner, {}, origin=TABLE)
    assert "add: width = …" == alone.value.hint


def test_undeclared_field_is_no_option():
    """A field without `option()` cannot be set from a file. Fault 7."""
    with pytest.raises(SettingError, match="'undeclared' is no known setting"):
        read_options(Settings, {"undeclared": 8}, origin=TABLE)


def test_values_are_what_the_table_states():
    """Without defaults, and with the tables that somebody else reads as they are."""
    raw = {"share": 1, "options": {"any": "thing"}}
    assert {"share": 1.0, "options": {"any": "thing"}} == read_values(Settings, raw, origin=TABLE, untyped=["options"])
    with pytest.raises(SettingError, match="options must be a table, not 3"):
        read_values(Settings, {"options": 3}, origin=TABLE, untyped=["options"])
    with pytest.raises(SettingError) as caught:
        read_values(Settings, {"optoins": {}}, origin=TABLE, untyped=["options"])
    assert "did you mean options?" == caught.value.hint


# ---------- near misses


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("batchsize", "batch_size"),
        ("Batch_Size", "batch_size"),
        ("dim", "dimensions"),
        ("dimension", "dimensions"),
        ("modle", "model"),
        ("qery_prompt", "query_prompt"),
        ("zzz", None),
        ("node", None),
        ("", None),
    ],
)
def test_near_miss_is_recognised(name, nearest):
    """Letters swapped, left out, doubled or in capitals, and a name cut short. Fault 7."""
    assert nearest == find_nearest(name, ["model", "dimensions", "batch_size", "query_prompt", "description"])


def test_unknown_key_far_from_all_lists_the_known_ones():
    """Where nothing is near, the reader gets the choice. Fault 7."""
    assert "known keys: a_key, b_key" == refuse_unknown_key("zzz", ["b_key", "a_key"], TABLE).hint
    assert "known keys: none" == refuse_unknown_key("zzz", [], TABLE).hint


def test_long_and_immense_values_are_cut_when_shown():
    """A message stays readable whatever was in the file. Fault 5."""
    nested = []
    for _ in range(100_000):
        nested = [nested]
    assert 80 == len(show_value("x" * 1000))
    assert show_value("x" * 1000).endswith("…")
    assert "an immense list" == show_value(nested)
    assert "an immense int" == show_value(10**5000)
    while nested:
        nested = nested.pop()


# ---------- origins


def test_origin_says_what_it_hides():
    """A reader sees at once which file the variable overrode, and with which value there. Fault 12."""
    table = Origin("profiles.toml [profiles.speed]", DEFAULT, 256)
    variable = Origin("environment variable EMBEDDING_BATCH_SIZE", table, 32)
    assert (
        "environment variable EMBEDDING_BATCH_SIZE (hides 32 in profiles.toml [profiles.speed] (hides 256 in default))"
        == str(variable)
    )
    assert "default; dropped with the model" == str(Origin("default", note="dropped with the model"))
    assert ("default", "the call") == (str(DEFAULT), str(CALL))


# ---------- secrets


KEY = Secret("OPENAI_API_KEY", "sk-very-secret", origin="environment variable OPENAI_API_KEY")


@attrs.frozen
class Holder:
    """Options that hold a secret."""

    key: Secret


@pytest.mark.parametrize(
    "show",
    [repr, str, format, "{0}".format, "{0!r:>90}".format, lambda s: repr(Holder(s)), lambda s: repr({"k": s})],
)
def test_secret_is_never_shown(show):
    """Whatever prints or logs it shows the variable's name and whether it is set."""
    shown = show(KEY)
    assert "secret" not in shown.replace("Secret(", "")
    assert "Secret(OPENAI_API_KEY, set)" in shown


def test_secret_is_not_among_the_members():
    """`vars()` has nothing to give, and no attribute is the value itself."""
    with pytest.raises(TypeError):
        vars(KEY)
    members = [getattr(KEY, name) for name in dir(KEY) if name not in ("reveal", "__doc__")]
    assert "sk-very-secret" not in [member for member in members if isinstance(member, str)]
    assert "sk-very-secret" not in repr(attrs.asdict(Holder(KEY)))


@pytest.mark.parametrize("clone", [pickle.dumps, copy.copy, copy.deepcopy])
def test_secret_is_never_written_out(clone):
    """Neither pickled to another process nor copied by accident; the error does not show it either."""
    with pytest.raises(TypeError, match="OPENAI_API_KEY") as caught:
        clone(KEY)
    assert "sk-very-secret" not in str(caught.value)


def test_secret_is_revealed_to_who_asks():
    """One call gives it, and secrets compare by what they hold, so that equal settings share an embedder."""
    same = Secret("OPENAI_API_KEY", "sk-very-secret", origin=".env")
    assert ("sk-very-secret", True) == (KEY.reveal(), KEY.is_set)
    assert 1 == len({KEY, same})
    assert KEY != Secret("OPENAI_API_KEY", "another")
    assert KEY != Secret("OTHER_KEY", "sk-very-secret")
    assert KEY != "sk-very-secret"


@pytest.mark.parametrize("value", [None, ""])
def test_secret_that_is_not_set_names_its_variable(value):
    """The error says which variable to set, and where the name came from. Fault 20."""
    secret = Secret("OPENAI_API_KEY", value, origin="profiles.toml")
    assert ("Secret(OPENAI_API_KEY, not set)", False) == (repr(secret), secret.is_set)
    with pytest.raises(SettingError, match="OPENAI_API_KEY is not set") as caught:
        secret.reveal()
    assert ("profiles.toml", "set OPENAI_API_KEY in the environment or in .env") == (
        caught.value.origin,
        caught.value.hint,
    )


@pytest.mark.parametrize("raw", ["sk-very-secret", "sk_very_secret", "very secret", "", 7, None, ["TOY_KEY"]], ids=repr)
def test_secret_written_where_its_variable_belongs_is_refused_and_not_shown(raw):
    """Somebody who puts the key itself into the file is told so, and no log gets it. Fault 21."""
    with pytest.raises(SettingError, match="must be the name of an environment variable") as caught:
        read_options(Settings, {"key_env": raw}, origin=TABLE, read_secret=read_toy_secret)
    assert "secret" not in str(caught.value).replace("not the secret itself", "")


def test_secret_without_a_lookup_is_not_set():
    """Who reads options without an environment gets a secret that says which variable it lacks."""
    with pytest.raises(SettingError, match="TOY_KEY is not set"):
        read_options(Settings, {"key_env": "TOY_KEY"}, origin=TABLE).key_env.reveal()
