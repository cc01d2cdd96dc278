"""
The hooks that embedkit calls, and the marker that plugins put on theirs.

Owns the hook names and their arguments. A hook returns frozen values; a plugin never receives the parser, the
configuration or the registry.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pluggy

from embedkit.protocols import Check, Provider, RerankProvider

PROJECT = "embedkit"
"""The name of the hook project, and of the entry point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def embedkit_providers() -> Iterable[Provider[Any]]:  # type: ignore[empty-body]  # a specification
    """Offer providers of embeddings. Called once when the plugins are read; must import nothing heavy."""


@hookspec
def embedkit_rerankers() -> Iterable[RerankProvider[Any]]:  # type: ignore[empty-body]  # a specification
    """Offer providers of rerankers. Called once when the plugins are read; must import nothing heavy."""


@hookspec
def embedkit_checks() -> Iterable[Check]:  # type: ignore[empty-body]  # a specification
    """Offer checks for `embedkit doctor`. Called once when the plugins are read; must import nothing heavy."""
