"""
Find plugins, keep the broken ones with their error, and resolve names to recipes.

Owns the entry point group `embedkit`. The host never dies of a plugin: what fails is kept and shown to who asks for it.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import attrs
import pluggy

from embedkit import hookspecs
from embedkit.config import (
    PLUGIN_AUTOLOAD_VARIABLE,
    PLUGINS_VARIABLE,
    PluginSettings,
    read_plugin_settings,
    read_variables,
)
from embedkit.errors import BrokenPluginError, DuplicateProviderError, PluginError, UnknownProviderError
from embedkit.options import find_nearest, list_options, show_value
from embedkit.protocols import Check, Provider, RerankProvider

GROUP = hookspecs.PROJECT

R = TypeVar("R", Provider[Any], RerankProvider[Any], Check)


@attrs.frozen(kw_only=True)
class Plugin:
    """
    Describe a plugin that was loaded.

    Attributes:
        name: Its entry point.

        distribution: Name and version of what brought it.

        providers: Names of the embedding providers that it offers.

        rerankers: Names of the reranker providers that it offers.

        checks: Names of the checks that it offers.
    """

    name: str
    distribution: str
    providers: tuple[str, ...]
    rerankers: tuple[str, ...]
    checks: tuple[str, ...]


@attrs.frozen(kw_only=True)
class BrokenPlugin:
    """
    Describe a plugin that could not be loaded.

    Attributes:
        name: Its entry point.

        distribution: Name and version of what brought it.

        error: What went wrong, in one line.

        cause: The exception itself.
    """

    name: str
    distribution: str
    error: str
    cause: BaseException = attrs.field(eq=False, repr=False)


@attrs.frozen(kw_only=True)
class Registry:
    """
    Hold what the plugins offer.

    Attributes:
        plugins: Those that were loaded.

        broken: Those that were not.

        not_allowed: Entry points that were not even imported.

        checks: Every check, with the plugin that offers it.
    """

    plugins: tuple[Plugin, ...]
    broken: tuple[BrokenPlugin, ...]
    not_allowed: tuple[str, ...]
    checks: tuple[tuple[Plugin, Check], ...]
    _providers: Mapping[str, tuple[tuple[Plugin, Provider[Any]], ...]] = attrs.field(repr=False)
    _rerankers: Mapping[str, tuple[tuple[Plugin, RerankProvider[Any]], ...]] = attrs.field(repr=False)

    @property
    def provider_names(self) -> tuple[str, ...]:
        """The names of all providers on offer, sorted."""
        return tuple(sorted(self._providers))

    @property
    def clashes(self) -> dict[str, list[str]]:
        """What is offered more than once (such as "provider local"), with the distributions that offer it."""
        offers: dict[str, list[str]] = {}
        for kind, offered in (("provider", self._providers), ("reranker", self._rerankers)):
            for name, rivals in offered.items():
                if len(rivals) > 1:
                    offers[f"{kind} {name}"] = [plugin.distribution for plugin, _ in rivals]
        return offers

    def get_provider(self, name: str, *, origin: str = "", install_hint: str = "") -> Provider[Any]:
        """
        Give a provider by name.

        Args:
            name: What `provider = "…"` says.

            origin: Where it says so, for the error.

            install_hint: The command that installs it, where one is declared.

        Raises:
            UnknownProviderError: No plugin offers it.
            DuplicateProviderError: Two plugins do.
            BrokenPluginError: The plugin of that name could not be loaded.
        """
        return self._get(self._providers, "provider", name, origin, install_hint)

    def get_rerank_provider(self, name: str, *, origin: str = "", install_hint: str = "") -> RerankProvider[Any]:
        """Give a reranker provider by name; arguments and errors as for `get_provider`."""
        return self._get(self._rerankers, "reranker provider", name, origin, install_hint)

    def find_options_class(self, name: str) -> type | None:
        """Give the options class of a provider, or None when it cannot be had."""
        try:
            return self.get_provider(name).options
        except PluginError:
            return None

    def _get(
        self, offers: Mapping[str, tuple[tuple[Plugin, R], ...]], kind: str, name: str, origin: str, install_hint: str
    ) -> R:
        offered = offers.get(name, ())
        if len(offered) == 1:
            return offered[0][1]
        if offered:
            rivals = ", ".join(f"{plugin.distribution} (as {plugin.name})" for plugin, _ in offered)
            raise DuplicateProviderError(
                f"Several plugins offer the {kind} {name!r}: {rivals}.",
                origin=origin,
                hint=self._suggest_one([plugin for plugin, _ in offered]),
            )
        for broken in self.broken:
            if broken.name == name:
                raise BrokenPluginError(
                    f"The plugin {name!r} of {broken.distribution} could not be loaded: {broken.error}",
                    origin=origin,
                    hint=f"mend or reinstall it: {install_hint}" if install_hint else "mend or reinstall it",
                ) from broken.cause
        raise UnknownProviderError(
            f"The {kind} {name!r} is not installed.",
            origin=origin,
            hint=self._explain_absence(offers, name, install_hint),
        )

    def _suggest_one(self, rivals: list[Plugin]) -> str:
        hint = "uninstall all but one"
        others = [plugin.name for plugin in self.plugins if plugin not in rivals]
        if len({plugin.name for plugin in rivals}) == len(rivals):
            hint += f", or allow one of them: {PLUGINS_VARIABLE}={','.join([rivals[0].name, *others])}"
        return hint

    def _explain_absence(self, offers: Mapping[str, object], name: str, install_hint: str) -> str:
        kept_out = ", ".join(self.not_allowed)
        hints = [install_hint] if install_hint and name not in self.not_allowed else []
        if nearest := find_nearest(name, offers):
            hints.append(f"did you mean {nearest}?")
        hints.append(f"available: {', '.join(sorted(offers)) or 'none'}")
        if kept_out:
            hints.append(f"not allowed by {PLUGINS_VARIABLE} or {PLUGIN_AUTOLOAD_VARIABLE}: {kept_out}")
        hints += [f"{broken.distribution} is broken ({broken.error})" for broken in self.broken]
        return "; ".join(hints)


def build_registry(
    entry_points: Iterable[importlib.metadata.EntryPoint],
    settings: PluginSettings = PluginSettings(),  # noqa: B008  # frozen
) -> Registry:
    """
    Load plugins, each on its own, so that one that fails harms nobody else.

    Args:
        entry_points: Those of the group `embedkit`.

        settings: Which of them may be imported.
    """
    plugins: list[Plugin] = []
    broken: list[BrokenPlugin] = []
    not_allowed: list[str] = []
    providers: dict[str, list[tuple[Plugin, Provider[Any]]]] = {}
    rerankers: dict[str, list[tuple[Plugin, RerankProvider[Any]]]] = {}
    checks: list[tuple[Plugin, Check]] = []
    for entry_point in sorted(entry_points, key=lambda entry_point: (entry_point.name, entry_point.value)):
        if not _is_allowed(entry_point.name, settings):
            not_allowed.append(entry_point.name)
            continue
        distribution = _describe_distribution(entry_point)
        try:
            offered_providers, offered_rerankers, offered_checks = _read_plugin(entry_point)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a stranger's code raises
            described = _describe_error(error)
            broken.append(BrokenPlugin(name=entry_point.name, distribution=distribution, error=described, cause=error))
            continue
        plugin = Plugin(
            name=entry_point.name,
            distribution=distribution,
            providers=tuple(provider.name for provider in offered_providers),
            rerankers=tuple(provider.name for provider in offered_rerankers),
            checks=tuple(check.name for check in offered_checks),
        )
        plugins.append(plugin)
        checks += [(plugin, check) for check in offered_checks]
        for provider in offered_providers:
            providers.setdefault(provider.name, []).append((plugin, provider))
        for reranker in offered_rerankers:
            rerankers.setdefault(reranker.name, []).append((plugin, reranker))
    return Registry(
        plugins=tuple(plugins),
        broken=tuple(broken),
        not_allowed=tuple(not_allowed),
        checks=tuple(checks),
        providers={name: tuple(offers) for name, offers in providers.items()},
        rerankers={name: tuple(offers) for name, offers in rerankers.items()},
    )


_process: dict[str, Registry] = {}


def default_registry() -> Registry:
    """
    Give the registry of this process: every installed plugin that `.env` and the environment allow, read once.

    Raises:
        ConfigError: `.env` cannot be read.
    """
    if GROUP not in _process:
        entry_points = importlib.metadata.entry_points(group=GROUP)
        built = build_registry(entry_points, read_plugin_settings(read_variables()))
        # Of several threads that come first the same one wins for all, and no lock is left locked by a fork.
        _process.setdefault(GROUP, built)
    return _process[GROUP]


def _is_allowed(name: str, settings: PluginSettings) -> bool:
    return settings.autoload if settings.allowed is None else name in settings.allowed


def _read_plugin(
    entry_point: importlib.metadata.EntryPoint,
) -> tuple[list[Provider[Any]], list[RerankProvider[Any]], list[Check]]:
    """Import one plugin and ask its hooks; a manager of its own keeps its faults to itself, a misspelt hook too."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    plugin = entry_point.load()
    manager.register(plugin, name=entry_point.name)
    manager.check_pending()
    if not manager.get_hookcallers(plugin):
        raise TypeError(f"{entry_point.value} implements no hook of embedkit; is @hookimpl missing?")
    return (
        _ask(manager.hook.embedkit_providers, Provider),
        _ask(manager.hook.embedkit_rerankers, RerankProvider),
        _ask(manager.hook.embedkit_checks, Check),
    )


