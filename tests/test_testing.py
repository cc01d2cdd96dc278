"""The kit for plugin authors: the toy provider passes every check, and each check finds its own kind of fault."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import attrs
import numpy as np
import pytest

from embedkit.errors import BackendError, SettingError
from embedkit.options import Secret, option
from embedkit.profile import Profile
from embedkit.testing import PROVIDER_CHECKS, ProviderCase, ToyOptions, toy_provider


def build_case(provider=None, **changes):
    """Make a case of a toy provider, or of a broken one."""
    provider = provider or toy_provider(prompts={"query": "query: "})
    return ProviderCase(provider=provider, profile=Profile(**{"provider": "toy", "model": "toy-1", **changes}))


class Altered:
    """A toy backend of which a test replaces single members."""

    def __init__(self, inner, **replaced):
        self._inner = inner
        vars(self).update(replaced)

    def __getattr__(self, name):
        return getattr(self._inner, name)


def alter(make_replacements, **recipe):
    """Make a toy provider whose backends have the members that *make_replacements* gives for a healthy backend."""
    toy = toy_provider()

    def load(profile, options):
        inner = toy.load(profile, options)
        return Altered(inner, **make_replacements(inner))

    return attrs.evolve(toy, load=load, **recipe)


def change_batches(change):
    """Make a toy provider whose batches go through *change*."""

    def replace(inner):
        def encode(texts, *, role):
            for batch in inner.encode(texts, role=role):
                yield change(batch, texts)

        return {"encode": encode}

    return alter(replace)


def swap_rows(batch, texts):
    """Give the rows of a batch in reverse."""
    return attrs.evolve(batch, vectors=batch.vectors[::-1].copy())


def load_with_space_known_late(profile, options):
    """Load a backend that learns its dimensions with its first call."""
    inner = toy_provider().load(profile, options)

    def encode(texts, *, role):
        altered.space = inner.space
        yield from inner.encode(texts, role=role)

    altered = Altered(inner, space=attrs.evolve(inner.space, dimensions=1), encode=encode)
    return altered


def depend_on_batch(batch, texts):
    """Centre the rows of a batch, as a layer that normalises over the batch would."""
    vectors = batch.vectors + np.float32(0.01) * batch.vectors.mean(axis=0)
    return attrs.evolve(batch, vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def put_own_query_prompt(inner):
    """Put a prompt before queries that the profile does not know of."""

    def encode(texts, *, role):
        yield from inner.encode([f"search: {text}" for text in texts] if role == "query" else texts, role=role)

    return {"encode": encode}


def load_space_with_batch_size(profile, options):
    """Load a backend that counts the batch size as part of its identity."""
    inner = toy_provider().load(profile, options)
    return Altered(inner, space=attrs.evolve(inner.space, pooling=f"in batches of {profile.batch_size}"))


@attrs.frozen(kw_only=True)
class UndeclaredOptions:
    """Fields of which embedkit cannot know the rules."""

    max_tokens: int = 512


def share_one_buffer(inner):
    """Keep the texts of a call where the next call overwrites them."""
    shared = {}

    def encode(texts, *, role):
        shared.update(enumerate(texts))
        time.sleep(0.01)
        yield from inner.encode([shared[i] for i in range(len(texts))], role=role)

    return {"encode": encode}


def scale_rows(batch, texts):
    """Return vectors longer than they claim to be."""
    return attrs.evolve(batch, vectors=batch.vectors * np.float32(1.1))


def drop_punctuation(batch, texts):
    """Take texts of punctuation for blank, and leave them out."""
    kept = [row for row, i in enumerate(batch.positions) if any(character.isalnum() for character in texts[i])]
    return attrs.evolve(batch, positions=[batch.positions[row] for row in kept], vectors=batch.vectors[kept])


def choke_on_nul(inner):
    """Refuse texts that hold NUL."""

    def encode(texts, *, role):
        if any("\0" in text for text in texts):
            raise BackendError("The tokenizer reads texts that end at NUL.")
        yield from inner.encode(texts, role=role)

    return {"encode": encode}


def hide_truncation(batch, texts):
    """Truncate and say nothing."""
    return attrs.evolve(batch, truncated=())


def drift(inner):
    """Give the same text another vector in each call."""
    calls = []

    def encode(texts, *, role):
        calls.append(texts)
        for batch in inner.encode(texts, role=role):
            yield attrs.evolve(batch, vectors=np.roll(batch.vectors, len(calls), axis=1))

    return {"encode": encode}


def count_padding(inner):
    """Count what was padded to the longest text of the call."""
    return {"count_tokens": lambda texts: [max(map(len, texts))] * len(texts)}


def share_one_backend():
    """Load one backend for everybody, so that one close closes all."""
    backends = []

    def load(profile, options):
        backends.append(backends[0] if backends else toy_provider().load(profile, options))
        return backends[0]

    return load


def keep_a_lock_in_errors(batch, texts):
    """Hang something on the errors that no other process can receive."""
    for error in batch.failures.values():
        error.response = threading.Lock()
    return batch


# For each check a provider with that one fault, and what the check says about it.
BROKEN = {
    "check_row_order": (change_batches(swap_rows), "A text embedded alone must have the vector"),
    "check_empty_list": (
        attrs.evolve(toy_provider(), load=load_with_space_known_late),
        "returned vectors of shape (1, 64) for 1 texts of 1 dimensions",
    ),
    "check_batch_size": (change_batches(depend_on_batch), "batch_size=1 must give"),
    "check_roles": (alter(put_own_query_prompt), "one vector as query and as document"),
    "check_space": (
        attrs.evolve(toy_provider(), load=load_space_with_batch_size, identify=lambda profile, options: None),
        "Another load {'batch_size': 257} must give the same space",
    ),
    "check_unknown_option": (
        alter(lambda inner: {}, options=UndeclaredOptions),
        "must be declared with embedkit.options.option(): max_tokens",
    ),
    "check_threads": (alter(share_one_buffer), "must not disturb one another"),
    "check_dimensions": (change_batches(scale_rows), "claims unit length and returned a vector of length 1.1"),
    "check_bad_input": (change_batches(drop_punctuation), "returned no vector for 3 of 6 texts"),
    "check_unusual_texts": (alter(choke_on_nul), "texts that end at NUL"),
    "check_long_texts": (change_batches(hide_truncation), "must be reported as truncated, not ()"),
    "check_duplicates": (alter(drift), "must have the same vector every time"),
    "check_count_tokens": (alter(count_padding), "Counts must not depend on the other texts"),
    "check_close": (attrs.evolve(toy_provider(), load=share_one_backend()), "This toy backend was closed"),
    "check_errors_pickle": (change_batches(keep_a_lock_in_errors), "InputError must pickle, and does not"),
}


@pytest.mark.parametrize("check", PROVIDER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 2},
        {"normalize": False, "dimensions": 8},
        {"options": {"max_tokens": 40}, "too_long": "error"},
    ],
    ids=lambda changes: "+".join(changes) or "defaults",
)
def test_toy_provider_passes_every_check(check, changes):
    """The toy keeps the contract under every kind of profile, so that tests which use it show faults of others."""
    check(build_case(**changes))


@pytest.mark.parametrize("check", PROVIDER_CHECKS, ids=lambda check: check.__name__)
def test_check_fails_on_a_provider_broken_in_its_way(check):
    """A check that cannot fail proves nothing: each says in a sentence what is wrong with its broken provider."""
    provider, sentence = BROKEN[check.__name__]
    with pytest.raises(AssertionError) as caught:
        check(build_case(provider))
    assert sentence in str(caught.value)


def test_every_check_has_its_broken_provider():
    """The table of broken providers and the list of checks name the same checks, each once."""
    assert sorted(BROKEN) == sorted(check.__name__ for check in PROVIDER_CHECKS)


def test_no_check_needs_what_a_provider_may_leave_out():
    """A server that tells no limit, counts no tokens and has no options passes where there is nothing to check."""

    @attrs.frozen(kw_only=True)
    class NoOptions:
        pass

    def load(profile, options):
        inner = toy_provider().load(profile, ToyOptions())
        space = attrs.evolve(inner.space, max_tokens=None)
        return Altered(inner, space=space, count_tokens=lambda texts: None)

    provider = attrs.evolve(toy_provider(), options=NoOptions, load=load, identify=lambda profile, options: None)
    for check in PROVIDER_CHECKS:
        check(build_case(provider, device="cpu"))


def test_toy_tells_texts_apart_and_puts_shared_words_near():
    """A constant vector cannot show swapped rows; a search among toy vectors finds the text with the query's words."""
    documents = ["the ferry leaves at noon", "noon at leaves ferry the", "a heat pump warms the house", "Ferry."]
    with build_case().build_embedder() as embedder:
        found = embedder.embed_documents(documents)
        nearest = found.find_nearest(embedder.embed_query("when does the heat pump warm my house"), k=1)
    assert 4 == len(np.unique(found.vectors, axis=0))
    assert 2 == nearest[0][0]


