"""
Text to token ids: in bulk, cut off where the model stops reading, counted exactly.

Owns the process's own copy of a tokenizer, which nothing changes after it is made: any number of threads may encode
and count at once. Knows nothing of models, packs or prompts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from tokenizers import Tokenizer, normalizers

from embedkit.errors import ModelLoadError
from embedkit_local.chain import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from embedkit_local.model_files import ModelFiles

_WORDPIECE_CLASSES = frozenset({"BertTokenizer", "BertTokenizerFast"})
_WORDPIECE_SPECIALS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


@attrs.frozen(kw_only=True, eq=False)
class Tokenization:
    """
    Give the token ids of some texts.

    Attributes:
        texts: The texts.

        rows: The ids of each text after the cut, special and appended ones included, int64; empty where only the model
            itself can read texts.

        lengths: Shape (n,): tokens that the model reads of each text.

        full_lengths: Shape (n,): tokens of each text if nothing were cut off.

        segments: The segment number of each id, as *rows*; empty where all of them are 0, as nearly everywhere.
    """

    texts: Sequence[str]
    rows: Sequence[NDArray[np.int64]]
    lengths: NDArray[np.int64]
    full_lengths: NDArray[np.int64]
    segments: Sequence[NDArray[np.int64]] = ()


class BulkTokenizer:
    """
    Tokenise many texts at once; safe to share between threads.

    Args:
        tokenizer: What to copy; the caller's own is left alone.

        max_tokens: Where a text is cut off, special and appended tokens included; None: nowhere. What the tokenizer's
            own file says about it is not obeyed: it is often older than the model's directory.

        append: Ids to put after each text where the tokenizer does not (an end-of-text token that last-token pooling
            reads).

        side: Which end of a text is cut off.

    Raises:
        ModelLoadError: The limit leaves no room for a text.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, max_tokens: int | None, append: tuple[int, ...] = (), side: str = "right"
    ) -> None:
        self._tokenizer: Any = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        probe = self._tokenizer.encode("a")
        # A tokenizer that appends by itself must not be helped; one probe tells, for it does so for every text or for
        # none.
        self.appended = () if append and tuple(probe.ids[-len(append) :]) == append else append
        self.has_segments = any(probe.type_ids)
        self.n_known = int(self._tokenizer.get_vocab_size(with_added_tokens=False))
        self._n_special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self.max_tokens = max_tokens
        if max_tokens is not None:
            room = max_tokens - len(self.appended)
            if room <= self._n_special:
                raise ModelLoadError(
                    f"max_tokens is {max_tokens}, and {self._n_special + len(append)} of them are special tokens: "
                    "no room for a text.",
                    hint="raise max_tokens in the profile's options",
                )
            self._tokenizer.enable_truncation(max_length=room, direction=side)

    def tokenize(self, texts: Sequence[str]) -> Tokenization:
        """
        Tokenise texts, each cut off at `max_tokens`.

        Args:
            texts: Any strings, prompts already applied.

        Returns:
            One row for each text, in their order. A row can be empty where the tokenizer adds no special tokens.
        """
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        rows = [np.array([*encoding.ids, *self.appended], dtype=np.int64) for encoding in encodings]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        # What was cut off comes back in pieces, each with special tokens of its own.
        cut = [sum(len(piece.ids) - self._n_special for piece in encoding.overflowing) for encoding in encodings]
        segments = (
            [
                np.array([*encoding.type_ids, *encoding.type_ids[-1:] * len(self.appended)], dtype=np.int64)
                for encoding in encodings
            ]
            if self.has_segments
            else ()
        )
        return Tokenization(
            texts=texts,
            rows=rows,
            lengths=lengths,
            full_lengths=lengths + np.array(cut, dtype=np.int64),
            segments=segments,
        )

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text as if nothing were cut off, special and appended tokens included."""
        return [int(n) for n in self.tokenize(texts).full_lengths]

    def require_rows(self, n_rows: int) -> None:
        """
        Compare the vocabulary with the weights.

        Args:
            n_rows: How many tokens the weights know.

        Raises:
            ModelLoadError: The tokenizer knows more.
        """
        if self.n_known > n_rows:
            raise ModelLoadError(
                f"The tokenizer knows {self.n_known} tokens, and the weights have {n_rows}: it belongs to another "
                "model.",
                hint="fetch the model again: its files do not belong together",
            )


def _is_plain_wordpiece(declared: Mapping[str, Any], config: Mapping[str, Any], more: Mapping[str, Any]) -> bool:
    model = declared.get("model") or {}
    post = declared.get("post_processor") or {}
    shape = (
        model.get("type"),
        model.get("continuing_subword_prefix"),
        model.get("max_input_chars_per_word"),
        (declared.get("normalizer") or {}).get("type"),
        (declared.get("pre_tokenizer") or {}).get("type"),
        post.get("type"),
        [next(iter(part)) for part in post.get("single", [])],
    )
    sequence = ["SpecialToken", "Sequence", "SpecialToken"]
    if shape != ("WordPiece", "##", 100, "BertNormalizer", "BertPreTokenizer", "TemplateProcessing", sequence):
        return False
    added = declared.get("added_tokens", [])
    plain = all(
        token["special"] and not (token["single_word"] or token["lstrip"] or token["rstrip"] or token["normalized"])
        for token in [*added, *config.get("added_tokens_decoder", {}).values()]
    )
    # Whatever any of the three files calls a special token must be among the five that BERT's tokenizer has.
    named = [config.get(key, default) for key, default in _WORDPIECE_SPECIALS.items()]
    named += [token["content"] for token in config.get("added_tokens_decoder", {}).values()]
    named += [token.get("content") if isinstance(token, dict) else token for token in more.values()]
    names = {token["content"] for token in added}
    return (
        plain
        and all(isinstance(name, str) and name in names for name in named)
        and len(names) == len(_WORDPIECE_SPECIALS)
    )


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """
    Load the tokenizer of a model.

    A plain WordPiece tokenizer (as BERT's) is read without importing transformers, which takes longer than all the
    rest of a cold start; every other one is made by transformers, which knows the rules that `tokenizer.json` does
    not tell.

    Returns:
        A tokenizer; its truncation and padding are as found.

    Raises:
        UnsupportedModelError: There is no fast tokenizer.
    """
    config = files.tokenizer
    if (
        config.get("tokenizer_class") in _WORDPIECE_CLASSES
        and not config.get("additional_special_tokens")
        and _is_plain_wordpiece(files.read_tokenizer_file(), config, files.read_special_tokens())
    ):
        tokenizer = Tokenizer.from_file(str(files.first.directory / "tokenizer.json"))
        # transformers 5 obeys tokenizer_config.json here, not tokenizer.json; where the two disagree, so must we.
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=config.get("tokenize_chinese_chars", True),
            strip_accents=config.get("strip_accents"),
            lowercase=config.get("do_lower_case", True),
        )
    else:
        tokenizer = _load_with_transformers(files.first.directory)
    if files.sentence.get("do_lower_case"):
        existing = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *existing])
    return tokenizer


def _load_with_transformers(directory: Path) -> Tokenizer:
    from transformers import AutoTokenizer  # noqa: PLC0415  # a cold start that does not need it is half as long

    found = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    backend = getattr(found, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UnsupportedModelError(f"{type(found).__name__} is not a fast tokenizer")
    return backend
