"""`embedkit pull`: bring a profile's weights onto this machine beforehand."""

from __future__ import annotations

import click

from embedkit.api import prepare
from embedkit.cli import output
from embedkit.cli.arguments import choose_name, find_registry, name_argument, profile_option


@click.command(
    "pull",
    short_help="Fetch a profile's weights beforehand.",
    help="""
    Fetch the weights of a profile (the active one, unless NAME is given) onto this machine, so that the first use need
    not wait.

    What is here already is not fetched again; after an interruption, run it again.
    """,
    epilog="""
    \b
    Examples:
      embedkit pull
      embedkit pull speed
    """,
)
@name_argument
@profile_option
def pull(*, name: str | None, profile: str | None) -> None:
    """Fetch the weights of a profile."""
    setup = prepare(choose_name(name, profile), registry=find_registry())
    model = f"{setup.profile.name}: {setup.profile.model}"
    if setup.provider.fetch is None:
        output.say(f"{model}: nothing to fetch, for provider {setup.provider.name} keeps no weights on this machine.")
        return
    n_bytes = 0
    total_bytes: int | None = None
    with output.Progress("asking for the size", unit="bytes") as progress:
        for step in setup.provider.fetch(setup.profile, setup.options):
            if step.total_bytes != total_bytes:
                total_bytes = step.total_bytes
                output.say(f"{model}: {output.format_bytes(total_bytes)}")
                progress.begin("fetching", total_bytes)
                n_bytes = 0
            progress.advance(step.n_bytes - n_bytes)
            n_bytes = step.n_bytes
    output.say(f"{model}: nothing to fetch, it is on this machine." if total_bytes is None else f"{model}: complete.")
