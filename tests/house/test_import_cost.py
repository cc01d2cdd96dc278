"""Listing and explaining import nothing heavy: proved in a fresh process each time."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "sentence_transformers", "openai", "psycopg", "huggingface_hub", "rich")

RUN_COMMAND = """
import sys
from embedkit.cli.main import main
try:
    main(sys.argv[1:], standalone_mode=False)
except SystemExit:
    pass
"""

STATEMENTS = {
    "import": "import embedkit",
    "list profiles": "import embedkit; assert embedkit.list_profiles()",
    "list providers": "import embedkit; assert embedkit.list_providers()",
    "get an embedder": "import embedkit; embedkit.get_embedder('mini')",
    "identify": (
        "from embedkit.api import prepare; setup = prepare('mini');"
        "assert setup.provider.identify(setup.profile, setup.options).dimensions == 384"
    ),
}


def list_loaded(code: str, *arguments: str) -> list[str]:
    """Run code in a fresh process and give the heavy packages that it loaded."""
    code += f"\nimport sys; print('loaded:', *sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS.keys())
def test_the_library_stays_light(statement):
    """What only lists, explains or waits for its first use loads no model library."""
    assert [] == list_loaded(statement)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("profiles",),
        ("profiles", "--json"),
        ("explain", "quality"),
        ("plugins",),
        ("use", "mini", "--dry-run"),
    ],
    ids=" ".join,
)
def test_the_command_line_stays_light(arguments):
    """Neither does a command that only lists or explains, and what is piped draws nothing."""
    assert [] == list_loaded(RUN_COMMAND, *arguments)


def test_the_probe_notices_a_heavy_import():
    """The probe itself sees what is loaded."""
    assert ["rich"] == list_loaded("import rich")
