"""
What a model's vectors are comparable with: its `Space`, from its files alone.

Owns what counts as the same model (weights, tokenizer, pooling, attention, cut-off) and what does not (path, host,
README, line endings). Imports no torch and loads no weights.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import ModelLoadError, SettingError
from embedkit.options import Origin
from embedkit.space import Space
from embedkit_local.model_files import TOKENIZER_FILES, ModelFiles

if TYPE_CHECKING:
    from embedkit.profile import Profile
    from embedkit.protocols import Role
    from embedkit_local.digests import Digests
    from embedkit_local.options import LocalOptions

_SHA256 = re.compile(r"[0-9a-f]{64}")

_DECODERS = {
    "bloom", "cohere", "cohere2", "falcon", "gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "gpt_neo", "gpt_neox",
    "gptj", "granite", "llama", "ministral", "mistral", "mixtral", "nemotron", "olmo", "olmo2", "opt", "phi", "phi3",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
}  # fmt: skip
"""Model types of transformers whose attention is causal unless their configuration says otherwise."""

_NUMERICS = (
    "hidden_act", "hidden_activation", "layer_norm_eps", "norm_eps", "rms_norm_eps", "num_attention_heads", "n_heads",
    "n_head", "num_key_value_heads", "head_dim", "position_embedding_type", "rope_theta", "rope_scaling",
    "rope_parameters", "global_rope_theta", "local_rope_theta", "local_attention", "global_attn_every_n_layers",
    "sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "query_pre_attn_scalar",
    "relative_attention_num_buckets", "classifier_pooling",
)  # fmt: skip
"""Keys of config.json that change vectors though the weights stay the same."""

_TOKENIZER_KEYS = (
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "add_bos_token",
    "add_prefix_space",
    "truncation_side",
)


def build_space(
    files: ModelFiles, profile: Profile, options: LocalOptions, *, digests: Digests, native: int | None = None
) -> Space | None:
    """
    Say what the vectors of a profile are comparable with.

    Args:
        files: The model's checked files.

        profile: Its dimensions, prompts and normalisation.

        options: Its options.

        digests: Computes sha256 of weights, each once.

        native: The model's own dimensions, where it was loaded; None: from its files.

    Returns:
        The space; None when nobody tells the dimensions.

    Raises:
        SettingError: The profile asks for what the model cannot give.
    """
    native = files.find_dimensions() or native
    if native is None:
        return None
    document_prompt = profile.document_prompt
    return Space(
        weights=_digest_model(files, digests),
        dimensions=decide_dimensions(native, files, profile, options),
        normalized=profile.normalize or files.modules[-1].kind == "Normalize",
        pooling="+".join(files.read_pooling()),
        attention=decide_attention(files, profile, options),
        appended_tokens=decide_appended_tokens(files, profile, options),
        document_prompt=read_prompts(files)["document"] if document_prompt is None else document_prompt,
        max_tokens=decide_max_tokens(files, profile, options),
        model=profile.model,
        revision=files.place.revision,
    )


def read_prompts(files: ModelFiles) -> dict[Role, str]:
    """Give the model's own prompts by role; empty where it declares none."""
    return {"query": files.read_prompt("query"), "document": files.read_prompt("document", "passage", "corpus")}


def decide_dimensions(native: int, files: ModelFiles, profile: Profile, options: LocalOptions) -> int:
    """
    Give the length of the vectors after the cut that the profile asks for.

    Raises:
        SettingError: More are asked for than the model has, or fewer of a model that was not trained for a cut.
    """
    own = min(native, files.find_cut() or native)
    wanted = own if profile.dimensions is None else profile.dimensions
    if wanted in {own, native}:
        return wanted
    origin = _show_origin(profile, "dimensions")
    if wanted > native:
        raise SettingError(
            f"dimensions is {wanted}, and the model {profile.model!r} has {native}.",
            origin=origin,
            hint=f"set dimensions = {native}, or leave the key out",
        )
    if not options.matryoshka:
        raise SettingError(
            f"dimensions is {wanted}, and the model {profile.model!r} has {native}; most models cannot be cut.",
            origin=origin,
            hint=f"set dimensions = {native}; or, where the model's card promises Matryoshka vectors, "
            "matryoshka = true in the profile's options",
        )
    return wanted


def decide_max_tokens(files: ModelFiles, profile: Profile, options: LocalOptions) -> int | None:
    """
    Give where a text is cut off, special tokens included; None for no limit.

    Raises:
        SettingError: The option is beyond what the model's positions allow.
    """
    supported, wanted = files.find_supported_tokens(), options.max_tokens
    if wanted is None:
        return files.find_own_tokens()
    if files.first.kind == "StaticEmbedding":
        raise SettingError(
            f"max_tokens is {wanted}, and the model {profile.model!r} reads every text to its end.",
            origin=_show_origin(profile, "max_tokens"),
            hint="leave the option out",
        )
    if supported is not None and wanted > supported:
        raise SettingError(
            f"max_tokens is {wanted}, and the model {profile.model!r} can read {supported} tokens at most.",
            origin=_show_origin(profile, "max_tokens"),
            hint=f"set max_tokens = {supported} or less",
        )
    return wanted


