"""`embedkit doctor`: what is wrong with this installation, and the command that mends it."""

from __future__ import annotations

import click

from embedkit.cli import output
from embedkit.cli.arguments import choose_name, device_option, find_registry, json_option, name_argument, profile_option
from embedkit.doctor import Examined, examine
from embedkit.errors import ConfigError
from embedkit.registry import Registry

_SIGNS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


@click.command(
    "doctor",
    short_help="Say what is wrong, and what mends it.",
    help="""
    Examine the installation and a profile (the active one, unless NAME is given): Python, plugins, configuration,
    devices, memory, weights; then load the model, and compare it with its published vector.

    Each problem comes with what mends it; the exit code is 1 when there is one. Nothing is fetched.
    """,
    epilog="""
    \b
    Examples:
      embedkit doctor
      embedkit doctor speed --device cuda
      embedkit doctor --no-load --json
    """,
)
@name_argument
@profile_option
@device_option
@click.option("--no-load", is_flag=True, help="Leave out what needs the loaded model.")
@json_option
def doctor(*, name: str | None, profile: str | None, device: str | None, no_load: bool, as_json: bool) -> int:
    """Examine the installation and a profile."""
    findings = examine(choose_name(name, profile), registry=_find_registry(), device=device, load=not no_load)
    if as_json:
        examined = list(findings)
        output.print_json(
            {
                "problems": _count_problems(examined),
                "findings": [
                    {
                        "topic": one.topic,
                        "level": one.finding.level,
                        "sentence": output.mask_user(one.finding.sentence),
                        "hint": output.mask_user(one.finding.hint),
                    }
                    for one in examined
                ],
            }
        )
    else:
        examined = []
        with output.Progress("examining"):
            for one in findings:
                examined.append(one)
                _print(one)
    n_problems = _count_problems(examined)
    output.say(f"\n{n_problems or 'no'} problem{'' if n_problems == 1 else 's'}")
    return 1 if n_problems else 0


def _find_registry() -> Registry | None:
    try:
        return find_registry()
    except ConfigError:
        # The same fault comes up, in its place, among the findings.
        return None


def _print(one: Examined) -> None:
    sign, topic = _SIGNS[one.finding.level], one.topic
    click.echo(output.make_printable(output.mask_user(f"{sign:<8} {topic:<14} {one.finding.sentence}")))
    if one.finding.hint:
        click.echo(output.make_printable(output.mask_user(f"{'':<8} {'':<14} hint: {one.finding.hint}")))


def _count_problems(examined: list[Examined]) -> int:
    return sum(one.finding.level == "problem" for one in examined)
