"""
The documentation is true: its blocks run, and print what they say.

- `console`: lines after `$ ` are typed into a shell; the lines below are the output, where a line `…` stands for any
  lines, and `…` inside a line for any text. Without output lines only success counts.
- `python`: the blocks of a page run one after the other in one process; a `text` block right below is what the block
  prints.
- `toml`: is parsed.
- A block that cannot run on every machine carries its reason in the line above: `<!-- not run: … -->`.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "plugins").glob("*/README.md")),
]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^>]*?) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
KNOWN_LANGUAGES = {"console", "python", "text", "toml", "ini", "json", "sql", ""}


@attrs.frozen
class Block:
    """A fenced block of a page, with the output that stands below it."""

    page: Path
    line: int
    language: str
    body: str
    mark: str
    output: str = ""

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page):
    """Give the blocks of a page; a `text` block right below a `python` block is its output."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    end = 0
    for match in BLOCK.finditer(text):
        follows = blocks and blocks[-1].language == "python" and not text[end : match.start()].strip()
        if match["language"] == "text" and follows:
            blocks[-1] = attrs.evolve(blocks[-1], output=match["body"])
        else:
            line = text.count("\n", 0, match.start()) + 1
            blocks.append(Block(page, line, match["language"], match["body"], match["mark"] or ""))
        end = match.end()
    return blocks


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


def to_pattern(expected):
    """Turn expected output into a pattern: a line `…` is any lines, `…` inside a line any text."""
    lines = [
        r"(?:.*\n)*?" if line.strip() in ("…", "...") else re.escape(line.rstrip()).replace("…", ".*") + r" *\n"
        for line in expected.strip("\n").split("\n")
    ]
    return re.compile("".join(lines) + r"\Z")


def require_output(expected, found):
    """Compare what was printed with what the page says."""
    assert to_pattern(expected).match(found.strip("\n") + "\n"), (
        f"the page says:\n{expected}\nand this was printed:\n{found}"
    )


def list_commands(body):
    """Split a console block into commands (with continued lines) and the output below each."""
    commands = []
    for line in body.splitlines():
        if line.startswith("$ "):
            commands.append([line[2:], []])
        elif commands and commands[-1][0].endswith("\\"):
            commands[-1][0] += "\n" + line
        elif commands:
            commands[-1][1].append(line)
    return commands


@pytest.fixture
def user_directory(tmp_path):
    """A directory with the texts that the pages search, and nothing of a project around it."""
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    return tmp_path


@pytest.fixture
def user_environment():
    """The environment of a person who has set nothing, at the width that the pages show."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EMBEDDING_", "EMBEDKIT_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**kept, "PATH": path, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}


def is_run(block):
    """Whether a block is to be run here."""
    return not block.mark.startswith(("not run:", "run by .ci/run"))


def test_every_block_says_its_language_and_every_exception_its_reason():
    """No block slips through unseen."""
    assert [] == [str(block) for block in BLOCKS if block.language not in KNOWN_LANGUAGES]
    assert [] == [str(block) for block in BLOCKS if re.fullmatch(r"not run:\s*", block.mark)]


def test_the_readme_has_exactly_two_setup_commands_and_the_ci_script_takes_them_from_there():
    """They are run by `.ci/run`, never from inside the suite."""
    setup = [block for block in BLOCKS if block.mark.startswith("run by .ci/run")]
    assert [ROOT / "README.md"] * 2 == [block.page for block in setup]
    assert [1, 1] == [len(list_commands(block.body)) for block in setup]


@pytest.mark.weights
@pytest.mark.skipif(sys.platform == "win32", reason="console blocks are written for a POSIX shell")
@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "console" and is_run(b)], ids=str)
def test_console_blocks_run_and_print_what_the_page_says(block, user_directory, user_environment):
    """What a reader types works as shown."""
    commands = list_commands(block.body)
    assert commands, "a console block needs a line that begins with '$ '"
    for command, output in commands:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=user_directory,
            env=user_environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        exit_code = int(match[1]) if (match := re.match(r"exit code (\d+)", block.mark)) else 0
        assert exit_code == done.returncode, done.stdout + done.stderr
        if output:
            require_output("\n".join(output), done.stdout if exit_code == 0 and done.stdout else done.stderr)


@pytest.mark.weights
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run_and_print_what_the_page_says(page, user_directory, user_environment):
    """The blocks of a page are one program."""
    blocks = [block for block in read_blocks(page) if block.language == "python" and is_run(block)]
    if not blocks:
        return
    mark = "-- end of block --"
    program = f"\nprint({mark!r})\n".join(block.body for block in blocks)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=user_directory,
        env=user_environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    for block, printed in zip(blocks, done.stdout.split(f"{mark}\n"), strict=True):
        if block.output:
            require_output(block.output, printed)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "toml"], ids=str)
def test_toml_blocks_parse(block):
    """What a reader copies into a file is a file."""
    assert tomllib.loads(block.body)
