"""The example provider passes every check, and stays small enough to be read at once."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from embedkit_example import plugin

from embedkit import Profile
from embedkit.testing import PROVIDER_CHECKS, ProviderCase

(PROVIDER,) = plugin.embedkit_providers()


@pytest.mark.parametrize("check", PROVIDER_CHECKS, ids=lambda check: check.__name__)
def test_example_provider_passes(check):
    """The provider keeps the contract that every provider keeps."""
    check(ProviderCase(provider=PROVIDER, profile=Profile(provider="example", model="any", options={"salt": "pepper"})))


def test_another_model_and_another_salt_are_other_spaces():
    """What changes the vectors changes the space."""
    changes = [
        {"model": "a"},
        {"model": "b"},
        {"model": "a", "options": {"salt": "x"}},
        {"model": "a", "dimensions": 8},
    ]
    profiles = [Profile(provider="example", **change) for change in changes]
    embedders = [ProviderCase(provider=PROVIDER, profile=profile).build_embedder() for profile in profiles]
    assert 4 == len({embedder.space for embedder in embedders})


def test_plugin_file_has_under_forty_lines():
    """A page to copy fits on a screen: blank lines aside, under forty lines."""
    lines = Path(plugin.__file__).read_text(encoding="utf-8").splitlines()
    assert 40 > len([line for line in lines if line.strip()])


def test_distribution_declares_the_plugin_by_its_entry_point():
    """One entry point in the group `embedkit` is all that a plugin declares."""
    with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert {"embedkit": {"example": plugin.__name__}} == project["entry-points"]
    assert "embedkit" not in project["dependencies"], "that name belongs to somebody else"
