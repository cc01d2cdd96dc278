"""
The identity of a vector space: what must be equal for two vectors to be comparable.

Owns `Space`, its fingerprint and the canary texts that measure whether two spaces are one. Does no arithmetic.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Self

import attrs

from embedkit.errors import ContractError, SpaceMismatchError

_PROVENANCE = ("model", "revision")


def _to_tuple(tokens: Iterable[int]) -> tuple[int, ...]:
    return tuple(tokens)


@attrs.frozen(kw_only=True)
class Space:
    """
    Name what must be equal for two vectors to be comparable.

    Equality and hash are those of the fingerprint: provider, host, name and path of the weights, device, batch size,
    precision and the query prompt are left out on purpose, for none of them makes a stored vector incomparable.

    Attributes:
        weights: sha256 of the weights and of the tokenizer and pooling configuration where they can be read, else the
            model's name as its server knows it.

        dimensions: Length of each vector.

        normalized: Whether each vector has unit length.

        pooling: How tokens become one vector; empty when a server will not tell.

        attention: "bidirectional", "causal" or empty.

        appended_tokens: Ids of tokens that are put after each text by us.

        document_prompt: What is put before each document.

        max_tokens: Where a text is cut off; None when unknown.

        model: What was asked for. Provenance, outside the fingerprint.

        revision: The commit of the weights, where known. Provenance, outside the fingerprint.
    """

    weights: str = attrs.field(eq=False)
    dimensions: int = attrs.field(eq=False)
    normalized: bool = attrs.field(eq=False)
    pooling: str = attrs.field(default="", eq=False)
    attention: str = attrs.field(default="", eq=False)
    appended_tokens: tuple[int, ...] = attrs.field(default=(), converter=_to_tuple, eq=False)
    document_prompt: str = attrs.field(default="", eq=False)
    max_tokens: int | None = attrs.field(default=None, eq=False)
    model: str = attrs.field(default="", eq=False)
    revision: str = attrs.field(default="", eq=False)
    fingerprint: str = attrs.field(init=False, repr=False)

    @fingerprint.default
    def _compute_fingerprint(self) -> str:
        identity = {
            field.name: getattr(self, field.name)
            for field in attrs.fields(type(self))
            if field.init and field.name not in _PROVENANCE
        }
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.fingerprint[:8]} ({self.model or self.weights}, {self.dimensions} dimensions)"

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain values, fit for JSON, without the fingerprint, which follows from them."""
        return {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in attrs.fields(type(self))
            if field.init
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """
        Make the space that `to_dict` described.

        Raises:
            ContractError: A field is missing, unknown or of the wrong type.
        """
        wrong = _FIELD_TYPES.keys() ^ fields.keys()
        wrong |= {name for name, types in _FIELD_TYPES.items() if name in fields and type(fields[name]) not in types}
        if wrong:
            names = ", ".join(sorted(wrong))
            raise ContractError(f"This describes no vector space: {names} missing, unknown or of the wrong type.")
        return cls(**fields)


_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "weights": (str,),
    "dimensions": (int,),
    "normalized": (bool,),
    "pooling": (str,),
    "attention": (str,),
    "appended_tokens": (list, tuple),
    "document_prompt": (str,),
    "max_tokens": (int, type(None)),
    "model": (str,),
    "revision": (str,),
}


def require_same_space(expected: Space, found: Space, *, origin: str = "") -> None:
    """
    Let two spaces through only when they are one.

    Raises:
        SpaceMismatchError: Their fingerprints differ.
    """
    if expected != found:
        raise SpaceMismatchError(expected, found, origin=origin)


CANARIES_VERSION = 1
"""Stored beside canary vectors: texts of two versions are never compared."""

CANARIES: tuple[str, ...] = (
    "hello world",
    "What is Deep Learning?",
    "The quick brown fox jumps over the lazy dog.",
    "A",
    "how do I change the embedding model without a database migration",
    "In 1969, two people walked on the Moon for 2 hours and 31 minutes; 650 million watched.",
    "Die Umstellung auf ein neues Modell darf keine Ausfallzeit verursachen.",
    "検索は意味によって行われ、単語の一致だけに頼らない。",
    "def cosine(a, b):\n    return (a @ b) / (norm(a) * norm(b))  # both of shape (d,)\n",
    "SELECT id, body FROM chunks WHERE channel = 'keynote' ORDER BY embedding <=> $1 LIMIT 10;",
    "  leading and trailing white space, kept as it was given  ",
    "No. Not at all. Never.",
    "Yes. Of course. Always.",
    "So, um, as I was saying, the, the next slide shows, you know, where the latency went. [applause] Thank you.",
    "Photosynthesis converts light energy into chemical energy that is stored in glucose.",
    # Over 512 tokens for every usual tokenizer: shows where a model cuts off.
    " ".join(
        f"Chapter {number} says that station {number * 7} lies {number * 3} kilometres past the river."
        for number in range(1, 61)
    ),
)
"""Sixteen fixed texts whose vectors measure whether two spaces are one. Never edited: a change is a new version."""
