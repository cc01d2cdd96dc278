"""The plan of the house, held as data: a file imports only from lower floors."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import embedkit

ROOT = Path(__file__).parents[2]

FLOORS = (
    ("errors",),
    ("space", "options"),
    ("profile", "vectors"),
    ("protocols", "env_file"),
    ("hookspecs", "config", "embedder", "reranker", "reference"),
    ("registry",),
    ("resolve",),
    ("api", "sample_texts"),
    ("documents", "passages", "benchmark", "doctor", "testing"),
    ("cli.output", "cli.arguments", "cli.plot"),
    ("cli.profiles",),
    ("cli.use", "cli.explain", "cli.embed", "cli.search", "cli.pull", "cli.plugins", "cli.doctor", "cli.bench"),
    ("cli.main",),
    ("__init__", "__main__", "cli.__init__"),
)
"""Modules of the core by floor, lowest first. A new file makes its author choose one."""

FLOOR_BY_MODULE = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}

HEAVY = {"torch", "transformers", "sentence_transformers", "tokenizers", "openai", "psycopg", "huggingface_hub"}


def list_modules() -> list[str]:
    """Give every module of the core, by its dotted name below `embedkit`."""
    package = ROOT / "embedkit"
    return sorted(".".join(path.relative_to(package).with_suffix("").parts) for path in package.rglob("*.py"))


def list_imports(tree: ast.AST, *, top_only: bool = False) -> Iterator[str]:
    """Give the dotted name of every module that is imported, but for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif not (top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from list_imports(node, top_only=top_only)


def parse(path: Path) -> ast.Module:
    """Read a source file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def find_steps_up(module: str, tree: ast.AST) -> list[str]:
    """Give the imports of a module that are not from a lower floor."""
    imported = {name.removeprefix("embedkit.") for name in list_imports(tree) if name.startswith("embedkit.")}
    return sorted(
        name for name in imported if name in FLOOR_BY_MODULE and FLOOR_BY_MODULE[name] >= FLOOR_BY_MODULE[module]
    )


def test_every_file_has_a_floor():
    """The table names the files that are there, and no others."""
    assert sorted(FLOOR_BY_MODULE) == list_modules()


@pytest.mark.parametrize("module", sorted(FLOOR_BY_MODULE))
def test_a_file_imports_only_from_lower_floors(module):
    """No step up, none sideways."""
    tree = parse(ROOT / "embedkit" / Path(*module.split(".")).with_suffix(".py"))
    assert [] == find_steps_up(module, tree)


def test_a_step_up_and_a_step_sideways_are_found():
    """The search itself notices both, also inside a function."""
    tree = ast.parse("def work():\n    from embedkit.api import get_embedder\nfrom embedkit import registry, errors\n")
    assert ["api", "registry"] == find_steps_up("registry", tree)


def test_the_core_imports_nothing_heavy_and_no_first_party_plugin():
    """Core never imports or names the plugins: they join as strangers do."""
    for module in list_modules():
        tree = parse(ROOT / "embedkit" / Path(*module.split(".")).with_suffix(".py"))
        roots = {name.partition(".")[0] for name in list_imports(tree)}
        assert set() == {root for root in roots if root in HEAVY or root.startswith("embedkit_")}, module


def list_plugin_files(pattern: str) -> list[Path]:
    """Give files of the first-party plugins."""
    return sorted((ROOT / "plugins").glob(f"*/embedkit_*/{pattern}"))


@pytest.mark.parametrize("path", list_plugin_files("plugin.py"), ids=lambda path: path.parent.name)
def test_a_plugin_file_is_light(path):
    """`plugin.py` imports nothing heavy at its top, and `backend.py` only inside a function."""
    names = set(list_imports(parse(path), top_only=True))
    assert set() == {name for name in names if name.partition(".")[0] in HEAVY or name.endswith(".backend")}


@pytest.mark.parametrize("path", list_plugin_files("**/*.py"), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_plugin_uses_only_what_is_public(path):
    """First-party plugins join exactly as strangers do."""
    public = {"protocols", "space", "options", "errors", "testing", "profile", "hookimpl", "vectors", "reference"}
    names = {name.split(".")[1] for name in list_imports(parse(path)) if name.startswith("embedkit.")}
    assert set() == names - public - set(embedkit.__all__)
