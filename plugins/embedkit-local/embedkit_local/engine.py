"""
Turn texts into token ids, and token ids into vectors.

Owns the arithmetic of a loaded model: tokenizing with exact counts, padding, the forward pass. Knows no profile, no
prompts but their length, and no order of texts. What makes it faster replaces this module and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch
from sentence_transformers.base.modules import Transformer

from embedkit.errors import ModelLoadError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from embedkit.protocols import Role


@attrs.frozen
class Reading:
    """
    Hold one text as the model reads it.

    Attributes:
        text: The text.

        ids: Its tokens after the cut, special and appended ones included; empty where only the model itself can read
            texts.

        type_ids: Their segment numbers.

        n_tokens: How many tokens the model reads.

        n_full: How many there were before the cut.
    """

    text: str
    ids: Sequence[int]
    type_ids: Sequence[int]
    n_tokens: int
    n_full: int


class TokenEngine:
    """
    Run a transformer on token ids that are made here.

    The tokenizer's settings are fixed once and never changed again, so that any number of threads can use it without a
    lock.

    Args:
        model: The loaded model, used by nobody else.

        max_tokens: Where texts are cut off, special and appended tokens included; None: nowhere.

        appended: Ids that are put after each text.
    """

    def __init__(self, model: SentenceTransformer, *, max_tokens: int | None, appended: tuple[int, ...]) -> None:
        self._model = model
        tokenizer: Any = model.tokenizer
        self._tokenizer: Any = tokenizer.backend_tokenizer
        n_known = self._tokenizer.get_vocab_size(with_added_tokens=False)
        transformer: Any = model[0]
        n_rows = transformer.auto_model.get_input_embeddings().weight.shape[0]
        if n_known > n_rows:
            raise ModelLoadError(
                f"The tokenizer knows {n_known} tokens, and the weights have {n_rows}: it belongs to another model.",
                hint="fetch the model again: its files do not belong together",
            )
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # Counted on a text: what a chain of post-processors declares is not always what it adds.
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        self._n_special = len(self._tokenizer.encode("a").ids) - len(bare)
        # What transformers' own tokenizer class puts at the end already is not put there twice.
        self._appended = () if self._tokenizer.encode("a").ids[-len(appended) :] == list(appended) else appended
        if max_tokens is not None:
            room = max_tokens - len(self._appended)
            if room <= self._n_special:
                raise ModelLoadError(
                    f"max_tokens is {max_tokens}, and {self._n_special + len(appended)} of them are special tokens: "
                    "no room for a text.",
                    hint="raise max_tokens in the profile's options",
                )
            self._tokenizer.enable_truncation(room, direction=getattr(tokenizer, "truncation_side", "right"))
        self._pad_id = tokenizer.pad_token_id or 0
        self._special_ids = set(tokenizer.all_special_ids)
        self._uses_type_ids = "token_type_ids" in tokenizer.model_input_names

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """Turn texts into token ids, cut off where the model stops reading."""
        readings = []
        for text, encoding in zip(texts, self._tokenizer.encode_batch(list(texts)), strict=True):
            ids, type_ids = encoding.ids, encoding.type_ids
            # Each overflowing part carries special tokens of its own.
            n_cut = sum(len(part) - self._n_special for part in encoding.overflowing)
            ids += self._appended
            type_ids += type_ids[-1:] * len(self._appended)
            readings.append(Reading(text, ids, type_ids, len(ids), len(ids) + n_cut))
        return readings

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of whole texts."""
        return [reading.n_full for reading in self.read(texts)]

    def measure_prompt(self, prompt: str) -> int:
        """Count the tokens that a prompt takes at the start of a text: for pooling that leaves them out."""
        ids = self._tokenizer.encode(prompt).ids
        return len(ids) - (ids[-1] in self._special_ids)

    def compute(self, readings: Sequence[Reading], *, role: Role, n_prompt: int = 0) -> NDArray[np.float32]:  # noqa: ARG002
        """
        Run the model.

        Args:
            readings: n texts; the memory needed grows with n times the longest.

            role: Not used: the prompt stands in the text already.

            n_prompt: Tokens of the prompt, for pooling that leaves them out.

        Returns:
            Shape (n, d), float32, as the model gives it.
        """
        longest = max(len(reading.ids) for reading in readings)
        ids = np.full((len(readings), longest), self._pad_id, np.int64)
        mask = np.zeros_like(ids)
        type_ids = np.zeros_like(ids)
        for row, reading in enumerate(readings):
            n = len(reading.ids)
            ids[row, :n], mask[row, :n], type_ids[row, :n] = reading.ids, 1, reading.type_ids
        arrays = {"input_ids": ids, "attention_mask": mask} | (
            {"token_type_ids": type_ids} if self._uses_type_ids else {}
        )
        features: dict[str, Any] = {
            name: torch.from_numpy(array).to(self._model.device) for name, array in arrays.items()
        }
        features["modality"] = "text"
        if n_prompt:
            features["prompt_length"] = n_prompt
        return _run(self._model, features)


