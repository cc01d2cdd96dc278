"""Plugins are loaded each on its own: what fails harms nobody else, and is shown to whoever asks for it."""

from __future__ import annotations

import importlib.metadata
import itertools
import sys
import textwrap

import pytest

from embedkit.config import PluginSettings
from embedkit.errors import BrokenPluginError, DuplicateProviderError, UnknownProviderError
from embedkit.registry import GROUP, build_registry

HEAD = """
import attrs
from embedkit import hookimpl
from embedkit.options import option
from embedkit.protocols import Provider, RerankProvider

@attrs.frozen(kw_only=True)
class Options:
    x: int = option(help="x", default=1)
"""

GOOD = (
    HEAD
    + """
def make(name, kind=Provider, **changes):
    return kind(**{{"name": name, "summary": "for tests", "options": Options, "load": lambda *_: None, **changes}})

@hookimpl
def embedkit_providers():
    return [make("{name}")]
"""
)

_numbers = itertools.count()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Give a function that puts a distribution with one plugin on the path, and returns the entry points of all."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def add(distribution, code, *, names=(), version="1.0", value=None):
        module = f"plugin_{next(_numbers):03}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code), encoding="utf-8")
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", encoding="utf-8"
        )
        lines = [f"{name} = {value or module}" for name in names or [distribution]]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]), encoding="utf-8")
        importlib.invalidate_caches()
        found = importlib.metadata.distributions(path=[str(tmp_path)])
        return [entry_point for one in found for entry_point in one.entry_points.select(group=GROUP)]

    yield add
    for name in set(sys.modules) - before:
        if name.startswith("plugin_"):
            del sys.modules[name]


def good(name="good"):
    """Give the code of a plugin that works."""
    return GOOD.format(name=name)


# What works


def test_a_plugin_offers_what_its_hooks_give(install):
    """Providers and rerankers, under names of their own, with the distribution that brought them."""
    code = good("vectors") + '\n@hookimpl\ndef embedkit_rerankers():\n    yield make("scores", RerankProvider)\n'
    registry = build_registry(install("embedkit-good", code, names=["entry"], version="2.1"))
    (plugin,) = registry.plugins
    assert ("entry", "embedkit-good 2.1", ("vectors",), ("scores",), ()) == (
        plugin.name,
        plugin.distribution,
        plugin.providers,
        plugin.rerankers,
        plugin.checks,
    )
    assert ("vectors", "scores") == (registry.get_provider("vectors").name, registry.get_rerank_provider("scores").name)
    assert (("vectors",), (), ()) == (registry.provider_names, registry.broken, registry.not_allowed)
    assert "Options" == registry.find_options_class("vectors").__name__
    with pytest.raises(UnknownProviderError, match="The reranker provider 'vectors' is not installed"):
        registry.get_rerank_provider("vectors")


def test_checks_are_kept_with_the_plugin_that_offers_them(install):
    """Two plugins may use one name: each is run, and neither hides the other."""
    code = """
        from embedkit import hookimpl
        from embedkit.protocols import Check

        @hookimpl
        def embedkit_checks():
            return [Check(name="devices", summary="s", run=lambda subject: [])]
    """
    install("one", code)
    registry = build_registry(install("two", code))
    assert [("one", "devices"), ("two", "devices")] == [(plugin.name, check.name) for plugin, check in registry.checks]
    assert ({}, ("devices",)) == (registry.clashes, registry.plugins[0].checks)


def test_what_is_offered_twice_is_listed_with_both_distributions(install):
    """Fault 28. Without anybody asking for it."""
    install("first", good("same"))
    registry = build_registry(install("second", good("same")))
    assert {"provider same": ["first 1.0", "second 1.0"]} == registry.clashes


def test_without_any_plugin_there_is_nothing_and_no_error():
    """The core works, lists and explains with none of them installed."""
    registry = build_registry([])
    assert ((), (), ()) == (registry.plugins, registry.broken, registry.provider_names)
    with pytest.raises(UnknownProviderError) as caught:
        registry.get_provider("local", origin="here", install_hint="pip install it")
    assert "The provider 'local' is not installed." == caught.value.problem
    assert ("here", "pip install it; available: none") == (caught.value.origin, caught.value.hint)


