"""
The options and arguments that several commands share, and what the shell completes for them.

Owns how a profile is named on the command line: before the command, after it, or as its argument; and which registry
the commands ask.
"""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from embedkit.config import read_config
from embedkit.errors import EmbedkitError
from embedkit.registry import Registry, default_registry


def complete_profile(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Give the declared profiles that begin so, each with its description; none while the configuration is wrong."""
    try:
        profiles = read_config().profiles
    except EmbedkitError:
        return []
    return [
        CompletionItem(name, help=str(table.values.get("description", "")))
        for name, table in sorted(profiles.items())
        if name.startswith(incomplete)
    ]


def _take_profile(context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Fall back to what was said before the command."""
    inherited: str | None = context.find_root().params.get("profile")
    return inherited if value is None else value


profile_option = click.option(
    "--profile",
    metavar="NAME",
    shell_complete=complete_profile,
    callback=_take_profile,
    help="The profile to use, instead of EMBEDDING_PROFILE and the default.",
)

device_option = click.option(
    "--device",
    metavar="DEVICE",
    shell_complete=lambda _context, _parameter, incomplete: [
        CompletionItem(device) for device in ("auto", "cpu", "cuda", "mps") if device.startswith(incomplete)
    ],
    help="Where the model runs: auto, cpu, cuda, cuda:N or mps.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

name_argument = click.argument("name", required=False, metavar="[NAME]", shell_complete=complete_profile)


def find_registry() -> Registry:
    """Give the registry that the command line was started with, else the process's."""
    return click.get_current_context().find_object(Registry) or default_registry()


def choose_name(name: str | None, profile: str | None) -> str | None:
    """
    Give the profile that an argument or --profile names.

    Raises:
        click.UsageError: They name two.
    """
    if name is not None and profile is not None and name != profile:
        raise click.UsageError(f"Two profiles were named: {name} and --profile {profile}.")
    return profile if name is None else name
