"""What embedkit promises is written down: hooks, variables, commands, options, errors."""

import ast
import re
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import attrs
import pytest

import embedkit
from embedkit import config, errors, hookspecs
from embedkit.cli.main import main
from embedkit.options import list_options
from embedkit.profile import Profile, RerankerProfile

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)(?:#([^)\s]+))?\)")


def list_hooks() -> list[tuple[str, list[str]]]:
    """Give each hook with its arguments, read from the source."""
    tree = ast.parse(Path(hookspecs.__file__).read_text(encoding="utf-8"))
    return [
        (node.name, [argument.arg for argument in node.args.args])
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("embedkit_")
    ]


@pytest.mark.parametrize(("hook", "arguments"), list_hooks(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_hook_stands_in_the_docs_with_its_arguments(hook, arguments):
    """A plugin author finds each hook as it is called."""
    assert f"{hook}({', '.join(arguments)})" in TEXT


def test_every_variable_stands_in_the_example_file_and_the_other_way_round():
    """`.env.example` is complete and promises nothing else."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    named = {match[1] for line in lines if (match := re.match(r"#? ?([A-Z][A-Z0-9_]+)=", line))}
    declared = tomllib.loads((ROOT / "profiles.toml").read_text(encoding="utf-8"))
    secrets = {
        value
        for profile in declared["profiles"].values()
        for key, value in profile.get("options", {}).items()
        if key.endswith("_env")
    }
    assert set(config.VARIABLES) | secrets == named


@pytest.mark.parametrize("variable", config.VARIABLES)
def test_every_variable_stands_in_the_docs(variable):
    """Each is explained, not only listed."""
    assert f"`{variable}`" in TEXT


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_stands_in_the_docs(command):
    """Each is shown as one types it."""
    assert re.search(rf"embedkit (--profile \w+ )?{command}\b", TEXT)


@pytest.mark.parametrize("kind", [Profile, RerankerProfile], ids=lambda kind: kind.__name__)
def test_every_key_of_a_table_stands_in_the_docs(kind):
    """A key that can be written can be looked up."""
    assert [] == [key for key in list_options(kind) if f"`{key}`" not in TEXT]


def test_every_option_of_first_party_providers_stands_in_their_readme():
    """A provider's settings are explained where it lives."""
    for provider in embedkit.list_providers():
        distribution = provider.distribution.split()[0]
        readme = (ROOT / "plugins" / distribution / "README.md").read_text(encoding="utf-8")
        point = next(point for point in entry_points(group="embedkit") if point.dist.name == distribution)
        offered = next(offer for offer in point.load().embedkit_providers() if offer.name == provider.name)
        assert [] == [key for key in list_options(offered.options) if f"`{key}`" not in readme], distribution


def test_every_error_stands_in_the_tree_of_its_module():
    """The tree that is drawn is the tree that is there."""
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert [] == sorted(name for name in classes if name not in (errors.__doc__ or ""))


def test_the_promised_surface_is_there():
    """`__all__` names what exists."""
    assert [] == [name for name in embedkit.__all__ if not hasattr(embedkit, name)]


def test_public_classes_describe_each_of_their_fields():
    """An attrs class of the core says what each field holds."""
    for name in (
        "protocols.Batch",
        "protocols.Provider",
        "protocols.Check",
        "protocols.Finding",
        "protocols.Subject",
        "vectors.Report",
        "vectors.Embeddings",
        "space.Space",
        "api.Setup",
    ):
        module, _, kind = name.partition(".")
        described = getattr(__import__(f"embedkit.{module}", fromlist=[kind]), kind)
        missing = [
            field.name for field in attrs.fields(described) if field.init and f"{field.name}:" not in described.__doc__
        ]
        assert [] == missing, name


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "plugins").glob("*/README.md"))], ids=str
)
def test_no_link_is_dead(page):
    """Every relative link leads to a file, and every anchor to a heading."""
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve()
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name}: {target}#{anchor}"


def test_models_are_named_in_one_place():
    """Only `profiles.toml` knows models: the packages name none."""
    declared = tomllib.loads((ROOT / "profiles.toml").read_text(encoding="utf-8"))
    models = {profile["model"] for profile in declared["profiles"].values()}
    sources = [*(ROOT / "embedkit").rglob("*.py"), *(ROOT / "plugins").glob("*/embedkit_*/**/*.py")]
    named = [(path.name, model) for path in sources for model in models if model in path.read_text(encoding="utf-8")]
    assert [] == named


def strip_docstrings(source):
    """Give the code of a module without docstrings, in one form."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body.pop(0)
    return ast.unparse(tree)


def test_the_provider_that_authors_copy_is_the_one_that_is_tested():
    """The page's block and the example's module are the same code, under 40 lines."""
    source = (ROOT / "plugins/embedkit-example/embedkit_example/plugin.py").read_text(encoding="utf-8")
    page = (ROOT / "docs/writing-a-provider.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    code = strip_docstrings(source)
    assert code in [strip_docstrings(block) for block in blocks]
    assert len(code.splitlines()) < 40


def list_requirements():
    """Give every requirement that a file of this repository states."""
    for path in [ROOT / "pyproject.toml", *(ROOT / "plugins").glob("*/pyproject.toml")]:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        yield from project["dependencies"]
        yield from (line for lines in project.get("optional-dependencies", {}).values() for line in lines)
    for name in ("requirements.txt", "constraints.txt"):
        yield from (ROOT / name).read_text(encoding="utf-8").splitlines()
    for page in PAGES:
        for command in re.findall(r"pip install ([^`\n&]*)", page.read_text(encoding="utf-8")):
            yield from command.split()


def test_nothing_depends_on_or_advertises_the_unrelated_distribution():
    """A distribution called `embedkit` belongs to somebody else."""
    assert [] == [line for line in list_requirements() if re.match(r"embedkit(?![-\w./])", line.strip("\"' "))]
