"""
The way through sentence-transformers, for models that could not be proved to run without padding.

Owns loading through that package and feeding what it loads: token ids made here where its first module takes them,
whole texts where only the module itself can read them. Importing this room imports sentence-transformers.
"""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from embedkit.errors import BackendError, EmbedkitError, ModelLoadError
from embedkit_local.choosing import TORCH_DTYPES
from embedkit_local.engine import PackVectors
from embedkit_local.loading import quiet, set_attention
from embedkit_local.tokenizing import BulkTokenizer, Tokenization

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers.base.modules.transformer import TransformerTask
    from transformers import PreTrainedConfig, PreTrainedModel

    from embedkit.protocols import Role
    from embedkit_local.budget import Budget
    from embedkit_local.choosing import Precision
    from embedkit_local.model_files import ModelFiles

_load_lock = threading.Lock()


class _CheckedTransformer(Transformer):
    """The usual first step, which also keeps what transformers says about weights that were missing."""

    attention = ""
    missing: frozenset[str] = frozenset()

    def _load_model(
        self,
        model_name_or_path: str,
        transformer_task: TransformerTask,
        config: PreTrainedConfig,
        backend: str,
        is_peft_model: bool,  # noqa: FBT001  # as in the parent
        **model_kwargs: Any,  # noqa: ANN401  # as in the parent
    ) -> PreTrainedModel:
        set_attention(config, self.attention)
        # With the report asked for, transformers gives a pair.
        loaded: Any = super()._load_model(
            model_name_or_path,
            transformer_task,
            config,
            backend,
            is_peft_model,
            output_loading_info=True,
            **model_kwargs,
        )
        model: PreTrainedModel
        model, report = loaded
        # sentence-transformers pools tokens itself; a pooler's weights are never used.
        self.missing = frozenset(key for key in report["missing_keys"] if "pooler." not in key)
        return model


def load_sentence_transformer(
    files: ModelFiles, *, dtype: Precision, device: torch.device, attention: str, trust_remote_code: bool
) -> SentenceTransformer:
    """
    Load a model through sentence-transformers, silently, from files alone.

    Args:
        files: Its checked files.

        dtype: The precision of its weights.

        device: Where it computes.

        attention: The direction that a profile states against the model's own configuration; empty: the model's own.

        trust_remote_code: Whether code that it brings may be run.

    Raises:
        ModelLoadError: Its weights are not all there.
    """
    checked = type("_Transformer", (_CheckedTransformer,), {"attention": attention})
    own = {module.class_path: checked for module in files.modules if module.is_own and module.kind == "Transformer"}
    with _load_lock, quiet():
        model = SentenceTransformer._load_with_module_classes(  # noqa: SLF001  # the one door to the loading report
            str(files.place.directory),
            own,
            device=str(device),
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            model_kwargs={"dtype": TORCH_DTYPES[dtype], "use_safetensors": True},
        )
    if missing := getattr(model[0], "missing", ()):
        raise ModelLoadError(
            f"The model {files.place.model!r} is damaged: its weights lack {len(missing)} tensors, "
            f"such as {min(missing)}.",
            hint="fetch the model again, or name a directory whose config.json belongs to its weights",
        )
    # A cut of its own would come before our normalisation, and hide the native dimensions.
    model.truncate_dim = None
    model.eval()
    return model


