"""The plugin is light, says what is missing, and offers what the documentation says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from embedkit_local.digests import find_cache_directory
from embedkit_local.options import LocalOptions
from embedkit_local.plugin import describe_local, embedkit_providers, load_local, translate_import_error

from embedkit.options import list_options
from embedkit.profile import Profile

README = Path(__file__).parents[1] / "README.md"


def test_importing_the_plugin_imports_nothing_heavy():
    """Listing providers costs no torch."""
    code = (
        "import sys; from embedkit_local.plugin import embedkit_providers; list(embedkit_providers());"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'huggingface_hub', 'tokenizers'};"
        "heavy &= sys.modules.keys();"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr


@pytest.mark.parametrize(
    ("name", "requirement"), [("torch", "torch"), ("sentence_transformers.base", "sentence-transformers>=6.2,<7")]
)
def test_missing_package_is_named_with_the_command(name, requirement):
    """The hint can be typed as it stands. Fault 27."""
    error = translate_import_error(ImportError(f"No module named {name!r}", name=name))
    assert f'python -m pip install "{requirement}"' == error.hint


def test_missing_torch_is_an_error_with_a_hint(tmp_path, make_bert):
    """In a process that cannot import torch, loading says so without a foreign traceback. Fault 27."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "torch.py").write_text(
        "raise ModuleNotFoundError('No module', name='torch')", encoding="utf-8"
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]);"
        "from embedkit.profile import Profile; from embedkit.errors import MissingDependencyError;"
        "from embedkit_local.plugin import load_local; from embedkit_local.options import LocalOptions\n"
        "try: load_local(Profile(model=sys.argv[1]), LocalOptions())\n"
        "except MissingDependencyError as error: print(error.hint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(make_bert()), str(tmp_path / "blocked")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'python -m pip install "torch"' == done.stdout.strip(), done.stderr


def test_every_option_stands_in_the_readme():
    """And the table has no other."""
    rows = {line.split("`")[1] for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| `")}
    assert set(list_options(LocalOptions)) == rows


def test_options_belong_to_the_model_or_the_machine():
    """An override of the model keeps only what belongs to the machine."""
    kept = {name for name, field in list_options(LocalOptions).items() if field.belongs_to != "model"}
    assert {"dtype", "max_batch_tokens"} == kept


def test_provider_is_called_local():
    """The name that profiles.toml uses."""
    (provider,) = embedkit_providers()
    assert "local" == provider.name


def test_how_a_model_was_last_run_is_told_without_loading(make_bert):
    """Nothing before the first load, then the way that it took; a file of rubbish says nothing."""
    profile, options = Profile(model=str(make_bert()), device="cpu"), LocalOptions(dtype="float32")
    assert () == describe_local(profile, options)
    backend = load_local(profile, options)
    assert (backend.way, *backend.notes) == describe_local(profile, options)
    assert backend.way
    assert () == describe_local(profile, LocalOptions(dtype="bfloat16"))
    (kept,) = (find_cache_directory(os.environ) / "last_way").iterdir()
    kept.write_bytes(b"\xff\xfe")
    assert () == describe_local(profile, options)
