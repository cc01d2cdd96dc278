"""`embedkit plugins`: what is installed, what it offers, and what is broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from embedkit.cli import output
from embedkit.cli.arguments import find_registry, json_option

if TYPE_CHECKING:
    from embedkit.registry import Registry


@click.command(
    "plugins",
    short_help="List the installed plugins, broken ones too.",
    help="""
    List the installed plugins: what each offers, the broken ones with why, and those that are kept out by
    EMBEDKIT_PLUGINS or EMBEDKIT_DISABLE_PLUGIN_AUTOLOAD.

    The exit code is 1 when a plugin is broken, or two offer the same name.
    """,
    epilog="""
    \b
    Examples:
      embedkit plugins
      embedkit plugins --json
    """,
)
@json_option
def plugins(*, as_json: bool) -> int:
    """List the installed plugins."""
    registry = find_registry()
    clashes = registry.clashes
    if as_json:
        output.print_json(
            {
                "plugins": [
                    {
                        "name": plugin.name,
                        "distribution": plugin.distribution,
                        "providers": plugin.providers,
                        "rerankers": plugin.rerankers,
                        "checks": plugin.checks,
                    }
                    for plugin in registry.plugins
                ],
                "broken": [
                    {"name": broken.name, "distribution": broken.distribution, "error": broken.error}
                    for broken in registry.broken
                ],
                "not_allowed": registry.not_allowed,
                "clashes": clashes,
            }
        )
    else:
        _print_plugins(registry, clashes)
    return 1 if registry.broken or clashes else 0


def _print_plugins(registry: Registry, clashes: dict[str, list[str]]) -> None:
    rows = [
        (
            plugin.distribution,
            plugin.name,
            ", ".join(
                [f"provider {name}" for name in plugin.providers]
                + [f"reranker {name}" for name in plugin.rerankers]
                + [f"check {name}" for name in plugin.checks]
            )
            or "nothing",
        )
        for plugin in registry.plugins
    ]
    rows += [(broken.distribution, broken.name, f"broken: {broken.error}") for broken in registry.broken]
    rows += [("-", name, "not allowed, so not imported") for name in registry.not_allowed]
    if rows:
        output.print_table(("distribution", "plugin", "offers"), rows)
    else:
        output.say("No plugin is installed.")
    for name, distributions in clashes.items():
        output.say(
            f"{' and '.join(distributions)} both offer the {name}: uninstall one, or allow one by EMBEDKIT_PLUGINS."
        )