class _PaddedEngine(ABC):
    """
    Run packs of about equal lengths, padded to the longest.

    Args:
        model: The loaded model, used by nobody else from now on.

        budget: The most tokens of a pack, padding included.

        max_pack_texts: The most texts of a pack.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, model: SentenceTransformer, *, budget: Budget, max_pack_texts: int) -> None:
        self._model = model
        self._budget = budget
        self._max_pack_texts = max_pack_texts
        self.dimensions = model.get_embedding_dimension()
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.way = f"padded, through sentence-transformers, {self.dtype}"

    def run(self, tokens: Tokenization, positions: Sequence[int], *, role: Role) -> Iterator[PackVectors]:
        """Embed texts that were read, the longest first; see `Engine.run`."""
        order = sorted(positions, key=lambda position: -tokens.lengths[position])

        def compute(part: list[int]) -> NDArray[np.float32]:
            return self._compute(tokens, part, role)

        def measure(part: Sequence[int]) -> int:
            return len(part) * int(tokens.lengths[list(part)].max())

        while order:
            room = max(1, self._budget.max_tokens // max(1, int(tokens.lengths[order[0]])))
            pack = order[: min(self._max_pack_texts, room)]
            order = order[len(pack) :]
            for part, result in self._budget.compute(pack, compute, measure=measure):
                if isinstance(result, EmbedkitError):
                    nothing = np.empty((0, self.dimensions or 0), dtype=np.float32)
                    yield PackVectors(positions=(), vectors=nothing, failures=dict.fromkeys(part, result))
                else:
                    yield _part_from_broken(tokens, part, result)

    def close(self) -> None:  # noqa: B027  # the same for both kinds
        """Nothing to end: this way has no threads."""

    @abstractmethod
    def _compute(self, tokens: Tokenization, part: Sequence[int], role: Role) -> NDArray[np.float32]:
        """Run the model on some of the texts; shape (n, d), float32."""

    @torch.inference_mode()
    def _run(self, features: dict[str, Any], **arguments: Any) -> NDArray[np.float32]:  # noqa: ANN401  # as they are
        found: torch.Tensor = self._model(features, **arguments)["sentence_embedding"]
        vectors: NDArray[np.float32] = found.to(torch.float32).cpu().numpy()
        return vectors


def _part_from_broken(tokens: Tokenization, positions: list[int], vectors: NDArray[np.float32]) -> PackVectors:
    """Take rows that are not finite out of a pack, each with an error."""
    is_whole = np.array([bool(np.isfinite(row).all()) for row in vectors], dtype=np.bool_)
    failures: dict[int, EmbedkitError] = {
        position: BackendError(
            f"The vector of the text {tokens.texts[position][:40]!r} is not finite.",
            hint='set dtype = "float32" in the profile\'s options, or leave the text out',
        )
        for position, whole in zip(positions, is_whole, strict=True)
        if not whole
    }
    kept = [position for position in positions if position not in failures]
    return PackVectors(positions=kept, vectors=vectors[is_whole], failures=failures)


class TokenEngine(_PaddedEngine):
    """
    Run a model on token ids that are made here.

    Args:
        model: The loaded model, used by nobody else from now on.

        tokenizer: Makes the ids.

        prompts: What stands before texts, by role: pooling may leave it out.

        budget: The most tokens of a pack, padding included.

        max_pack_texts: The most texts of a pack.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        tokenizer: BulkTokenizer,
        *,
        prompts: Mapping[Role, str],
        budget: Budget,
        max_pack_texts: int,
    ) -> None:
        super().__init__(model, budget=budget, max_pack_texts=max_pack_texts)
        self.tokenizer = tokenizer
        owner: Any = model.tokenizer
        first: Any = model[0]
        tokenizer.require_rows(first.auto_model.get_input_embeddings().weight.shape[0])
        self._pad_id = owner.pad_token_id or 0
        self._uses_type_ids = "token_type_ids" in owner.model_input_names
        special = set(owner.all_special_ids)
        self._n_prompt = {role: self._measure_prompt(prompt, special) for role, prompt in prompts.items() if prompt}

    def read(self, texts: Sequence[str]) -> Tokenization:
        """Turn texts, prompts already applied, into token ids."""
        return self.tokenizer.tokenize(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text as if nothing were cut off."""
        return self.tokenizer.count(texts)

    def build_transformer(self) -> Any:  # noqa: ANN401  # a model of transformers
        """Give the transformer, for proofs."""
        first: Any = self._model[0]
        return first.auto_model

    def _measure_prompt(self, prompt: str, special: set[int]) -> int:
        ids = self.tokenizer.tokenize([prompt]).rows[0].tolist()
        ids = ids[: len(ids) - len(self.tokenizer.appended)]
        return len(ids) - (ids[-1] in special)

    def _compute(self, tokens: Tokenization, part: Sequence[int], role: Role) -> NDArray[np.float32]:
        rows = [torch.from_numpy(tokens.rows[position]) for position in part]
        masks = [torch.ones_like(row) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(rows, batch_first=True, padding_value=self._pad_id)
        features: dict[str, Any] = {
            "input_ids": ids.to(self._model.device),
            "attention_mask": pad(masks, batch_first=True).to(self._model.device),
            "modality": "text",
        }
        if self._uses_type_ids:
            segments = [torch.from_numpy(tokens.segments[position]) for position in part if tokens.segments]
            features["token_type_ids"] = (
                pad(segments, batch_first=True).to(self._model.device)
                if segments
                else torch.zeros_like(features["input_ids"])
            )
        if n_prompt := self._n_prompt.get(role):
            features["prompt_length"] = n_prompt
        return self._run(features)


class TextEngine(_PaddedEngine):
    """Run a model that only sentence-transformers knows how to feed, such as static embeddings or a router."""

    def __init__(self, model: SentenceTransformer, *, budget: Budget, max_pack_texts: int) -> None:
        super().__init__(model, budget=budget, max_pack_texts=max_pack_texts)
        self._lock = threading.Lock()
        _TEXT_ENGINES.add(self)

    def reset_after_fork(self) -> None:
        """Forget a lock that a thread of the parent may have held; for the child of a fork."""
        self._lock = threading.Lock()

    def read(self, texts: Sequence[str]) -> Tokenization:
        """Count the tokens of texts where that is possible; the model reads the texts themselves."""
        full = np.array(self.count_tokens(texts), dtype=np.int64)
        limit = self._model.max_seq_length
        read = full if limit is None else np.minimum(full, int(min(limit, np.iinfo(np.int64).max)))
        return Tokenization(texts=texts, rows=(), lengths=read, full_lengths=full)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text as if nothing were cut off."""
        tokenizer: Any = self._model.tokenizer
        with self._lock:
            if hasattr(tokenizer, "encode_batch"):
                tokenizer.no_truncation()
                return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
            return [len(ids) for ids in tokenizer(list(texts), truncation=False, padding=False)["input_ids"]]

    def _compute(self, tokens: Tokenization, part: Sequence[int], role: Role) -> NDArray[np.float32]:
        with self._lock:
            features = self._model.preprocess([tokens.texts[position] for position in part], task=role)
        device = self._model.device
        moved = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in features.items()
        }
        return self._run(moved, task=role)


