"""Profiles that are made in code are held to the same rules as those in a file."""

from __future__ import annotations

import pickle

import attrs
import pytest

from embedkit.config import read_config
from embedkit.errors import ConfigError, SettingError
from embedkit.options import Origin, list_options
from embedkit.profile import Profile, Reference, RerankerProfile


def test_a_model_is_all_that_a_profile_needs():
    """The other fields have defaults, which are promised."""
    expected = {
        "name": "custom",
        "provider": "local",
        "model": "m",
        "dimensions": None,
        "batch_size": 256,
        "device": "auto",
        "description": "",
        "query_prompt": None,
        "document_prompt": None,
        "normalize": True,
        "too_long": "truncate",
        "reranker": None,
        "reference": None,
        "price_per_million_tokens": None,
        "options": {},
        "origins": {},
    }
    assert expected == attrs.asdict(Profile(model="m"))
    assert ("custom", "local", 32) == (
        RerankerProfile(model="m").name,
        RerankerProfile(model="m").provider,
        RerankerProfile(model="m").batch_size,
    )


def test_what_goes_with_the_model_is_declared():
    """An override of the model drops these and no others."""
    belongs_to = {name: field.belongs_to for name, field in list_options(Profile).items()}
    assert {
        "model",
        "dimensions",
        "description",
        "query_prompt",
        "document_prompt",
        "normalize",
        "reference",
        "price_per_million_tokens",
    } == {name for name, owner in belongs_to.items() if owner == "model"}
    assert {"batch_size", "device"} == {name for name, owner in belongs_to.items() if owner == "machine"}


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("model", "", "a string that is not empty"),
        ("model", None, "a string that is not empty"),
        ("batch_size", True, "a whole number of at least 1"),
        ("batch_size", "32", "a whole number of at least 1"),
        ("dimensions", 0, "a whole number of at least 1"),
        ("too_long", "cut", "one of 'truncate', 'error'"),
        ("price_per_million_tokens", float("nan"), "a number of at least 0"),
    ],
)
def test_a_wrong_value_in_code_is_refused_like_one_in_a_file(field, value, wanted):
    """Fault 8. It comes from the call."""
    with pytest.raises(ConfigError) as caught:
        Profile(**{"model": "m", field: value})
    assert f"{field} must be {wanted}, not {value!r}." == caught.value.problem
    assert "the call" == caught.value.origin


def test_a_reference_may_be_given_as_a_table():
    """As in a file; its faults are named with the others."""
    reference = {"text": "t", "components": [1, 2], "source": "s"}
    assert Reference(text="t", components=(1.0, 2.0), source="s") == Profile(model="m", reference=reference).reference
    with pytest.raises(ConfigError) as caught:
        Profile(model="", reference={"text": 1, "source": "s"})
    assert [
        "model must be a string that is not empty, not ''.",
        "text must be a string, not 1.",
        "components is required and missing.",
    ] == [fault.problem for fault in caught.value.faults]


def test_all_wrong_values_are_named_at_once():
    """For rerankers too."""
    for kind in (Profile, RerankerProfile):
        with pytest.raises(ConfigError) as caught:
            kind(model="", batch_size=0, device=3)
        assert {"model", "batch_size", "device"} == {fault.problem.split()[0] for fault in caught.value.faults}


def test_an_error_says_where_the_value_came_from():
    """What was resolved from layers carries its origins."""
    with pytest.raises(SettingError) as caught:
        Profile(model="m", device="", origins={"device": Origin("somewhere")})
    assert "somewhere" == caught.value.origin


def test_origins_are_not_compared_and_options_are_copied():
    """Equal settings are one, wherever they were stated; a caller's dictionary stays the caller's."""
    options = {"a": [1]}
    profile = Profile(model="m", options=options, origins={"model": Origin("x")})
    options["b"] = 2
    assert Profile(model="m", options={"a": [1]}) == profile
    assert hash(Profile(model="m")) == hash(profile)
    assert profile != Profile(model="m", options={"a": [2]})
    assert "Origin" not in repr(profile)


def test_a_profile_cannot_be_changed_but_can_be_copied_and_pickled():
    """It goes to other processes; a changed copy is checked anew."""
    reference = Reference(text="t", components=(1.0, 2.0), source="s")
    profile = Profile(model="m", reference=reference, options={"a": 1}, origins={"model": Origin("x")})
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        profile.model = "n"
    copied = pickle.loads(pickle.dumps(profile))  # noqa: S301  # its own bytes
    assert (profile, profile.origins) == (copied, copied.origins)
    with pytest.raises(SettingError):
        attrs.evolve(profile, batch_size=0)


def test_every_packaged_profile_is_right(tmp_path):
    """What the notes on the models say: revisions, prompts and dimensions."""
    profiles = {name: table.values for name, table in read_config(environ={}, directory=tmp_path).profiles.items()}
    assert (1536, 384, 384, 1536) == tuple(
        profiles[name]["dimensions"] for name in ("quality", "speed", "mini", "openai-small")
    )
    assert profiles["quality"]["query_prompt"].endswith("that answer the query\nQuery: ")
    assert "Represent this sentence for searching relevant passages: " == profiles["speed"]["query_prompt"]
    assert {"quality", "speed"} == {name for name in profiles if "revision" in profiles[name].get("options", {})}
    assert all(len(profiles[name]["options"]["revision"]) == len("0" * 40) for name in ("quality", "speed"))
    assert all(values["description"] for values in profiles.values())