def decide_attention(files: ModelFiles, profile: Profile, options: LocalOptions) -> str:
    """
    Give the direction of attention: "bidirectional", "causal", or empty when the files do not tell.

    Raises:
        SettingError: The option asks for a direction that the model does not have.
    """
    config = files.transformer
    if not config:
        return options.attention or ""
    has_two_ways = is_decoder(files)
    own_code = "auto_map" in config and options.trust_remote_code
    if options.attention is not None:
        if options.attention == "causal" and not has_two_ways and not own_code:
            raise SettingError(
                f"attention is 'causal', and the model {profile.model!r} ({config.get('model_type')}) is an encoder.",
                origin=_show_origin(profile, "attention"),
                hint="leave the option out",
            )
        return options.attention
    if isinstance(config.get("is_causal"), bool):
        return "causal" if config["is_causal"] else "bidirectional"
    if config.get("use_bidirectional_attention") is True:
        return "bidirectional"
    if own_code:
        return ""
    return "causal" if has_two_ways else "bidirectional"


def is_decoder(files: ModelFiles) -> bool:
    """Whether a model's attention can look either way: an encoder's can only be bidirectional."""
    return files.transformer.get("model_type") in _DECODERS or bool(files.transformer.get("is_decoder"))


def decide_appended_tokens(files: ModelFiles, profile: Profile, options: LocalOptions) -> tuple[int, ...]:
    """
    Give the ids of the tokens that are put after each text by us: none where the tokenizer puts them there itself.

    Raises:
        SettingError: The end-of-text token is asked for, and the tokenizer has none.
    """
    declared = options.append_eos
    wanted = bool(files.tokenizer.get("add_eos_token")) if declared is None else declared
    if not wanted:
        return ()
    eos = files.find_eos()
    if eos is None:
        if declared is None:
            return ()
        raise SettingError(
            f"append_eos is true, and the tokenizer of {profile.model!r} names no end-of-text token.",
            origin=_show_origin(profile, "append_eos"),
            hint="leave the option out",
        )
    return () if eos[0] in _find_last_tokens(files.read_tokenizer_file().get("post_processor")) else (eos[0],)


def _find_last_tokens(processor: object) -> set[int]:
    """Give the ids that a tokenizer's own post-processor puts after a text."""
    if not isinstance(processor, Mapping):
        return set()
    kind = processor.get("type")
    if kind == "Sequence":
        return {number for part in processor.get("processors", []) for number in _find_last_tokens(part)}
    if kind in {"RobertaProcessing", "BertProcessing"}:
        return {int(processor["sep"][1])}
    if kind == "TemplateProcessing" and processor.get("single"):
        last = processor["single"][-1].get("SpecialToken")
        return set(processor["special_tokens"][last["id"]]["ids"][-1:]) if last else set()
    return set()


def digest_weights(path: Path, digests: Digests) -> str:
    """Give the sha256 of a weights file: as the hub announced it where it came from there, else computed once."""
    return _find_blob_name(path) or digests.compute(path)


def _find_blob_name(path: Path) -> str | None:
    """Give the sha256 that the hub's cache uses as the name of the file that *path* links to."""
    blob = path.resolve()
    return blob.name if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else None


def check_blobs(files: ModelFiles, digests: Digests) -> None:
    """
    Compare a hub model's weights with the sha256 that the hub gave for them; computed once for each file.

    Raises:
        ModelLoadError: They differ: the file was damaged after its download.
    """
    for path in files.list_weights():
        named = _find_blob_name(path)
        if named is not None and named != digests.compute(path):
            raise ModelLoadError(
                f"{path} is damaged: its content is not what the hub announced (sha256 {named[:12]}…).",
                hint=f"delete {files.place.directory.parent.parent} and fetch the model again: embedkit pull",
            )


def _digest_model(files: ModelFiles, digests: Digests) -> str:
    config = files.transformer
    return _digest(
        {
            "weights": [digest_weights(path, digests) for path in files.list_weights()],
            "tokenizer": _digest_tokenizer(files),
            # A last Normalize is left out: Space.normalized says it.
            "modules": [
                [module.kind, _describe_module(files, index)]
                for index, module in enumerate(files.modules)
                if not (module.kind == "Normalize" and index == len(files.modules) - 1)
            ],
            "numerics": {key: config[key] for key in _NUMERICS if config.get(key) is not None},
        }
    )


def _describe_module(files: ModelFiles, index: int) -> object:
    module = files.modules[index]
    if module.kind == "Transformer":
        return {"do_lower_case": bool(files.sentence.get("do_lower_case"))}
    if module.kind == "Pooling":
        return {"modes": list(files.read_pooling()), "include_prompt": module.config.get("include_prompt", True)}
    return dict(module.config)


def _digest_tokenizer(files: ModelFiles) -> str:
    content = files.read_tokenizer_file()
    if content:
        # Cut-off and padding are set by us, whatever the file says.
        vocabulary: object = {key: value for key, value in content.items() if key not in {"truncation", "padding"}}
    else:
        directory = files.first.directory
        vocabulary = {
            name: hashlib.sha256((directory / name).read_bytes().replace(b"\r\n", b"\n")).hexdigest()
            for name in (*TOKENIZER_FILES, "merges.txt")
            if (directory / name).is_file()
        }
    settings = {key: files.tokenizer[key] for key in _TOKENIZER_KEYS if files.tokenizer.get(key) is not None}
    return _digest([vocabulary, settings])


def _digest(content: Any) -> str:  # noqa: ANN401  # JSON
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _show_origin(profile: Profile, key: str) -> str:
    origin = profile.origins.get(key) or profile.origins.get(f"options.{key}") or profile.origins.get("options")
    return str(origin) if isinstance(origin, Origin) else ""
