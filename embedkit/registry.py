"""
Find plugins, keep the broken ones with their error, and resolve names to recipes.

Owns the entry point group `embedkit`. The host never dies of a plugin: what fails is kept and shown to who asks for it.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import attrs
import pluggy

from embedkit import hookspecs
from embedkit.config import PLUGINS_VARIABLE, PluginSettings, read_config, read_plugin_settings
from embedkit.errors import BrokenPluginError, DuplicateProviderError, PluginError, UnknownProviderError
from embedkit.options import find_nearest
from embedkit.protocols import Provider, RerankProvider

GROUP = hookspecs.PROJECT

R = TypeVar("R")


@attrs.frozen(kw_only=True)
class Plugin:
    """
    Describe a plugin that was loaded.

    Attributes:
        name: Its entry point.

        distribution: Name and version of what brought it.

        providers: Names of the embedding providers that it offers.

        rerankers: Names of the reranker providers that it offers.
    """

    name: str
    distribution: str
    providers: tuple[str, ...]
    rerankers: tuple[str, ...]


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
    """

    plugins: tuple[Plugin, ...]
    broken: tuple[BrokenPlugin, ...]
    not_allowed: tuple[str, ...]
    _providers: Mapping[str, tuple[tuple[Plugin, Provider[Any]], ...]] = attrs.field(repr=False)
    _rerankers: Mapping[str, tuple[tuple[Plugin, RerankProvider[Any]], ...]] = attrs.field(repr=False)

    @property
    def provider_names(self) -> tuple[str, ...]:
        """The names of all providers on offer, sorted."""
        return tuple(sorted(self._providers))

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
            raise DuplicateProviderError(
                f"Several plugins offer the {kind} {name!r}: {', '.join(plugin.distribution for plugin, _ in offered)}.",
                origin=origin,
                hint=f"uninstall all but one, or allow one: {PLUGINS_VARIABLE}={offered[0][0].name}",
            )
        for broken in self.broken:
            if broken.name == name:
                raise BrokenPluginError(
                    f"The plugin {name!r} of {broken.distribution} could not be loaded: {broken.error}",
                    origin=origin,
                    hint=f"mend or reinstall it: {install_hint}" if install_hint else "mend or reinstall it",
                ) from broken.cause
        raise UnknownProviderError(
            f"The {kind} {name!r} is not installed.", origin=origin, hint=self._explain_absence(offers, name, install_hint)
        )

    def _explain_absence(self, offers: Mapping[str, object], name: str, install_hint: str) -> str:
        hints = []
        if name in self.not_allowed:
            hints.append(f"{PLUGINS_VARIABLE} or the autoload switch keeps it out")
        elif install_hint:
            hints.append(install_hint)
        if nearest := find_nearest(name, offers):
            hints.append(f"did you mean {nearest}?")
        hints.append(f"available: {', '.join(sorted(offers)) or 'none'}")
        hints += [f"{broken.distribution} is broken ({broken.error})" for broken in self.broken]
        return "; ".join(hints)


def build_registry(
    entry_points: Iterable[importlib.metadata.EntryPoint], settings: PluginSettings = PluginSettings()  # noqa: B008  # frozen
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
    for entry_point in sorted(entry_points, key=lambda entry_point: (entry_point.name, entry_point.value)):
        if not _is_allowed(entry_point.name, settings):
            not_allowed.append(entry_point.name)
            continue
        distribution = _describe_distribution(entry_point)
        try:
            offered_providers, offered_rerankers = _read_plugin(entry_point)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a stranger's code raises
            broken.append(
                BrokenPlugin(name=entry_point.name, distribution=distribution, error=_describe_error(error), cause=error)
            )
            continue
        plugin = Plugin(
            name=entry_point.name,
            distribution=distribution,
            providers=tuple(provider.name for provider in offered_providers),
            rerankers=tuple(provider.name for provider in offered_rerankers),
        )
        plugins.append(plugin)
        for provider in offered_providers:
            providers.setdefault(provider.name, []).append((plugin, provider))
        for reranker in offered_rerankers:
            rerankers.setdefault(reranker.name, []).append((plugin, reranker))
    return Registry(
        plugins=tuple(plugins),
        broken=tuple(broken),
        not_allowed=tuple(not_allowed),
        providers={name: tuple(offers) for name, offers in providers.items()},
        rerankers={name: tuple(offers) for name, offers in rerankers.items()},
    )


@functools.cache
def default_registry() -> Registry:
    """Give the registry of this process: every installed plugin that the environment allows, read once."""
    entry_points = importlib.metadata.entry_points(group=GROUP)
    return build_registry(entry_points, read_plugin_settings(read_config()))


def _is_allowed(name: str, settings: PluginSettings) -> bool:
    return settings.autoload if settings.allowed is None else name in settings.allowed


def _read_plugin(
    entry_point: importlib.metadata.EntryPoint,
) -> tuple[list[Provider[Any]], list[RerankProvider[Any]]]:
    """Import one plugin and ask its hooks; a manager of its own keeps its faults to itself, a misspelt hook included."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(entry_point.load(), name=entry_point.name)
    manager.check_pending()
    return (
        _ask(manager.hook.embedkit_providers, Provider),
        _ask(manager.hook.embedkit_rerankers, RerankProvider),
    )


def _ask(hook: Callable[[], list[Iterable[R]]], kind: type[R]) -> list[R]:
    offered = [offer for result in hook() for offer in result]
    for offer in offered:
        if not isinstance(offer, kind):
            name = getattr(hook, "name", "the hook")
            raise TypeError(f"{name} gave {type(offer).__name__} where {kind.__name__} is due")
    return offered


def _describe_distribution(entry_point: importlib.metadata.EntryPoint) -> str:
    distribution = entry_point.dist
    return f"{distribution.name} {distribution.version}" if distribution is not None else f"({entry_point.value})"


def _describe_error(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
