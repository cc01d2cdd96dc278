"""`embedkit profiles`: every declared profile, the active one marked."""

from __future__ import annotations

import click

from embedkit.api import ListedProfile, list_profiles
from embedkit.cli import output
from embedkit.cli.arguments import find_registry, json_option
from embedkit.config import OVERRIDE_VARIABLES, Config, read_config


@click.command(
    "profiles",
    short_help="List the profiles; * marks the active one.",
    help="""
    List every profile: provider, model, dimensions, where it is declared; * marks the active one.

    The values are those that would be used: EMBEDDING_* variables are applied to the active profile.
    """,
    epilog="""
    \b
    Examples:
      embedkit profiles
      embedkit profiles --json
    """,
)
@json_option
def profiles(*, as_json: bool) -> None:
    """List every profile."""
    config = read_config()
    listed = list_profiles(config=config, registry=find_registry())
    overrides = {one.profile.name: _find_overrides(config, one) for one in listed}
    if as_json:
        output.print_json(
            [
                {**to_json(one), "overridden_by": output.mask_raw_option("overridden_by", overrides[one.profile.name])}
                for one in listed
            ]
        )
        return
    print_profiles(listed)
    active, origin = config.choose_profile()
    output.say(f"\nactive: {active}, from {origin}")
    for variable, source in overrides.get(active, {}).items():
        output.say(f"{variable} overrides its {OVERRIDE_VARIABLES[variable]}: {output.mask_user(source)}")
    for warning in config.warnings:
        output.warn(warning)


def print_profiles(listed: list[ListedProfile], *, numbered: bool = False) -> None:
    """Print profiles as a table, then say how to install what is missing."""
    rows = [
        (
            f"{'*' if one.active else ' '}{f' {number}' if numbered else ''}",
            one.profile.name,
            one.profile.provider
            if one.provider_state == "installed"
            else f"{one.profile.provider} ({one.provider_state})",
            output.mask_user(one.profile.model),
            output.describe_setting(one.profile.dimensions),
            str(one.profile.batch_size),
            # The table's name repeats the profile's.
            one.declared_in.removesuffix(f" [profiles.{one.profile.name}]").replace(
                "packaged profiles.toml", "packaged"
            ),
        )
        for number, one in enumerate(listed, start=1)
    ]
    output.print_table(("", "profile", "provider", "model", "dimensions", "batch", "declared in"), rows)
    for provider, state, hint in sorted(
        {(one.profile.provider, one.provider_state, one.hint) for one in listed if one.hint}
    ):
        output.say(f"{provider} is {state}: {hint}" if state.startswith("not ") else hint)


def to_json(one: ListedProfile) -> dict[str, object]:
    """Give a listed profile as plain values."""
    return {
        "name": one.profile.name,
        "active": one.active,
        "description": one.profile.description,
        "provider": one.profile.provider,
        "provider_state": one.provider_state,
        "hint": one.hint,
        "model": output.mask_user(one.profile.model),
        "dimensions": one.profile.dimensions,
        "batch_size": one.profile.batch_size,
        "device": one.profile.device,
        "declared_in": one.declared_in,
    }


def _find_overrides(config: Config, one: ListedProfile) -> dict[str, str]:
    """Give the variables that set a value of this profile, each with where it is set."""
    found = {}
    for variable, key in OVERRIDE_VARIABLES.items():
        origin = one.profile.origins.get(key)
        found_here = config.variables.get(variable)
        if origin is not None and found_here is not None and origin.source == found_here.origin.source:
            found[variable] = str(origin)
    return found
