"""`embedkit explain`: each value in force, where it came from, and what it hides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import click

from embedkit.cli import output
from embedkit.cli.arguments import choose_name, find_registry, json_option, name_argument, profile_option
from embedkit.config import Config, read_config, show_path
from embedkit.errors import ConfigError, EmbedkitError, PluginError
from embedkit.options import CALL, DEFAULT, Origin, Secret, list_options
from embedkit.profile import Profile
from embedkit.resolve import resolve_options, resolve_profile

if TYPE_CHECKING:
    from embedkit.protocols import Provider
    from embedkit.registry import Registry


@attrs.frozen(kw_only=True)
class Line:
    """Hold one explained setting; `help` is what its provider says of it."""

    name: str
    value: object
    origin: Origin
    help: str = ""


@attrs.frozen(kw_only=True)
class Explanation:
    """
    Hold what is printed as a table or as JSON.

    `ways` says how the model was run when it was last loaded here; `fault` is what is wrong with the options.
    """

    profile: Profile
    chosen_by: Origin
    settings: list[Line]
    options: list[Line]
    provider: dict[str, str]
    ways: list[str]
    fault: ConfigError | None


@click.command(
    "explain",
    short_help="Show each setting in force, and where it comes from.",
    help="""
    Show each value of a profile (the active one, unless NAME is given), where it came from, and what it hides.

    Layers, lowest first: default, profiles.toml, .env, environment, command line. Of a secret only the variable's name
    is shown, and whether it is set. Nothing is loaded, and the provider need not be installed.
    """,
    epilog="""
    \b
    Examples:
      embedkit explain
      embedkit explain speed --json
    """,
)
@name_argument
@profile_option
@json_option
def explain(*, name: str | None, profile: str | None, as_json: bool) -> None:
    """Show each value of a profile, and where it came from."""
    config = read_config()
    explanation = _explain(config, find_registry(), choose_name(name, profile))
    if as_json:
        output.print_json(_to_json(explanation, config))
    else:
        _print(explanation, config)
    if explanation.fault is not None:
        raise explanation.fault


def _explain(config: Config, registry: Registry, name: str | None) -> Explanation:
    _, chosen_by = config.choose_profile(name)
    profile = resolve_profile(config, name, find_options=registry.find_options_class)
    settings = [
        Line(name=key, value=getattr(profile, key), origin=profile.origins.get(key, DEFAULT))
        for key in list_options(Profile)
    ]
    described = {
        "name": profile.provider,
        "state": "installed",
        "distribution": "",
        "summary": "",
        "problem": "",
        "hint": "",
    }
    fault: ConfigError | None = None
    ways: list[str] = []
    raw = {key: output.mask_raw_option(key, value) for key, value in profile.options.items()}
    options = [
        Line(name=key, value=value, origin=profile.origins.get("options", DEFAULT)) for key, value in raw.items()
    ]
    try:
        provider = registry.get_provider(profile.provider, install_hint=config.install_hints.get(profile.provider, ""))
    except PluginError as error:
        described |= {"state": "unusable", "problem": error.problem, "hint": error.hint}
    else:
        distributions = [plugin.distribution for plugin in registry.plugins if profile.provider in plugin.providers]
        described |= {"distribution": ", ".join(distributions), "summary": provider.summary}
        try:
            options = _explain_options(profile, provider, config)
            ways = _describe(profile, provider, config)
        except ConfigError as error:
            fault = error
    return Explanation(
        profile=profile,
        chosen_by=chosen_by,
        settings=settings,
        options=options,
        provider=described,
        ways=ways,
        fault=fault,
    )


def _explain_options(profile: Profile, provider: Provider[Any], config: Config) -> list[Line]:
    typed = resolve_options(profile, provider.options, config.variables)
    origin = profile.origins.get("options", DEFAULT)
    return [
        Line(
            name=key,
            # Of a table, such as HTTP headers, the type says nothing about what its values are.
            value=output.mask_raw_option("", getattr(typed, key)),
            origin=attrs.evolve(origin, note="") if key in profile.options else DEFAULT,
            help=field.help,
        )
        for key, field in list_options(provider.options).items()
    ]


def _describe(profile: Profile, provider: Provider[Any], config: Config) -> list[str]:
    """Say how the model was run when it was last loaded here; nothing where its files are absent or wrong."""
    options = resolve_options(profile, provider.options, config.variables)
    try:
        return list(provider.describe(profile, options))
    except EmbedkitError:
        return []


def _print(explanation: Explanation, config: Config) -> None:
    by = "named on the command line" if explanation.chosen_by == CALL else f"from {explanation.chosen_by}"
    click.echo(f"profile {explanation.profile.name}, {by}\n")
    # The table's name repeats the profile's.
    own_table = f" [profiles.{explanation.profile.name}]"
    rows = [
        (line.name, output.describe_setting(line.value), output.mask_user(str(line.origin)).replace(own_table, ""))
        for line in explanation.settings
    ]
    output.print_table(("setting", "value", "from"), rows)
    if explanation.options:
        click.echo()
        rows = [
            (
                line.name,
                output.describe_setting(line.value),
                "\n".join(filter(None, [output.mask_user(str(line.origin)).replace(own_table, ""), line.help])),
            )
            for line in explanation.options
        ]
        output.print_table(("option", "value", "from: what it is for"), rows)
    if note := explanation.profile.origins.get("options", DEFAULT).note:
        click.echo(f"\noptions: {note}")
    provider = explanation.provider
    click.echo(f"\nprovider  {provider['name']}: {provider['problem'] or provider['summary']}")
    if provider["distribution"]:
        click.echo(f"          {provider['distribution']}")
    if provider["hint"]:
        click.echo(f"          hint: {provider['hint']}")
    for number, way in enumerate(explanation.ways):
        click.echo(f"{'' if number else 'last run':<10}{way}")
    click.echo(f"files     {', '.join(map(show_path, config.files))}")
    if not set(config.files) & set(config.searched):
        click.echo(f"          no profiles.toml of your own from {config.searched[0].parent} upward")
    env_file = show_path(config.env_file or config.new_env_file)
    click.echo(f".env      {env_file if config.env_file else f'none; it would be {env_file}'}")
    for warning in config.warnings:
        output.warn(warning)


def _to_json(explanation: Explanation, config: Config) -> dict[str, object]:
    return {
        "profile": explanation.profile.name,
        "chosen_by": _origin_to_json(explanation.chosen_by),
        "settings": {line.name: _line_to_json(line) for line in explanation.settings},
        "options": {line.name: _line_to_json(line) | {"help": line.help} for line in explanation.options},
        "options_note": explanation.profile.origins.get("options", DEFAULT).note,
        "provider": explanation.provider,
        "last_run": explanation.ways,
        "files": {
            "profiles": [str(path) for path in config.files],
            "searched": [str(path) for path in config.searched],
            "env_file": None if config.env_file is None else str(config.env_file),
        },
        "warnings": list(config.warnings),
    }


def _line_to_json(line: Line) -> dict[str, object]:
    value = line.value
    if isinstance(value, Secret):
        return {"variable": value.variable, "is_set": value.is_set, "from": _origin_to_json(line.origin)}
    if attrs.has(type(value)):
        value = attrs.asdict(value)  # type: ignore[arg-type]  # the line above
    if not isinstance(value, bool | int | float | list | tuple | Mapping | None):
        value = output.mask_user(str(value))
    return {"value": value, "from": _origin_to_json(line.origin)}


def _origin_to_json(origin: Origin) -> dict[str, object]:
    found: dict[str, object] = {"source": origin.source}
    if origin.hides is not None:
        found["hides"] = {"value": output.mask_raw_option("", origin.hidden), **_origin_to_json(origin.hides)}
    if origin.note:
        found["note"] = origin.note
    return found
