"""A model is found where its name says, and a damaged one is refused by the name of what is wrong."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from embedkit_local.model_files import find_hub_cache, find_place, is_path_like, read_model
from safetensors.torch import load_file, save_file

from embedkit.errors import EmbedkitError, ModelLoadError, SettingError


def read(directory, *, trust_remote_code=False):
    """Read a directory's files, checked."""
    place = find_place(str(directory), None, hub_cache=directory / "none")
    return read_model(place, trust_remote_code=trust_remote_code)


def change_json(path, **changes):
    """Change some keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.mark.parametrize("name", ["./nodir", "../nodir", "~/no/such/dir", "/no/such/dir", "models\\nodir"])
def test_path_like_model_must_exist(name, tmp_path):
    """What looks like a path is never asked of the hub. Fault 69."""
    assert is_path_like(name)
    with pytest.raises(ModelLoadError, match="does not exist"):
        find_place(name, None, hub_cache=tmp_path)


def test_file_is_no_model(tmp_path):
    """The error names the path. Fault 69."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ModelLoadError, match=r"model\.safetensors.* is a file"):
        find_place(str(path), None, hub_cache=tmp_path)


def test_existing_directory_wins_over_a_name_on_the_hub(tmp_path, monkeypatch):
    """OWNER/NAME that is a directory here is that directory."""
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    place = find_place("owner/name", None, hub_cache=tmp_path)
    assert "" == place.repository


@pytest.mark.parametrize(
    "name", ["a/b/c", "owner/", "name with space", "owner/na..me", "x" * 5000 + "/" + "y" * 5000 + "/z"]
)
def test_impossible_name_is_refused(name, tmp_path):
    """It is neither a directory nor a possible name on the hub. Fault 69."""
    with pytest.raises(SettingError, match="is no model"):
        find_place(name, None, hub_cache=tmp_path)


def test_package_is_found_without_importing_it(tmp_path):
    """A directory inside an installed package serves, and the package's code never runs."""
    package = tmp_path / "boobytrapped"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    code = (
        "from pathlib import Path; from embedkit_local.model_files import find_place;"
        "print(find_place('package:boobytrapped/model', None, hub_cache=Path()).directory)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert str(package / "model") == done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:no_such_package/model", "is not installed"),
        ("package:json/nothing", "has no directory"),
        ("package:json/../x", "no directory inside"),
        ("package:os.path/model", "no directory inside"),
        ("package:sys/model", "is not installed"),
    ],
)
def test_package_without_the_model_is_refused(name, message, tmp_path):
    """The error names the package. Fault 69."""
    with pytest.raises(EmbedkitError, match=message):
        find_place(name, None, hub_cache=tmp_path)


def test_hub_cache_is_where_huggingface_hub_looks(tmp_path):
    """The same variables, in the same order."""
    assert tmp_path / "a" == find_hub_cache({"HF_HUB_CACHE": str(tmp_path / "a"), "HF_HOME": "/b"})
    assert tmp_path / "b" / "hub" == find_hub_cache({"HF_HUB_CACHE": "", "HF_HOME": str(tmp_path / "b")})
    assert tmp_path / "c" / "huggingface" / "hub" == find_hub_cache({"XDG_CACHE_HOME": str(tmp_path / "c")})
    from huggingface_hub.constants import HF_HUB_CACHE

    code = "import os; from embedkit_local.model_files import find_hub_cache; print(find_hub_cache(os.environ))"
    code += "; from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours, theirs = done.stdout.split()
    assert theirs == ours
    assert HF_HUB_CACHE


def test_hub_model_is_found_by_commit_branch_and_short_name(tmp_path):
    """Refs name the commit of a branch; a name without an owner is sentence-transformers'."""
    commit = "0123456789" * 4
    folder = tmp_path / "models--sentence-transformers--tiny"
    (folder / "snapshots" / commit).mkdir(parents=True)
    assert find_place("tiny", None, hub_cache=tmp_path) is None
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit, encoding="utf-8")
    for name, revision in [("tiny", None), ("sentence-transformers/tiny", "main"), ("tiny", commit)]:
        assert commit == find_place(name, revision, hub_cache=tmp_path).revision
    assert find_place("tiny", "9" * 40, hub_cache=tmp_path) is None