_TEXT_ENGINES: weakref.WeakSet[TextEngine] = weakref.WeakSet()


def _reset_after_fork() -> None:
    global _load_lock  # noqa: PLW0603  # a thread of the parent may hold it for ever
    _load_lock = threading.Lock()
    for engine in list(_TEXT_ENGINES):
        engine.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def build_engine(
    model: SentenceTransformer,
    *,
    max_tokens: int | None,
    append: tuple[int, ...],
    prompts: Mapping[Role, str],
    budget: Budget,
    max_pack_texts: int,
) -> TokenEngine | TextEngine:
    """
    Choose how a loaded model is fed.

    Args:
        model: The loaded model, used by nobody else from now on.

        max_tokens: Where texts are cut off; None: nowhere.

        append: Ids that are put after each text.

        prompts: What stands before texts, by role.

        budget: The most tokens of a pack, padding included.

        max_pack_texts: The most texts of a pack.

    Raises:
        ModelLoadError: The model does not let us put tokens after a text.
    """
    first = model[0]
    owner: Any = model.tokenizer
    if (
        isinstance(first, Transformer)
        and first.modality_config.keys() == {"text"}
        and getattr(owner, "is_fast", False)
        and first.query_expansion is None
    ):
        side = getattr(owner, "truncation_side", "right")
        tokenizer = BulkTokenizer(owner.backend_tokenizer, max_tokens=max_tokens, append=append, side=side)
        return TokenEngine(model, tokenizer, prompts=prompts, budget=budget, max_pack_texts=max_pack_texts)
    if append:
        raise ModelLoadError(
            "append_eos is asked for, and this model makes its tokens in a way of its own.",
            hint="leave append_eos out of the options",
        )
    if max_tokens is not None:
        model.max_seq_length = max_tokens
    return TextEngine(model, budget=budget, max_pack_texts=max_pack_texts)
