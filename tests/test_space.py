"""The identity of a vector space: what is part of it, what is not, and the texts that measure it."""

from __future__ import annotations

import hashlib
import json
import pickle

import attrs
import pytest

from embedkit.errors import ContractError, SpaceMismatchError
from embedkit.space import CANARIES, CANARIES_VERSION, Space, require_same_space

SPACE = Space(
    weights="f00d",
    dimensions=384,
    normalized=True,
    pooling="mean",
    attention="bidirectional",
    appended_tokens=(2, 151643),
    document_prompt="passage: ",
    max_tokens=512,
    model="some/model",
    revision="abc123",
)


def test_fingerprint_of_a_fixed_space_never_changes():
    """Stored collections are found by it: who changes the canonical form on purpose migrates what is stored."""
    assert "6c0cb0243cf3dcb6" == SPACE.fingerprint
    assert "67cbb5580b4fcb52" == Space(weights="é", dimensions=1, normalized=False).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "beef"},
        {"dimensions": 256},
        {"normalized": False},
        {"pooling": "cls"},
        {"attention": "causal"},
        {"appended_tokens": (2,)},
        {"document_prompt": ""},
        {"max_tokens": 256},
        {"max_tokens": None},
    ],
    ids=repr,
)
def test_whatever_makes_vectors_incomparable_changes_the_fingerprint(change):
    """Each identity field counts."""
    changed = attrs.evolve(SPACE, **change)
    assert changed.fingerprint != SPACE.fingerprint
    assert changed != SPACE
    assert 2 == len({changed, SPACE})


@pytest.mark.parametrize(
    "change", [{"model": "a/folder"}, {"revision": ""}, {"appended_tokens": [2, 151643]}], ids=repr
)
def test_provenance_does_not_change_the_fingerprint(change):
    """The same weights under another name are the same space, and so is a list for a tuple."""
    changed = attrs.evolve(SPACE, **change)
    assert SPACE == changed
    assert SPACE.fingerprint == changed.fingerprint
    assert 1 == len({changed, SPACE})


def test_every_field_is_either_identity_or_provenance():
    """Who adds a field decides whether it changes the fingerprint, and adds it to the tests above."""
    fields = [field.name for field in attrs.fields(Space)]
    assert [
        "weights",
        "dimensions",
        "normalized",
        "pooling",
        "attention",
        "appended_tokens",
        "document_prompt",
        "max_tokens",
        "model",
        "revision",
        "fingerprint",
    ] == fields


def test_space_survives_a_dict_and_a_pickle():
    """What is stored beside vectors gives the space back, provenance included."""
    for copy in (Space.from_dict(SPACE.to_dict()), pickle.loads(pickle.dumps(SPACE))):  # noqa: S301  # made here
        assert SPACE == copy
        assert ("some/model", "abc123", (2, 151643)) == (copy.model, copy.revision, copy.appended_tokens)
    assert "fingerprint" not in SPACE.to_dict()
    assert SPACE.to_dict() == json.loads(json.dumps(SPACE.to_dict()))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dimensions": "384"}, "dimensions"),
        ({"dimensions": True}, "dimensions"),
        ({"normalized": 1}, "normalized"),
        ({"appended_tokens": None}, "appended_tokens"),
        ({"max_tokens": 1.5, "weights": 3}, "max_tokens, weights"),
        ({"fingerprint": "f00d"}, "fingerprint"),
    ],
)
def test_description_with_wrong_fields_is_refused_by_name(change, named):
    """Types are strict, and every wrong field is named at once."""
    with pytest.raises(ContractError, match=f"no vector space: {named} missing, unknown or of the wrong type"):
        Space.from_dict({**SPACE.to_dict(), **change})


def test_description_without_a_field_is_refused_by_name():
    """Nothing is filled in: a default could name another space."""
    fields = SPACE.to_dict()
    del fields["pooling"]
    with pytest.raises(ContractError, match="pooling missing"):
        Space.from_dict(fields)


def test_require_same_space_names_both():
    """Who compares vectors of two spaces is told which two."""
    other = attrs.evolve(SPACE, weights="beef", model="")
    require_same_space(SPACE, attrs.evolve(SPACE, model="the same elsewhere"))
    with pytest.raises(SpaceMismatchError) as caught:
        require_same_space(SPACE, other, origin="notes.npz")
    error = caught.value
    assert (SPACE, other, "notes.npz") == (error.expected, error.found, error.origin)
    assert f"{SPACE.fingerprint[:8]} (some/model, 384 dimensions)" in str(error)
    assert f"{other.fingerprint[:8]} (beef, 384 dimensions)" in str(error)


def test_canaries_are_sixteen_fixed_texts():
    """Stored vectors are compared with those of these very texts: a change of one letter is a new version."""
    assert (1, 16, 16) == (CANARIES_VERSION, len(CANARIES), len(set(CANARIES)))
    assert (
        "23431769372efbbca96819fb37a7e9fc720829f547d812cc33c3a8eeb22e04c4"
        == hashlib.sha256("\0".join(CANARIES).encode()).hexdigest()
    )


def test_canaries_show_what_a_space_must_show():
    """One is longer than 512 tokens by any count, one is not English, one is code."""
    assert 512 < max(len(text.split()) for text in CANARIES)
    assert any(not text.isascii() for text in CANARIES)
    assert any(text.startswith("def ") for text in CANARIES)
