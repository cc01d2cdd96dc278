"""`embedkit use`: switch to another profile, by one line in `.env`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import attrs
import click

from embedkit.api import Setup, list_profiles, prepare
from embedkit.cli import output
from embedkit.cli.arguments import find_registry, json_option, name_argument
from embedkit.cli.profiles import print_profiles
from embedkit.config import (
    ENV_FILE_VARIABLE,
    OVERRIDE_VARIABLES,
    PROFILE_VARIABLE,
    Config,
    Variable,
    read_config,
    show_path,
)
from embedkit.env_file import EnvChange, comment_out, read_env_file, set_variable
from embedkit.errors import EmbedkitError, PluginError, UnknownProfileError
from embedkit.options import CALL, list_options
from embedkit.profile import Profile
from embedkit.resolve import IDENTITY_KEYS, resolve_profile

if TYPE_CHECKING:
    from embedkit.registry import Registry

Comparable = Literal["yes", "no", "unknown"]

_ALWAYS_SHOWN = ("provider", "model", "dimensions", "device")
_NOT_OF_THE_SPACE = (
    "batch_size",
    "device",
    "description",
    "query_prompt",
    "too_long",
    "reranker",
    "reference",
    "price_per_million_tokens",
)


@attrs.frozen(kw_only=True)
class Switch:
    """
    Hold what a switch does, or would do.

    Attributes:
        old_name: The profile until now; None when it is not declared.

        changes: Setting -> value now and then, as people read them.

        comparable: Whether the vectors of both are of one space.

        reason: Why.

        change: What was done to EMBEDDING_PROFILE in `.env`.

        removals: What was commented out there.

        dry_run: Whether nothing was written.

        warnings: What makes it ineffective, or keeps the new profile from working.
    """

    old_name: str | None
    changes: Mapping[str, tuple[str, str]]
    comparable: Comparable
    reason: str
    change: EnvChange
    removals: Sequence[EnvChange]
    dry_run: bool
    warnings: Sequence[str]


@click.command(
    "use",
    short_help="Switch to another profile.",
    help="""
    Switch to the profile NAME: write EMBEDDING_PROFILE=NAME to .env. On a terminal, without NAME, choose from a table.

    Shows what will change, and whether vectors of the old and the new profile can be compared. Only that one line of
    .env is touched. Variables in the environment stand above .env, and EMBEDDING_MODEL, EMBEDDING_PROVIDER and
    EMBEDDING_DIMENSIONS above every profile: where one of them makes the switch ineffective, this is said, and those in
    .env can be commented out.
    """,
    epilog="""
    \b
    Examples:
      embedkit use
      embedkit use speed --dry-run
      embedkit use speed --env-file deploy/.env --comment-out-overrides
    """,
)
@name_argument
@click.option("--env-file", type=click.Path(path_type=Path), help="Write this file instead of the project's .env.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option(
    "--comment-out-overrides",
    is_flag=True,
    help="Comment out EMBEDDING_MODEL, _PROVIDER and _DIMENSIONS in .env where they stand above the profile.",
)
@json_option
def use(*, name: str | None, env_file: Path | None, dry_run: bool, comment_out_overrides: bool, as_json: bool) -> None:
    """Switch to another profile."""
    registry = find_registry()
    config = read_config(env_file=env_file)
    may_ask = output.can_ask() and not as_json
    old_name = _find_present(config)
    if name is None:
        if not may_ask:
            raise click.UsageError(
                "Which profile? There is no terminal to ask on, so name it: embedkit use NAME "
                f"(declared: {', '.join(sorted(config.profiles))})."
            )
        name = _ask_name(config, registry, old_name)
        if name == old_name:
            output.say(f"{name} stays.")
            return
    config.get_profile(name, CALL)
    path = config.env_file or config.new_env_file
    in_file = read_env_file(path)
    overrides = _find_overrides(config, registry, name)
    removable = [variable for variable in overrides if variable in in_file and in_file[variable].value]
    removed = (
        removable if comment_out_overrides or (may_ask and not dry_run and _ask_removal(config, removable)) else []
    )

    new_config = _foresee(config, name, removed)
    new = resolve_profile(new_config, name, find_options=registry.find_options_class)
    old, old_setup, warnings = _prepare_old(config, registry, old_name)
    new_setup, new_warnings = _prepare_new(new_config, registry, new)
    warnings += new_warnings + _find_obstacles(new_config, name, [one for one in overrides if one not in removed])
    if env_file is not None:
        warnings += _find_unread_file(path)
    comparable, reason = _compare(old, new, old_setup, new_setup)

    # The overrides first: if only this much succeeds, the old profile is in force, and nothing is half of each.
    removals = [comment_out(path, variable, dry_run=dry_run) for variable in removed]
    switch = Switch(
        old_name=old_name,
        changes=_list_changes(old, new),
        comparable=comparable,
        reason=reason,
        change=set_variable(path, PROFILE_VARIABLE, name, dry_run=dry_run),
        removals=[removal for removal in removals if removal is not None],
        dry_run=dry_run,
        warnings=warnings,
    )
    if as_json:
        output.print_json(_to_json(switch))
    else:
        _print(switch)
    for warning in warnings:
        output.warn(warning)


def _find_present(config: Config) -> str | None:
    """Give the profile in force; None when a name stands there that is not declared, which a switch mends."""
    try:
        return config.choose_profile()[0]
    except UnknownProfileError:
        return None


def _ask_name(config: Config, registry: Registry, old_name: str | None) -> str:
    """Show the profiles, and let somebody choose by number or name."""
    if old_name is None:
        config = _without(config, [PROFILE_VARIABLE])
    listed = list_profiles(config=config, registry=registry)
    names = [one.profile.name for one in listed]
    if old_name is None:
        listed = [attrs.evolve(one, active=False) for one in listed]
    print_profiles(listed, numbered=True)

    def read_choice(text: str) -> str:
        if text in names:
            return text
        if text.isdecimal() and 1 <= int(text) <= len(names):
            return names[int(text) - 1]
        raise click.BadParameter(f"a number from 1 to {len(names)}, or a name, is due")

    click.echo()
    chosen: str = click.prompt("Profile (number or name)", default=old_name, value_proc=read_choice)
    return chosen


def _ask_removal(config: Config, removable: Sequence[str]) -> bool:
    """Offer to comment out what stands above every profile."""
    if not removable:
        return False
    for variable in removable:
        found = config.variables[variable]
        output.say(f"{variable}={found.value} stands above every profile ({found.origin}).")
    return click.confirm(f"Comment out {' and '.join(removable)}?", default=True)


def _find_overrides(config: Config, registry: Registry, name: str) -> list[str]:
    """Give the variables that would make another space of the new profile than it declares."""
    effective = resolve_profile(config, name, find_options=registry.find_options_class)
    return [
        variable
        for variable, key in OVERRIDE_VARIABLES.items()
        if key in IDENTITY_KEYS
        and variable in config.variables
        and effective.origins.get(key, CALL).source == config.variables[variable].origin.source
    ]


def _is_from_environment(variable: Variable) -> bool:
    return variable.origin.source.startswith("environment variable ")


def _without(config: Config, names: Sequence[str]) -> Config:
    return attrs.evolve(config, variables={key: one for key, one in config.variables.items() if key not in names})


def _foresee(config: Config, name: str, removed: Sequence[str]) -> Config:
    """Give the configuration as it will be read after the switch."""
    present = config.variables.get(PROFILE_VARIABLE)
    after = _without(config, [one for one in removed if not _is_from_environment(config.variables[one])])
    if present is not None and _is_from_environment(present):
        return after
    return attrs.evolve(after, variables={**after.variables, PROFILE_VARIABLE: Variable(name, CALL)})


def _prepare_old(
    config: Config, registry: Registry, old_name: str | None
) -> tuple[Profile | None, Setup | None, list[str]]:
    """Resolve the profile in force as far as it goes: whatever is wrong with it must not hinder leaving it."""
    if old_name is None:
        variable = config.variables[PROFILE_VARIABLE]
        return (
            None,
            None,
            [f"until now {PROFILE_VARIABLE} named {variable.value}, which is not declared ({variable.origin})"],
        )
    profile = resolve_profile(config, old_name, find_options=registry.find_options_class)
    try:
        return profile, prepare(profile, config=config, registry=registry), []
    except EmbedkitError:
        return profile, None, []


def _prepare_new(config: Config, registry: Registry, profile: Profile) -> tuple[Setup | None, list[str]]:
    """Resolve the new profile; one whose provider is yet to be installed can be switched to."""
    try:
        return prepare(profile, config=config, registry=registry), []
    except PluginError as error:
        is_kept_out = profile.provider in registry.not_allowed
        hint = error.hint if is_kept_out else config.install_hints.get(profile.provider, "")
        return None, [f"{error.problem} {profile.name} cannot be used until it is{f': {hint}' if hint else '.'}"]


def _find_obstacles(config: Config, name: str, overrides: Sequence[str]) -> list[str]:
    """Say what keeps the switch from having an effect; *config* is the one that will be read after it."""
    found = []
    present = config.variables[PROFILE_VARIABLE]
    if present.value.strip() != name:
        found.append(
            f"{PROFILE_VARIABLE}={present.value} is set in the environment, which stands above .env: "
            f"here the switch has no effect; unset {PROFILE_VARIABLE}"
        )
    for variable in overrides:
        one = config.variables[variable]
        mend = f"unset {variable}" if _is_from_environment(one) else "comment it out: --comment-out-overrides"
        found.append(f"{variable}={one.value} still stands above {name} ({one.origin}); {mend}")
    return found


def _find_unread_file(path: Path) -> list[str]:
    """Say so where the file is not the one that is read from here."""
    ordinary = read_config()
    read = ordinary.env_file or ordinary.new_env_file
    if read.absolute() == path.absolute() or (read.exists() and path.exists() and read.samefile(path)):
        return []
    return [f"from here {show_path(read)} is read; for this file, set {ENV_FILE_VARIABLE}={show_path(path)}"]


def _compare(
    old: Profile | None, new: Profile, old_setup: Setup | None, new_setup: Setup | None
) -> tuple[Comparable, str]:
    """Say whether the vectors of two profiles are of one space, as far as that can be known without loading a model."""
    if old is None:
        return "unknown", "the old profile is not declared"
    if _list_identity(old) == _list_identity(new):
        return "yes", "all that makes the space is the same"
    if old.dimensions is not None and new.dimensions is not None and old.dimensions != new.dimensions:
        return "no", f"{old.dimensions} and {new.dimensions} dimensions"
    if old_setup is None or new_setup is None:
        return "unknown", "one of them cannot be used here"
    return _compare_spaces(old_setup, new_setup)


def _compare_spaces(old_setup: Setup, new_setup: Setup) -> tuple[Comparable, str]:
    try:
        spaces = [setup.provider.identify(setup.profile, setup.options) for setup in (old_setup, new_setup)]
    except EmbedkitError as error:
        return "unknown", error.problem
    if spaces[0] is None or spaces[1] is None:
        return "unknown", "known only once both models are loaded"
    if spaces[0] == spaces[1]:
        return "yes", f"both are space {spaces[0].fingerprint}"
    return "no", f"space {spaces[0].fingerprint} and space {spaces[1].fingerprint}"


def _list_identity(profile: Profile) -> dict[str, object]:
    """Give the settings that decide the space, options included."""
    settings = {key: getattr(profile, key) for key in list_options(Profile) if key not in _NOT_OF_THE_SPACE}
    return {**settings, "options": dict(profile.options)}


def _list_changes(old: Profile | None, new: Profile) -> dict[str, tuple[str, str]]:
    before = {} if old is None else _list_settings(old)
    after = _list_settings(new)
    return {
        key: (before.get(key, "-"), after.get(key, "-"))
        for key in dict.fromkeys([*before, *after])
        if key in _ALWAYS_SHOWN or (before.get(key) != after.get(key) and key != "description")
    }


def _list_settings(profile: Profile) -> dict[str, str]:
    settings = {key: output.describe_setting(getattr(profile, key)) for key in list_options(Profile)}
    options = {
        f"options.{key}": output.describe_setting(output.mask_raw_option(key, value))
        for key, value in profile.options.items()
    }
    return settings | options


def _print(switch: Switch) -> None:
    changes = switch.changes.items()
    rows = [(key, now, then, "" if now == then else "*") for key, (now, then) in changes]
    new_name = switch.change.new or ""
    output.print_table(("", f"now: {switch.old_name or '?'}", f"then: {new_name}", ""), rows)
    words = {"yes": "comparable", "no": "not comparable", "unknown": "comparable or not: unknown until loaded"}
    click.echo(f"\nTheir vectors: {words[switch.comparable]} ({switch.reason}).")
    if switch.comparable == "no":
        click.echo(f"What was embedded with {switch.old_name} must be embedded again to be searched with {new_name}.")
    would = "would be " if switch.dry_run else ""
    for removal in switch.removals:
        click.echo(f"{would}commented out: {removal.key}={removal.old} in {show_path(removal.path)}:{removal.line}")
    place = f"{show_path(switch.change.path)}:{switch.change.line}"
    if switch.change.old == new_name:
        click.echo(f"{place} said {PROFILE_VARIABLE}={new_name} already.")
    else:
        was = f"was {switch.change.old}" if switch.change.old else "was not set there"
        click.echo(f"{would}written: {PROFILE_VARIABLE}={new_name} to {place} ({was})")
    if switch.dry_run:
        click.echo("Nothing was written.")


def _to_json(switch: Switch) -> dict[str, object]:
    return {
        "profile": switch.change.new,
        "previous": switch.old_name,
        "changes": {key: {"now": now, "then": then} for key, (now, then) in switch.changes.items() if now != then},
        "comparable": switch.comparable,
        "reason": switch.reason,
        "env_file": str(switch.change.path),
        "line": switch.change.line,
        "was": switch.change.old,
        "commented_out": [removal.key for removal in switch.removals],
        "written": not switch.dry_run,
        "warnings": list(switch.warnings),
    }