def _ask(hook: pluggy.HookCaller, kind: type[R]) -> list[R]:
    """Give what the plugin offers at a hook, every field checked that the core will use."""
    results = hook()
    # pluggy leaves out a None, which is what a forgotten `return` gives.
    if len(results) != len(hook.get_hookimpls()) or not all(isinstance(result, Iterable) for result in results):
        raise TypeError(f"{hook.name} gave no list of {kind.__name__}")
    offered = [offer for result in results for offer in result]
    for offer in offered:
        if not isinstance(offer, kind):
            raise TypeError(f"{hook.name} gave {type(offer).__name__} where {kind.__name__} is due")
        if not isinstance(offer.name, str) or not offer.name.strip():
            raise TypeError(f"{hook.name} gave a {kind.__name__} whose name is {show_value(offer.name)}")
        if isinstance(offer, Check):
            if not callable(offer.run):
                raise TypeError(f"the Check {offer.name!r} has nothing to run")
            continue
        if not callable(offer.load) or not isinstance(offer.options, type) or not attrs.has(offer.options):
            raise TypeError(
                f"the {kind.__name__} {offer.name!r} has no attrs class as options, or nothing to load with"
            )
        list_options(offer.options)
    return offered


def _describe_distribution(entry_point: importlib.metadata.EntryPoint) -> str:
    distribution = entry_point.dist
    return f"{distribution.name} {distribution.version}" if distribution is not None else f"({entry_point.value})"


def _describe_error(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
