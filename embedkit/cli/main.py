"""
The command `embedkit`: the group of commands, the options before them, and the one place where errors are caught.

Owns the exit codes: 0 done, 1 a finding or a failure, 2 configuration, usage or input, 130 interrupted.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from embedkit.cli import output
from embedkit.cli.arguments import complete_profile
from embedkit.cli.bench import bench
from embedkit.cli.doctor import doctor
from embedkit.cli.embed import embed
from embedkit.cli.explain import explain
from embedkit.cli.plugins import plugins
from embedkit.cli.profiles import profiles
from embedkit.cli.pull import pull
from embedkit.cli.search import search
from embedkit.cli.use import use
from embedkit.errors import ConfigError, EmbedkitError, InputError, PluginError, SpaceMismatchError

if TYPE_CHECKING:
    from embedkit.registry import Registry

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

_EPILOG = """
\b
First steps:
  embedkit --profile mini search "how do I switch models" README.md docs
  embedkit profiles                     what can be chosen
  embedkit use speed                    choose it, in .env
  embedkit explain                      what is in force, and where it comes from
  embedkit embed notes.txt -o notes.npz
  embedkit doctor                       what is wrong, and what mends it

\b
Exit codes: 0 done; 1 a finding or a failure; 2 configuration, usage or input;
130 interrupted. Data goes to stdout, everything else to stderr.

\b
Completion of commands and profiles, for this session or in your shell's
start-up file:
  bash:  eval "$(_EMBEDKIT_COMPLETE=bash_source embedkit)"
  zsh:   eval "$(_EMBEDKIT_COMPLETE=zsh_source embedkit)"
  fish:  _EMBEDKIT_COMPLETE=fish_source embedkit | source
"""


@click.group(
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="""
    Turn texts into vectors with the model that a profile names, and search files by meaning.

    A profile in profiles.toml binds provider, model, dimensions and batch size. EMBEDDING_PROFILE, in .env or the
    environment, chooses one.
    """,
)
@click.option(
    "--profile",
    metavar="NAME",
    shell_complete=complete_profile,
    help="The profile to use, instead of EMBEDDING_PROFILE and the default; also after the command.",
)
@click.version_option(package_name="embedkit-core", message="embedkit %(version)s")
@click.pass_context
def main(context: click.Context, profile: str | None) -> None:
    """Assemble the commands, and refuse --profile where it would be ignored."""
    command = main.commands.get(context.invoked_subcommand or "")
    if profile is not None and command is not None and all(parameter.name != "profile" for parameter in command.params):
        raise click.UsageError(f"{command.name} does not take --profile.")


for _command in (profiles, use, explain, embed, search, pull, plugins, bench, doctor):
    main.add_command(_command)


def run(arguments: Sequence[str] | None = None, *, registry: Registry | None = None) -> int:
    """
    Run one command line, and give its exit code.

    Args:
        arguments: What stands after the program's name; left out: the process's own.

        registry: The process's, unless given.
    """
    output.prepare_streams()
    handler = output.WarningHandler()
    logger = logging.getLogger("embedkit")
    logger.addHandler(handler)
    try:
        # What a command returns is its exit code; None is 0.
        code = main.main(arguments, prog_name="embedkit", standalone_mode=False, obj=registry) or DONE
        sys.stdout.flush()
    except click.Abort:
        output.say("Interrupted.")
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except EmbedkitError as error:
        output.say(str(error))
        return WRONG if isinstance(error, ConfigError | PluginError | InputError | SpaceMismatchError) else FAILED
    except OSError as error:
        if error.errno == errno.ENOSPC:
            output.say("There is no space left where the output goes.")
        elif not _is_broken_pipe(error):
            raise
        # Whoever read our output has seen enough; the interpreter's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    finally:
        logger.removeHandler(handler)
    return int(code)


def _is_broken_pipe(error: OSError) -> bool:
    return isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)