def test_whole_directory_passes(make_bert, make_qwen):
    """Undamaged directories are read: dimensions, pooling and cut-off."""
    files = read(make_bert(pooling=["cls", "mean"]))
    assert (64, ("cls", "mean"), 32, 64) == (
        files.find_dimensions(),
        files.read_pooling(),
        files.find_own_tokens(),
        files.find_supported_tokens(),
    )
    assert (32, ("lasttoken",)) == (read(make_qwen()).find_dimensions(), read(make_qwen()).read_pooling())


def test_positions_that_start_after_the_padding_are_fewer_tokens(make_bert):
    """RoBERTa's 514 positions read 512 tokens, whatever its settings promise."""
    directory = make_bert(max_seq_length=64)
    change_json(directory / "config.json", model_type="roberta", pad_token_id=1)
    assert (62, 62) == (read(directory).find_supported_tokens(), read(directory).find_own_tokens())


def test_byte_order_marks_and_line_endings_are_read(make_bert):
    """JSON that an editor on Windows has saved is still JSON."""
    directory = make_bert()
    text = (directory / "modules.json").read_text(encoding="utf-8")
    (directory / "modules.json").write_bytes(b"\xef\xbb\xbf" + text.replace(",", ",\r\n").encode())
    assert 3 == len(read(directory).modules)


def _remove(*names):
    def damage(directory):
        for name in names:
            path = directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def _cut(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _cut_header(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def _grow(directory):
    with (directory / "model.safetensors").open("ab") as file:
        file.write(b"x")


def _garble_header(directory):
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(content))


def _point(name):
    def damage(directory):
        (directory / name).write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", encoding="utf-8"
        )

    return damage