def test_toy_of_another_model_is_another_space():
    """Each model name has its own vectors, as each real model has."""
    embedders = [build_case(model=name).build_embedder() for name in ("toy-1", "toy-2")]
    assert embedders[0].space != embedders[1].space
    assert not np.allclose(embedders[0].embed_query("a text"), embedders[1].embed_query("a text"))


def test_toy_gives_the_same_vectors_in_another_process():
    """Vectors depend on the text and the model alone, not on the process: no seeded `hash()` is in them."""
    program = (
        "from embedkit.testing import *; from embedkit.profile import Profile; "
        "case = ProviderCase(provider=toy_provider(), profile=Profile(provider='toy', model='toy-1')); "
        "print(case.build_embedder().embed_query('a text').tobytes().hex())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    provider = toy_provider()
    assert result.stdout.strip() == build_case(provider).build_embedder().embed_query("a text").tobytes().hex()


def test_toy_calls_before_each_batch():
    """A test can hold a call up, or count: 5 texts in batches of 2 are 3 batches."""
    calls = []
    case = build_case(toy_provider(before_batch=lambda: calls.append(1)), batch_size=2)
    case.build_embedder().embed_documents(["a", "b", "c", "d", "e"])
    assert 3 == len(calls)


def test_case_reads_secrets_from_its_own_variables():
    """A provider that needs a key is checked with a key that the case brings; no environment is read."""

    @attrs.frozen(kw_only=True)
    class KeyOptions:
        api_key_env: Secret = option(help="names the variable", belongs_to="connection")  # gives a field

    case = ProviderCase(
        provider=attrs.evolve(toy_provider(), options=KeyOptions),
        profile=Profile(provider="toy", model="m", options={"api_key_env": "TOY_KEY"}),
        environ={"TOY_KEY": "s3cret"},
    )
    assert "s3cret" == case.read_options(case.profile.options).api_key_env.reveal()
    assert "s3cret" not in repr(case)
    with pytest.raises(SettingError, match="OTHER_KEY is not set"):
        case.read_options({"api_key_env": "OTHER_KEY"}).api_key_env.reveal()