def test_an_unknown_provider_is_named_with_the_nearest(install):
    """Fault 27. No command to install is made up from its name."""
    registry = build_registry(install("good", good("openai")))
    with pytest.raises(UnknownProviderError) as caught:
        registry.get_provider("openia")
    assert "did you mean openai?; available: openai" == caught.value.hint
    assert registry.find_options_class("openia") is None


# What is broken

BROKEN = {
    "a missing dependency": ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    "a syntax error": ("def", "SyntaxError: invalid syntax"),
    "an exit at import": ("raise SystemExit(3)", "SystemExit: 3"),
    "an exception without text": ("raise KeyError", "KeyError"),
    "a text over lines": ("raise ValueError('a\\n  b')", "ValueError: a b"),
    "a raising hook": (HEAD + "\n@hookimpl\ndef embedkit_providers():\n    raise OSError('no')", "OSError: no"),
    "an exiting hook": (HEAD + "\n@hookimpl\ndef embedkit_providers():\n    exit(4)", "SystemExit: 4"),
    "a hook that raises half-way": (
        good() + '\n@hookimpl\ndef embedkit_rerankers():\n    yield make("r", RerankProvider)\n    1 / 0',
        "ZeroDivisionError: division by zero",
    ),
    "a misspelt hook": (
        HEAD + "\n@hookimpl\ndef embedkit_provider():\n    return []",
        "unknown hook 'embedkit_provider'",
    ),
    "an argument that no hook has": (
        HEAD + "\n@hookimpl\ndef embedkit_providers(config):\n    return []",
        "Argument(s) {'config'} are declared in the hookimpl but can not be found in the hookspec",
    ),
    "no marker": (HEAD + "\ndef embedkit_providers():\n    return []", "is @hookimpl missing?"),
    "None": (
        HEAD + "\n@hookimpl\ndef embedkit_providers():\n    pass",
        "TypeError: embedkit_providers gave no list of Provider",
    ),
    "no list": (
        good().replace('[make("good")]', 'make("good")'),
        "TypeError: embedkit_providers gave no list of Provider",
    ),
    "a string": (
        HEAD + "\n@hookimpl\ndef embedkit_providers():\n    return 'local'",
        "TypeError: embedkit_providers gave str where Provider is due",
    ),
    "a check without anything to run": (
        HEAD
        + "from embedkit.protocols import Check\n"
        + "\n@hookimpl\ndef embedkit_checks():\n    return [Check(name='c', summary='s', run=None)]",
        "TypeError: the Check 'c' has nothing to run",
    ),
    "the class itself": (
        HEAD + "\n@hookimpl\ndef embedkit_providers():\n    return [Provider]",
        "TypeError: embedkit_providers gave type where Provider is due",
    ),
    "the other kind": (
        good().replace('make("good")', 'make("good", RerankProvider)'),
        "TypeError: embedkit_providers gave RerankProvider where Provider is due",
    ),
    "a blank name": (good(" "), "TypeError: embedkit_providers gave a Provider whose name is ' '"),
    "a name that is no string": (
        good().replace('"good"', "5"),
        "TypeError: embedkit_providers gave a Provider whose name is 5",
    ),
    "no options class": (
        good().replace('make("good")', 'make("good", options=dict)'),
        "TypeError: the Provider 'good' has no attrs class as options, or nothing to load with",
    ),
    "an instance as options": (
        good().replace('make("good")', 'make("good", options=Options())'),
        "TypeError: the Provider 'good' has no attrs class as options, or nothing to load with",
    ),
    "nothing to load with": (
        good().replace('make("good")', 'make("good", load=None)'),
        "TypeError: the Provider 'good' has no attrs class as options, or nothing to load with",
    ),
    "an option of an unknown type": (
        good().replace("x: int", 'x: "Unheard"'),
        "NameError: name 'Unheard' is not defined",
    ),
}