def _pickle(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def _shard_missing(directory):
    (directory / "model.safetensors").unlink()
    content = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")


def _foreign_module(directory):
    content = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
    content[1]["type"] = "custom_pooling.Pooling"
    (directory / "modules.json").write_text(json.dumps(content), encoding="utf-8")


def _module_outside(directory):
    content = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
    content[1]["path"] = "../elsewhere"
    (directory / "modules.json").write_text(json.dumps(content), encoding="utf-8")


def _foreign_activation(directory):
    content = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
    content.insert(2, {"idx": 2, "name": "d", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (directory / "modules.json").write_text(json.dumps(content), encoding="utf-8")
    (directory / "2_Dense").mkdir()
    dense = {"in_features": 32, "out_features": 4, "activation_function": "custom.Activation"}
    (directory / "2_Dense" / "config.json").write_text(json.dumps(dense), encoding="utf-8")
    save_file({"linear.weight": torch.zeros(4, 32)}, directory / "2_Dense" / "model.safetensors")


DAMAGES = [
    ("tokenizer", 72, _remove("tokenizer.json"), r"tokenizer\.json is missing"),
    ("modules.json", 72, _remove("modules.json"), r"modules\.json is missing"),
    ("config.json", 72, _remove("config.json"), r"config\.json is missing"),
    ("pooling", 72, _remove("1_Pooling"), r"1_Pooling.config\.json is missing"),
    ("weights", 71, _remove("model.safetensors"), r"model\.safetensors is missing"),
    ("shard", 71, _shard_missing, r"model-00001-of-00002\.safetensors is missing"),
    (
        "no model at all",
        69,
        _remove("modules.json", "config.json", "1_Pooling", "config_sentence_transformers.json"),
        "no model in",
    ),
    (
        "bare transformer",
        72,
        _remove("modules.json", "1_Pooling", "config_sentence_transformers.json"),
        "bare transformer",
    ),
    (
        "fewer layers said",
        72,
        lambda d: change_json(d / "config.json", num_hidden_layers=1),
        "1 layers, and the weights have 2",
    ),
    (
        "more layers said",
        72,
        lambda d: change_json(d / "config.json", num_hidden_layers=5),
        "5 layers, and the weights have 2",
    ),
    ("cut weights", 71, _cut, "its header describes"),
    ("cut header", 71, _cut_header, "header cannot be read"),
    ("grown weights", 71, _grow, "its header describes"),
    ("garbled header", 72, _garble_header, "header cannot be read"),
    ("weights are a pointer", 71, _point("model.safetensors"), "Git LFS pointer"),
    ("tokenizer is a pointer", 71, _point("tokenizer.json"), "Git LFS pointer"),
    (
        "half JSON",
        72,
        lambda d: (d / "modules.json").write_text('[{"idx": 0', encoding="utf-8"),
        r"modules\.json is damaged",
    ),
    ("no list", 72, lambda d: (d / "modules.json").write_text("{}", encoding="utf-8"), "lists no modules"),
    ("wrong encoding", 72, lambda d: (d / "config.json").write_bytes(b'{"x": "\xff"}'), r"config\.json is damaged"),
    (
        "deep JSON",
        72,
        lambda d: (d / "config.json").write_text("[" * 100_000, encoding="utf-8"),
        r"config\.json is damaged",
    ),
    ("module outside", 72, _module_outside, "is no module"),
    ("pickle", 73, _pickle, "pickle"),
    ("foreign module", 73, _foreign_module, "trust_remote_code is false"),
    ("foreign activation", 73, _foreign_activation, "trust_remote_code is false"),
    ("adapter", 72, lambda d: (d / "adapter_config.json").write_text("{}", encoding="utf-8"), "is an adapter"),
]


@pytest.mark.parametrize(
    ("fault", "damage", "message"), [case[1:] for case in DAMAGES], ids=[case[0] for case in DAMAGES]
)
def test_damaged_directory_is_refused_by_name(make_bert, load, fault, damage, message):
    """The error says what is missing or wrong, where, and how to mend it. Faults 69, 71, 72 and 73."""
    directory = make_bert()
    read(directory)
    damage(directory)
    with pytest.raises(ModelLoadError, match=message) as raised:
        read(directory)
    assert raised.value.hint
    with pytest.raises(ModelLoadError, match=message):
        load(directory)


def test_foreign_code_is_allowed_where_it_is_trusted(make_bert):
    """trust_remote_code lets the same directory through this check. Fault 73."""
    directory = make_bert()
    _foreign_module(directory)
    assert 3 == len(read(directory, trust_remote_code=True).modules)


def test_architecture_that_only_its_own_code_knows_is_refused(make_bert, load):
    """auto_map with a model type unknown to transformers names the option. Fault 73."""
    directory = make_bert()
    change_json(directory / "config.json", model_type="unheard_of", auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(ModelLoadError, match="trust_remote_code is false"):
        load(directory)


def test_code_beside_a_known_architecture_is_not_run(make_bert, load, embed):
    """auto_map of a type that transformers knows is passed over, as gte-Qwen2 needs. Fault 73."""
    directory = make_bert()
    before = embed(load(directory), ["a b"])
    change_json(directory / "config.json", auto_map={"AutoModel": "modeling.Model"})
    change_json(directory / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling.Tokenizer", None]})
    (directory / "modeling.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    assert (before == embed(load(directory), ["a b"])).all()


def test_missing_tensor_is_refused_after_loading(make_bert, load):
    """A tensor that is not in the weights would be filled with random numbers. Fault 72."""
    directory = make_bert()
    path = directory / "model.safetensors"
    tensors = load_file(path)
    removed = "encoder.layer.1.attention.self.query.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != removed}, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=removed):
        load(directory)


def test_missing_pooler_is_no_damage(make_bert, load, embed):
    """Many published models leave out the pooler, which nobody uses."""
    directory = make_bert()
    before = embed(load(directory), ["a b"])
    path = directory / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if "pooler" not in name}
    save_file(tensors, path, metadata={"format": "pt"})
    assert (before == embed(load(directory), ["a b"])).all()


def test_tensor_of_another_shape_is_refused(make_bert, load):
    """Transformers' own error is translated. Fault 72."""
    directory = make_bert()
    change_json(directory / "config.json", intermediate_size=65)
    with pytest.raises(ModelLoadError, match="could not be loaded"):
        load(directory)


def test_vocabulary_larger_than_the_embedding_is_refused(make_bert, make_qwen, load):
    """A tokenizer of another model would fail or mislead only at some text. Fault 72."""
    directory = make_bert()
    content = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"]["extra"] = len(content["model"]["vocab"])
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelLoadError, match="tokenizer"):
        load(directory)
