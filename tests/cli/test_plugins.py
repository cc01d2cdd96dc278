"""`embedkit plugins`."""

import pytest

from embedkit.cli.main import run
from embedkit.registry import build_registry

from .conftest import install

OFFER = """
from embedkit import hookimpl
from embedkit.testing import toy_provider

@hookimpl
def embedkit_providers():
    return [toy_provider(name="toy")]
"""


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Give a folder for more distributions, which are found like any other."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def test_json_names_distributions_and_what_they_offer(call):
    """What is installed and whole is no finding."""
    result = call("plugins", "--json")
    assert 0 == result.code
    (plugin,) = result.json["plugins"]
    assert ("toy-stranger", "toy-stranger 1.0", ["longest"]) == (
        plugin["name"],
        plugin["distribution"],
        plugin["rerankers"],
    )
    assert "toy" in plugin["providers"]
    assert ([], {}) == (result.json["broken"], result.json["clashes"])


def test_the_table_names_what_a_plugin_offers(call):
    """For people."""
    result = call("plugins")
    assert 0 == result.code
    assert "toy-stranger 1.0  toy-stranger  provider toy, provider blind" in result.stdout


def test_checks_are_among_the_offers(call, shelf, monkeypatch):
    """Of a plugin that brings nothing else."""
    source = """
from embedkit import hookimpl
from embedkit.protocols import Check

@hookimpl
def embedkit_checks():
    return [Check(name="weather", summary="rain?", run=lambda subject: [])]
"""
    install(shelf, "looker", source)
    monkeypatch.setenv("EMBEDKIT_PLUGINS", "looker")
    assert "check weather" in call("plugins").stdout
    (plugin,) = call("plugins", "--json").json["plugins"]
    assert ["weather"] == plugin["checks"]


def test_a_plugin_off_the_allow_list_is_named_and_not_imported(call, shelf):
    """Fault 30."""
    install(shelf, "forbidden", "raise SystemExit('imported')")
    result = call("plugins", "--json")
    assert 0 == result.code
    assert "forbidden" in result.json["not_allowed"]
    assert "not allowed, so not imported" in call("plugins").stdout


def test_a_broken_plugin_is_a_finding(call, shelf, monkeypatch):
    """Fault 26. The others are listed all the same."""
    install(shelf, "broken", "import nowhere_to_be_found")
    monkeypatch.setenv("EMBEDKIT_PLUGINS", "toy-stranger,broken")
    result = call("plugins", "--json")
    assert 1 == result.code
    (broken,) = result.json["broken"]
    assert ("broken", "broken 1.0") == (broken["name"], broken["distribution"])
    assert "nowhere_to_be_found" in broken["error"]
    assert ["toy-stranger"] == [plugin["name"] for plugin in result.json["plugins"]]
    table = call("plugins")
    assert 1 == table.code
    assert "broken: ModuleNotFoundError: No module named 'nowhere_to_be_found'" in table.stdout


def test_two_plugins_with_one_provider_are_a_finding(call, shelf, monkeypatch):
    """Fault 28. Both are named."""
    install(shelf, "double", OFFER)
    monkeypatch.setenv("EMBEDKIT_PLUGINS", "toy-stranger,double")
    result = call("plugins", "--json")
    assert 1 == result.code
    assert {"provider toy": ["double 1.0", "toy-stranger 1.0"]} == result.json["clashes"]
    assert "double 1.0 and toy-stranger 1.0 both offer the provider toy" in call("plugins").stderr


def test_no_plugin_at_all_is_said(project, capsys):
    """An empty table would look like a fault."""
    assert 0 == run(["plugins"], registry=build_registry([]))
    assert ("", "No plugin is installed.\n") == capsys.readouterr()


def test_an_argument_is_refused(call):
    """Wrong usage has exit code 2."""
    assert 2 == call("plugins", "all").code