@pytest.mark.parametrize(("code", "error"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_kept_with_its_error_and_harms_no_other(install, code, error):
    """Faults 26 and 29. It is raised only for who asks for that name, with the distribution and how to install it."""
    install("embedkit-bad", code, names=["bad"])
    registry = build_registry(install("embedkit-good", good("fine")))
    assert "fine" == registry.get_provider("fine").name
    assert ["embedkit-good"] == [plugin.name for plugin in registry.plugins]
    (broken,) = registry.broken
    assert ("bad", "embedkit-bad 1.0") == (broken.name, broken.distribution)
    assert error in broken.error
    assert "\n" not in broken.error
    with pytest.raises(BrokenPluginError) as caught:
        registry.get_provider("bad", origin="here", install_hint="pip install it")
    assert f"The plugin 'bad' of embedkit-bad 1.0 could not be loaded: {broken.error}" == caught.value.problem
    assert ("here", "mend or reinstall it: pip install it") == (caught.value.origin, caught.value.hint)
    assert broken.cause is caught.value.__cause__
    assert registry.find_options_class("bad") is None


def test_a_rejected_plugin_stays_out_with_all_that_it_offers(install):
    """Fault 29. The good half of a plugin that is half broken is not offered either."""
    code = good("half") + "\n@hookimpl\ndef embedkit_rerankers():\n    return [1]\n"
    registry = build_registry(install("embedkit-half", code))
    assert ((), ()) == (registry.plugins, registry.provider_names)
    with pytest.raises(UnknownProviderError) as caught:
        registry.get_provider("half")
    said = "TypeError: embedkit_rerankers gave int where RerankProvider is due"
    assert f"available: none; embedkit-half 1.0 is broken ({said})" == caught.value.hint


def test_a_broken_plugin_without_a_known_command_has_a_hint_all_the_same(install):
    """Fault 27. And no command is made up."""
    registry = build_registry(install("bad", "1 / 0"))
    with pytest.raises(BrokenPluginError) as caught:
        registry.get_rerank_provider("bad")
    assert "mend or reinstall it" == caught.value.hint


def test_an_entry_point_that_leads_nowhere_is_broken(install):
    """Fault 29. A module that is gone, and an attribute that is not there."""
    install("embedkit-gone", "", names=["gone"], value="plugin_that_is_gone")
    registry = build_registry(install("embedkit-none", good(), names=["none"], value="json:no_such_thing"))
    assert {
        "gone": "ModuleNotFoundError: No module named 'plugin_that_is_gone'",
        "none": "AttributeError: module 'json' has no attribute 'no_such_thing'",
    } == {broken.name: broken.error for broken in registry.broken}


def test_an_entry_point_without_a_distribution_is_told_by_its_value():
    """One made by hand, as tests of plugins do."""
    entry_point = importlib.metadata.EntryPoint(name="hand", value="json", group=GROUP)
    (broken,) = build_registry([entry_point]).broken
    assert ("(json)", True) == (broken.distribution, "json implements no hook of embedkit" in broken.error)


def test_an_interrupt_is_nobodys_fault(install):
    """Ctrl-C while plugins are read ends the program."""
    with pytest.raises(KeyboardInterrupt):
        build_registry(install("bad", "raise KeyboardInterrupt"))


# Clashes


def test_two_plugins_with_one_provider_are_both_named_to_who_asks_for_it(install):
    """Fault 28. Their other providers can be used, and the hint names no plugin more than is needed."""
    both = good("same").replace('[make("same")]', '[make("same"), make("only-a")]')
    install("embedkit-a", both, names=["a"])
    install("embedkit-c", good("other"), names=["c"])
    registry = build_registry(install("embedkit-b", both.replace("only-a", "only-b"), names=["b"], version="3"))
    assert ((), 3) == (registry.broken, len(registry.plugins))
    assert {"only-a", "only-b", "other"} == {registry.get_provider(name).name for name in ("only-a", "only-b", "other")}
    with pytest.raises(DuplicateProviderError) as caught:
        registry.get_provider("same", origin="here")
    expected = "Several plugins offer the provider 'same': embedkit-a 1.0 (as a), embedkit-b 3 (as b)."
    assert (expected, "here") == (caught.value.problem, caught.value.origin)
    assert "uninstall all but one, or allow one of them: EMBEDKIT_PLUGINS=a,c" == caught.value.hint
    assert registry.find_options_class("same") is None
    one = build_registry(install("embedkit-d", good("more")), PluginSettings(allowed=frozenset({"a", "c"})))
    assert "same" == one.get_provider("same").name


def test_two_entry_points_of_one_name_are_both_loaded(install):
    """Fault 28. pluggy's own loader would drop one of them in silence; an allow list cannot tell them apart."""
    install("embedkit-a", good("of-a"), names=["same"])
    registry = build_registry(install("embedkit-b", good("of-b"), names=["same"]))
    assert ("of-a", "of-b") == registry.provider_names
    install("embedkit-c", good("of-c"), names=["same"])
    registry = build_registry(install("embedkit-d", good("of-c"), names=["same"]))
    with pytest.raises(DuplicateProviderError) as caught:
        registry.get_provider("of-c")
    assert "embedkit-c 1.0 (as same), embedkit-d 1.0 (as same)." in caught.value.problem
    assert "uninstall all but one" == caught.value.hint


def test_one_plugin_with_one_name_twice_clashes_with_itself(install):
    """Fault 28. Neither is chosen by chance."""
    registry = build_registry(install("bad", good("p").replace('[make("p")]', '[make("p"), make("p")]')))
    with pytest.raises(DuplicateProviderError, match="Several plugins offer the provider 'p'"):
        registry.get_provider("p")


def test_a_clash_of_rerankers_leaves_providers_alone(install):
    """Fault 28. The two kinds have names of their own."""
    more = '\n@hookimpl\ndef embedkit_rerankers():\n    return [make("judge", RerankProvider)]\n'
    install("a", good("a") + more)
    registry = build_registry(install("b", good("judge") + more))
    assert "judge" == registry.get_provider("judge").name
    with pytest.raises(DuplicateProviderError, match="Several plugins offer the reranker provider 'judge'"):
        registry.get_rerank_provider("judge")


# Who may come in


@pytest.mark.parametrize(
    ("settings", "imported"),
    [
        (PluginSettings(), {"a", "b"}),
        (PluginSettings(allowed=frozenset({"a"})), {"a"}),
        (PluginSettings(allowed=frozenset()), set()),
        (PluginSettings(autoload=False), set()),
        (PluginSettings(autoload=False, allowed=frozenset({"b", "unheard"})), {"b"}),
    ],
)
def test_a_plugin_that_is_not_allowed_is_not_imported(install, tmp_path, settings, imported):
    """Fault 30. Each module leaves a mark when it is imported."""
    for name in ("a", "b"):
        mark = f"\nimport pathlib\npathlib.Path({str(tmp_path)!r}, 'mark-{name}').touch()\n"
        entry_points = install(name, good(name) + mark)
    registry = build_registry(entry_points, settings)
    assert imported == {path.name[-1] for path in tmp_path.glob("mark-*")}
    assert sorted(imported) == list(registry.provider_names)
    assert sorted({"a", "b"} - imported) == list(registry.not_allowed)


def test_who_asks_for_a_plugin_that_is_kept_out_is_told_so(install):
    """Fault 30. And not to install what is installed."""
    registry = build_registry(install("a", good("a")), PluginSettings(autoload=False))
    with pytest.raises(UnknownProviderError) as caught:
        registry.get_provider("a", install_hint="pip install it")
    kept_out = "not allowed by EMBEDKIT_PLUGINS or EMBEDKIT_DISABLE_PLUGIN_AUTOLOAD: a"
    assert f"available: none; {kept_out}" == caught.value.hint
    with pytest.raises(UnknownProviderError) as caught:
        registry.get_provider("other", install_hint="pip install it")
    assert f"pip install it; available: none; {kept_out}" == caught.value.hint


def test_plugins_are_read_in_the_order_of_their_names(install):
    """So that lists look the same on every machine."""
    for name in ("b", "c", "a"):
        entry_points = install(name, good(name))
    names = [
        [plugin.name for plugin in build_registry(order).plugins] for order in itertools.permutations(entry_points)
    ]
    assert [["a", "b", "c"]] * 6 == names
