"""
What applications import: `get_embedder`, `get_reranker`, `list_profiles`, `list_providers`.

Owns the process's shared embedders. The only module whose functions are called `get_` and read the configuration.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from typing import Any, Literal

import attrs

from embedkit.config import PLUGIN_AUTOLOAD_VARIABLE, PLUGINS_VARIABLE, Config, read_config
from embedkit.embedder import Embedder
from embedkit.errors import BrokenPluginError, DuplicateProviderError, PluginError
from embedkit.options import CALL
from embedkit.profile import Profile
from embedkit.protocols import Provider
from embedkit.registry import Registry, default_registry
from embedkit.reranker import Reranker
from embedkit.resolve import resolve_options, resolve_profile, resolve_reranker

_logger = logging.getLogger("embedkit")

ProviderState = Literal["installed", "not installed", "not allowed", "broken", "clash"]


@attrs.frozen(kw_only=True)
class ListedProfile:
    """
    Describe a declared profile.

    Attributes:
        profile: As it would be used: the active one with the overrides applied.

        active: Whether `get_embedder()` would take it.

        declared_in: File and table.

        provider_state: Whether its provider can be used.

        hint: What mends that; empty when nothing needs mending.
    """

    profile: Profile
    active: bool
    declared_in: str
    provider_state: ProviderState
    hint: str


@attrs.frozen(kw_only=True)
class ListedProvider:
    """
    Describe an installed provider.

    Attributes:
        name: What `provider = "…"` says.

        summary: One line for people.

        distribution: Name and version of what brought it.
    """

    name: str
    summary: str
    distribution: str


@attrs.frozen(kw_only=True)
class Setup:
    """
    Hold everything that making an embedder needs; nothing heavy was imported for it.

    Attributes:
        config: What was read.

        profile: With every layer applied.

        provider: The recipe.

        options: Typed by the provider's options class.
    """

    config: Config
    profile: Profile
    provider: Provider[Any]
    options: Any


def get_embedder(
    profile: str | Profile | None = None,
    *,
    device: str | None = None,
    config: Config | None = None,
    registry: Registry | None = None,
) -> Embedder:
    """
    Give the process's shared embedder; the model is loaded on first use.

    Calls with equal settings get the same embedder, so that a web service may call this for every request; each call
    reads the settings anew. Whoever closes it releases one hold; the model is given back with the last.

    Args:
        profile: A declared profile's name, or a profile made in code, which is taken as it is. Left out:
            EMBEDDING_PROFILE, else the default of `profiles.toml`.

        device: Stands above every setting: auto, cpu, cuda, cuda:N or mps.

        config: Read now, unless given.

        registry: The process's, unless given.

    Raises:
        ConfigError: The profile is unknown, or settings are wrong.
        PluginError: Its provider is not installed, broken or offered twice.
    """
    setup = prepare(profile, device=device, config=config, registry=registry)
    key = (setup.profile, setup.provider, setup.options)
    with _state.lock:
        for shared, embedder in _state.embedders:
            if shared == key and embedder.hold():
                return embedder
        embedder = Embedder(setup.profile, functools.partial(setup.provider.load, setup.profile, setup.options))
        _state.embedders = [(shared, held) for shared, held in _state.embedders if not held.closed]
        _state.embedders.append((key, embedder))
        return embedder


def get_reranker(
    profile: str | Profile | None = None, *, config: Config | None = None, registry: Registry | None = None
) -> Reranker | None:
    """
    Give the reranker of a profile when ENABLE_RERANKER switches it on, else None; the model is loaded on first use.

    Every call gives one of its own: keep it, and close it in the end.

    Args:
        profile: As for `get_embedder`.

        config: Read now, unless given.

        registry: The process's, unless given.

    Raises:
        ConfigError: It is switched on and the profile names none, or settings are wrong.
        PluginError: Its provider is not installed, broken or offered twice.
    """
    config = config or read_config()
    registry = registry or default_registry()
    _warn_once(config)
    if not isinstance(profile, Profile):
        profile = resolve_profile(config, profile, find_options=registry.find_options_class)
    declared = resolve_reranker(config, profile)
    if declared is None:
        return None
    provider = registry.get_rerank_provider(
        declared.provider,
        origin=str(declared.origins.get("provider", "")),
        install_hint=config.install_hints.get(declared.provider, ""),
    )
    options = resolve_options(declared, provider.options, config.variables)
    return Reranker(declared, functools.partial(provider.load, declared, options))


def list_profiles(*, config: Config | None = None, registry: Registry | None = None) -> list[ListedProfile]:
    """
    Describe every declared profile, by name.

    Args:
        config: Read now, unless given.

        registry: The process's, unless given.

    Raises:
        ConfigError: The configuration is wrong.
    """
    config = config or read_config()
    registry = registry or default_registry()
    active, _ = config.choose_profile()
    return [_list_profile(config, registry, name, is_active=name == active) for name in sorted(config.profiles)]


def list_providers(*, registry: Registry | None = None) -> list[ListedProvider]:
    """
    Describe every provider that can be used, by name.

    Args:
        registry: The process's, unless given.
    """
    registry = registry or default_registry()
    offers = [(name, plugin.distribution) for plugin in registry.plugins for name in plugin.providers]
    return [
        ListedProvider(name=name, summary=registry.get_provider(name).summary, distribution=distribution)
        for name, distribution in sorted(offers)
        if registry.find_options_class(name) is not None
    ]


def prepare(
    profile: str | Profile | None = None,
    *,
    device: str | None = None,
    config: Config | None = None,
    registry: Registry | None = None,
) -> Setup:
    """
    Resolve a profile, its provider and its options, without loading anything.

    Args:
        profile: As for `get_embedder`.

        device: As for `get_embedder`.

        config: Read now, unless given.

        registry: The process's, unless given.

    Raises:
        ConfigError, PluginError: As for `get_embedder`.
    """
    config = config or read_config()
    registry = registry or default_registry()
    _warn_once(config)
    if isinstance(profile, Profile):
        resolved = profile
        if device is not None:
            resolved = attrs.evolve(profile, device=device, origins={**profile.origins, "device": CALL})
    else:
        resolved = resolve_profile(config, profile, find_options=registry.find_options_class, device=device)
    provider = registry.get_provider(
        resolved.provider,
        origin=str(resolved.origins.get("provider", "")),
        install_hint=config.install_hints.get(resolved.provider, ""),
    )
    return Setup(
        config=config,
        profile=resolved,
        provider=provider,
        options=resolve_options(resolved, provider.options, config.variables),
    )


def _list_profile(config: Config, registry: Registry, name: str, *, is_active: bool) -> ListedProfile:
    profile = resolve_profile(config, name, find_options=registry.find_options_class, override=is_active)
    state: ProviderState = "installed"
    hint = ""
    try:
        registry.get_provider(profile.provider, install_hint=config.install_hints.get(profile.provider, ""))
    except PluginError as error:
        states: dict[type, ProviderState] = {BrokenPluginError: "broken", DuplicateProviderError: "clash"}
        state = states.get(type(error), "not installed")
        hint = config.install_hints.get(profile.provider, "") if state == "not installed" else error.problem
        if state == "not installed" and profile.provider in registry.not_allowed:
            state, hint = "not allowed", f"{PLUGINS_VARIABLE} or {PLUGIN_AUTOLOAD_VARIABLE} keeps it out"
    return ListedProfile(
        profile=profile,
        active=is_active,
        declared_in=config.profiles[name].origin.source,
        provider_state=state,
        hint=hint,
    )


class _Shared:
    """The process's embedders, by what they were made of."""

    def __init__(self) -> None:
        self.embedders: list[tuple[tuple[Profile, Provider[Any], object], Embedder]] = []
        self.warned: set[str] = set()
        self.renew_lock()

    def renew_lock(self) -> None:
        self.lock = threading.Lock()


_state = _Shared()

# A lock that another thread held at the fork stays locked in the child for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.renew_lock)


def _warn_once(config: Config) -> None:
    for warning in config.warnings:
        if warning not in _state.warned:
            _state.warned.add(warning)
            _logger.warning("%s", warning)