class TextEngine:
    """
    Run a model that only sentence-transformers knows how to feed, such as static embeddings or a router.

    Args:
        model: The loaded model, used by nobody else.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model
        self._lock = threading.Lock()

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """Count the tokens of texts where that is possible; the model reads the texts themselves."""
        counts = self.count(texts)
        limit = self._model.max_seq_length
        cut = [n if limit is None else int(min(n, limit)) for n in counts]
        return [Reading(text, (), (), read, full) for text, read, full in zip(texts, cut, counts, strict=True)]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of whole texts."""
        tokenizer: Any = self._model.tokenizer
        with self._lock:
            if hasattr(tokenizer, "encode_batch"):
                tokenizer.no_truncation()
                return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
            return [len(ids) for ids in tokenizer(list(texts), truncation=False, padding=False)["input_ids"]]

    def measure_prompt(self, prompt: str) -> int:  # noqa: ARG002
        """Give 0: what a prompt takes is unknown here."""
        return 0

    def compute(self, readings: Sequence[Reading], *, role: Role, n_prompt: int = 0) -> NDArray[np.float32]:  # noqa: ARG002
        """Run the model on n texts; shape (n, d), float32, as the model gives it."""
        texts = [reading.text for reading in readings]
        with self._lock:
            features = self._model.preprocess(texts, task=role)
        device = self._model.device
        moved = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in features.items()
        }
        return _run(self._model, moved, task=role)


Engine = TokenEngine | TextEngine


def build_engine(model: SentenceTransformer, *, max_tokens: int | None, appended: tuple[int, ...]) -> Engine:
    """
    Choose how a loaded model is fed.

    Args:
        model: The loaded model, used by nobody else from now on.

        max_tokens: Where texts are cut off; None: nowhere.

        appended: Ids that are put after each text.

    Raises:
        ModelLoadError: The model does not let us put tokens after a text.
    """
    first = model[0]
    feeds_tokens = (
        isinstance(first, Transformer)
        and first.modality_config.keys() == {"text"}
        and getattr(model.tokenizer, "is_fast", False)
        and first.query_expansion is None
    )
    if feeds_tokens:
        return TokenEngine(model, max_tokens=max_tokens, appended=appended)
    if appended:
        raise ModelLoadError(
            "append_eos is asked for, and this model makes its tokens in a way of its own.",
            hint="leave append_eos out of the options",
        )
    if max_tokens is not None:
        model.max_seq_length = max_tokens
    return TextEngine(model)


@torch.inference_mode()
def _run(model: SentenceTransformer, features: dict[str, Any], **arguments: Any) -> NDArray[np.float32]:  # noqa: ANN401
    vectors: NDArray[np.float32] = model(features, **arguments)["sentence_embedding"].to(torch.float32).cpu().numpy()
    return vectors
