"""
For plugin authors: a deterministic toy provider, and the checks that every provider passes.

The checks are plain functions that raise AssertionError with a sentence: any test framework can run them. This module
needs none, prints nothing, and knows no real provider.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import attrs
import numpy as np

from embedkit.embedder import Embedder
from embedkit.errors import (
    BackendError,
    ConfigError,
    DeviceUnavailableError,
    EmbedkitError,
    IncompleteError,
    InputError,
)
from embedkit.options import Origin, Secret, list_options, option, read_options
from embedkit.profile import Profile
from embedkit.protocols import Backend, Batch, Provider, Role
from embedkit.space import Space
from embedkit.vectors import UNIT_TOLERANCE, Vectors, check_vectors


@attrs.frozen(kw_only=True)
class ToyOptions:
    """Options of the toy provider."""

    max_tokens: int = option(help="a text is cut off after so many words", default=512, at_least=1)


class ToyBackend:
    """
    Embed by hashing, the same on every machine: texts that share words are near each other, and no two texts are equal.

    A word is a token. Like a real model it works longest texts first, so that batches come in another order than texts.
    """

    device = "cpu"
    dtype = "float32"

    def __init__(
        self, profile: Profile, space: Space, prompts: Mapping[Role, str], before_batch: Callable[[], None] | None
    ) -> None:
        self.space = space
        self.prompts = prompts
        self.window = 4 * profile.batch_size
        self._profile = profile
        self._max_tokens = space.max_tokens or 1
        self._before_batch = before_batch
        self._closed = False

    def encode(self, texts: Sequence[str], *, role: Role) -> Iterator[Batch]:  # noqa: ARG002  # the prompt has made the difference
        """Embed texts, at most `batch_size` in a batch; see `embedkit.protocols.Backend`."""
        if self._closed:
            raise BackendError("This toy backend was closed.")
        order = sorted(range(len(texts)), key=lambda position: -len(texts[position]))
        for start in range(0, len(order), self._profile.batch_size):
            if self._before_batch is not None:
                self._before_batch()
            yield self._encode_batch(texts, order[start : start + self._profile.batch_size])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the words of each text."""
        return [len(text.split()) for text in texts]

    def close(self) -> None:
        """Refuse later calls."""
        self._closed = True

    def _encode_batch(self, texts: Sequence[str], positions: Sequence[int]) -> Batch:
        counts = dict(zip(positions, self.count_tokens([texts[i] for i in positions]), strict=True))
        too_long = [i for i in positions if counts[i] > self._max_tokens]
        failures: dict[int, EmbedkitError] = {}
        if self._profile.too_long == "error":
            failures = {
                i: InputError(f"A text has {counts[i]} tokens, and the model reads {self._max_tokens}.", positions=[i])
                for i in too_long
            }
        embedded = [i for i in positions if i not in failures]
        rows = [self._embed(texts[i], is_cut=i in too_long) for i in embedded]
        return Batch(
            positions=embedded,
            vectors=np.stack(rows) if rows else np.empty((0, self.space.dimensions), np.float32),
            n_tokens=sum(min(counts[i], self._max_tokens) for i in embedded),
            truncated=[i for i in too_long if i not in failures],
            failures=failures,
        )

    def _embed(self, text: str, *, is_cut: bool) -> Vectors:
        if is_cut:
            text = " ".join(text.split()[: self._max_tokens])
        # The whole text has a share, so that the order of words and every character count.
        vector = 0.5 * self._hash(text)
        for word in re.findall(r"\w+", text.casefold()):
            vector += self._hash(word)
        return vector / np.linalg.norm(vector) if self.space.normalized else vector

    def _hash(self, text: str) -> Vectors:
        digest = hashlib.shake_256(f"{self.space.weights} {text}".encode()).digest(self.space.dimensions)
        return np.frombuffer(digest, np.uint8).astype(np.float32) - np.float32(127.5)


def toy_provider(
    *,
    name: str = "toy",
    dimensions: int = 64,
    prompts: Mapping[Role, str] | None = None,
    before_batch: Callable[[], None] | None = None,
) -> Provider[ToyOptions]:
    """
    Make the recipe of a provider for tests: no weights, no network, the same vectors everywhere.

    Another model name is another space.

    Args:
        name: What a profile's `provider` says.

        dimensions: Length of each vector where the profile states none.

        prompts: The model's own prompts.

        before_batch: Called in the calling thread before each batch is made, to hold a call up or to count.
    """
    own_prompts: Mapping[Role, str] = prompts or {}

    def identify(profile: Profile, options: ToyOptions) -> Space:
        own_prompt = own_prompts.get("document", "")
        return Space(
            weights=hashlib.sha256(f"toy {profile.model}".encode()).hexdigest(),
            dimensions=profile.dimensions or dimensions,
            normalized=profile.normalize,
            pooling="sum",
            document_prompt=own_prompt if profile.document_prompt is None else profile.document_prompt,
            max_tokens=options.max_tokens,
            model=profile.model,
        )

    def load(profile: Profile, options: ToyOptions) -> ToyBackend:
        return ToyBackend(profile, identify(profile, options), own_prompts, before_batch)

    summary = "Hashed words, for tests"
    return Provider(name=name, summary=summary, options=ToyOptions, load=load, identify=identify)


@attrs.frozen(kw_only=True)
class ProviderCase:
    """
    Say what a provider is checked with.

    Attributes:
        provider: The recipe.

        profile: A profile that it can load on this machine; its `options` are read with the provider's options class.

        tolerance: How far two components of one text's vectors may be apart, for vectors of unit length.

        environ: Variables that options named `…_env` may name.
    """

    provider: Provider[Any]
    profile: Profile
    tolerance: float = 1e-5
    environ: Mapping[str, str] = attrs.field(factory=dict, repr=False)

    def read_options(self, raw: Mapping[str, object]) -> Any:  # noqa: ANN401  # the provider's own class
        """
        Read a table of options with the provider's options class.

        Raises:
            ConfigError: Options are unknown, missing or of the wrong type.
        """
        return read_options(
            self.provider.options, raw, origin=Origin("the case's profile"), read_secret=self._read_secret
        )

    def load(self) -> Backend:
        """Load a backend without an embedder around it."""
        return self.provider.load(self.profile, self.read_options(self.profile.options))

    def build_embedder(self, **changes: Any) -> Embedder:  # noqa: ANN401  # the profile checks them
        """
        Make an embedder; nothing is loaded yet.

        Args:
            changes: Fields of the profile that differ from the case's.
        """
        profile = attrs.evolve(self.profile, **changes)
        options = self.read_options(profile.options)
        return Embedder(profile, lambda: self.provider.load(profile, options))

    def require_equal(self, expected: Vectors, found: Vectors, sentence: str) -> None:
        """Raise AssertionError with *sentence* unless two arrays are of one shape and equal within the tolerance."""
        assert expected.shape == found.shape, f"{sentence} Shapes {expected.shape} and {found.shape} differ."
        off = float(np.abs(expected - found).max(initial=0.0))
        allowed = self.tolerance * max(1.0, float(np.abs(expected).max(initial=0.0)))
        assert off <= allowed, f"{sentence} They differ by {off:.2g}, and {allowed:.2g} is allowed."

    def _read_secret(self, variable: str, origin: Origin) -> Secret:
        return Secret(variable, self.environ.get(variable), origin=str(origin))


ProviderCheck = Callable[[ProviderCase], None]

# Of different lengths, so that a provider that sorts by length and forgets to sort back is found out.
_TEXTS = (
    "The ferry to the island leaves at noon.",
    "Salt.",
    "How does a heat pump warm a house when it is freezing outside?",
    "A short note about garden tools",
    "def add(a, b):\n    return a + b\n",
    "Die Brücke wurde nach dem Hochwasser neu gebaut.",
    "The committee met on Tuesday, discussed the budget for two hours, and put the decision off until all was checked.",
    "深い森の中に小さな家がある。",
    "Interest rates rose for the third time this year.",
)

_LONGEST_CHECKED = 10_000


def _provider_check(check: ProviderCheck) -> ProviderCheck:
    """Report an error of embedkit that escapes from a check as the failure that it is."""

    @functools.wraps(check)
    def checked(case: ProviderCase) -> None:
        try:
            check(case)
        except EmbedkitError as error:
            raise AssertionError(f"Provider {case.provider.name!r} failed: {error}") from error

    return checked


def _catch(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:  # noqa: BLE001  # a check judges whatever comes
        return error
    return None


@_provider_check
def check_row_order(case: ProviderCase) -> None:
    """Each row belongs to its text, whatever the order of the texts; different texts have different vectors."""
    shuffled = list(range(len(_TEXTS)))
    random.Random(7).shuffle(shuffled)  # noqa: S311  # no secret
    with case.build_embedder() as embedder:
        rows = embedder.embed_documents(_TEXTS).vectors
        found = embedder.embed_documents([_TEXTS[i] for i in shuffled]).vectors
        case.require_equal(rows[shuffled], found, "Texts in another order must give the same rows in that order.")
        alone = np.concatenate([embedder.embed_documents([text]).vectors for text in _TEXTS])
        case.require_equal(alone, rows, "A text embedded alone must have the vector that it has among others.")
    for i, text in enumerate(_TEXTS):
        twins = [other for j, other in enumerate(_TEXTS) if j != i and np.array_equal(rows[i], rows[j])]
        assert not twins, f"Different texts must have different vectors: {text!r} and {twins[0]!r} have the same."


@_provider_check
def check_empty_list(case: ProviderCase) -> None:
    """No texts give no rows, of the width that every other call gives."""
    with case.build_embedder() as embedder:
        documents, queries = embedder.embed_documents([]), embedder.embed_queries([])
        width = embedder.embed_documents(_TEXTS[:1]).vectors.shape[1]
    for role, embeddings in {"documents": documents, "queries": queries}.items():
        shape = embeddings.vectors.shape
        assert shape == (0, width), f"No {role} must give an array of shape (0, {width}), not {shape}."


@_provider_check
def check_batch_size(case: ProviderCase) -> None:
    """The batch size changes nothing beyond the tolerance."""
    with case.build_embedder() as embedder:
        expected = embedder.embed_documents(_TEXTS).vectors
    for batch_size in (1, 2, len(_TEXTS)):
        with case.build_embedder(batch_size=batch_size) as embedder:
            found = embedder.embed_documents(_TEXTS).vectors
        case.require_equal(expected, found, f"batch_size={batch_size} must give the vectors of the profile's own.")


@_provider_check
def check_roles(case: ProviderCase) -> None:
    """A query and a document differ by their prompts and by nothing else; the document prompt is part of the space."""
    text, prompt = _TEXTS[2], "Represent this: "
    with case.build_embedder(query_prompt="", document_prompt="") as plain:
        document = plain.embed_documents([text, prompt + text]).vectors
        query = plain.embed_queries([text]).vectors
        space = plain.space
        case.require_equal(document[:1], query, "Without prompts a text must have one vector as query and as document.")
    with case.build_embedder(query_prompt=prompt, document_prompt="") as prompted:
        query = prompted.embed_queries([text]).vectors
        assert prompted.space == space, "The query prompt must not change the space: it changes no stored vector."
        case.require_equal(document[1:], query, "A query must have the vector of the document that is prompt and text.")
    with case.build_embedder(query_prompt="", document_prompt=prompt) as prompted:
        found = prompted.embed_documents([text]).vectors
        assert prompted.space != space, "The document prompt must change the space: Space(document_prompt=…)."
        case.require_equal(document[1:], found, "A document must have the vector of its prompt and its text.")


@_provider_check
def check_space(case: ProviderCase) -> None:
    """The space is one for every load, device and batch size, before and after use, and is what `identify` said."""
    options = case.read_options(case.profile.options)
    with case.build_embedder() as embedder:
        space = embedder.space
        embedder.embed_documents(_TEXTS[:1])
        assert embedder.space == space, f"Embedding must not change the space, from {space} to {embedder.space}."
    identified = case.provider.identify(case.profile, options)
    assert identified in (None, space), f"identify says {identified}, and the loaded backend says {space}."
    changes: list[dict[str, object]] = [{}, {"batch_size": case.profile.batch_size + 1}]
    if case.profile.device == "auto":
        changes.append({"device": "cpu"})
    for change in changes:
        with suppress(DeviceUnavailableError), case.build_embedder(**change) as embedder:
            found = embedder.space
            assert found == space, f"Another load {change or ''} must give the same space, not {found} after {space}."


@_provider_check
def check_unknown_option(case: ProviderCase) -> None:
    """Every option is declared, and a misspelt one is refused with the nearest that exists."""
    options = case.provider.options
    assert attrs.has(options), f"The options class {options.__name__} must be an attrs class."
    declared = list_options(options)
    undeclared = [field.name for field in attrs.fields(options) if field.name not in declared]
    assert not undeclared, f"Options must be declared with embedkit.options.option(): {', '.join(undeclared)}."
    name = next(iter(declared), "option")
    misspelt = name + name[-1]
    error = _catch(lambda: case.read_options({**case.profile.options, misspelt: None}))
    assert isinstance(error, ConfigError), f"The unknown option {misspelt!r} must be refused."
    assert not declared or name in str(error), f"The refusal of {misspelt!r} must name {name!r}."


@_provider_check
def check_threads(case: ProviderCase) -> None:
    """Thirty-two threads at once, on two embedders, embedding and counting tokens, get what one thread gets."""
    n_threads = 32
    together = threading.Barrier(n_threads)
    with case.build_embedder() as first, case.build_embedder(batch_size=2) as second:
        documents, queries = first.embed_documents(_TEXTS).vectors, first.embed_queries(_TEXTS).vectors
        can_count = _catch(lambda: first.count_tokens(_TEXTS)) is None
        counts = first.count_tokens(_TEXTS) if can_count else []

        def work(number: int) -> None:
            embedder = second if number % 2 else first
            rows = [(number + i) % len(_TEXTS) for i in range(1 + number % len(_TEXTS))]
            texts = [_TEXTS[row] for row in rows]
            sentence = "Calls from several threads must not disturb one another."
            together.wait(timeout=60)
            case.require_equal(documents[rows], embedder.embed_documents(texts).vectors, sentence)
            if can_count:
                assert embedder.count_tokens(texts) == [counts[row] for row in rows], sentence
            case.require_equal(queries[rows], embedder.embed_queries(texts).vectors, sentence)

        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(work, range(n_threads)))


@_provider_check
def check_dimensions(case: ProviderCase) -> None:
    """A backend names each text once; vectors are float32, finite, as wide as the space, of unit length if claimed."""
    backend = case.load()
    try:
        space = backend.space
        wanted = case.profile.dimensions
        width = f"The profile asks for {wanted} dimensions, and the space has {space.dimensions}."
        assert wanted in (None, space.dimensions), width
        unit = "A profile with normalize = true must give a space of unit length: Space(normalized=True)."
        assert space.normalized or not case.profile.normalize, unit
        named: list[int] = []
        texts = _TEXTS[: backend.window]
        for batch in backend.encode(texts, role="document"):
            vectors = check_vectors(batch.vectors, n=len(batch.positions), space=space, source="The backend")
            named += batch.positions
            lengths = np.linalg.norm(vectors, axis=1)
            assert not space.normalized or np.abs(lengths - 1).max(initial=0) <= UNIT_TOLERANCE, unit
        once = f"Each of {len(texts)} texts must be named once, not {sorted(named)}."
        assert sorted(named) == list(range(len(texts))), once
    finally:
        backend.close()


@_provider_check
def check_bad_input(case: ProviderCase) -> None:
    """What is no text is refused with its position; texts that only look odd are embedded, and so are neighbours."""
    # All valid: none may be taken for blank, for a missing value or for a path.
    good = [".", "0", "None", "  spaces around  ", "-", "/"]
    bad: list[Any] = [None, b"bytes", "", " \t\n", "lone \ud800 surrogate", 7]
    mixed = [text for pair in zip(good, bad, strict=True) for text in pair]
    positions = tuple(range(1, len(mixed), 2))
    with case.build_embedder() as embedder:
        expected = embedder.embed_documents(good).vectors
        error = _catch(lambda: embedder.embed_documents(mixed))
        assert isinstance(error, InputError), f"Bad texts must be refused with InputError, not {error!r}."
        assert error.positions == positions, f"The bad texts stand at {positions}, not at {error.positions}."
        found = embedder.embed_documents(mixed, on_error="skip")
        case.require_equal(
            expected, found.vectors, "The neighbours of bad texts must have the vectors of a call without them."
        )
        skipped = tuple(found.report.failures)
        assert skipped == positions, f"The skipped texts must be those at {positions}, not at {skipped}."


@_provider_check
def check_unusual_texts(case: ProviderCase) -> None:
    """NUL, emoji, marks of right-to-left scripts, combining and invisible characters are texts like others."""
    texts = [
        "nul \x00 inside",
        "👩\u200d👩\u200d👧 🌈",
        "\u202eright to left\u202c \u200f\u05e9\u05dc\u05d5\u05dd",
        "e\u0301 \u200b \ufeff",
        "a\r\nb\tc",
        "\x1b[31mred",
    ]
    with case.build_embedder() as embedder:
        rows = embedder.embed_documents(texts).vectors
        alone = np.concatenate([embedder.embed_documents([text]).vectors for text in texts])
    case.require_equal(alone, rows, "Unusual texts must have the vectors that they have alone.")


@_provider_check
def check_long_texts(case: ProviderCase) -> None:
    """Where the space states a limit, a longer text is truncated and reported, or an error, as `too_long` says."""
    with case.build_embedder(too_long="truncate") as embedder:
        long = _build_long_text(embedder.space)
        if long is None:
            return
        texts = [_TEXTS[0], long, _TEXTS[1]]
        truncated = embedder.embed_documents(texts).report.truncated
        assert truncated == (1,), f"The text at position 1 must be reported as truncated, not {truncated}."
    with case.build_embedder(too_long="error") as embedder:
        error = _catch(lambda: embedder.embed_documents(texts))
    right = isinstance(error, IncompleteError) and isinstance(error.__cause__, InputError)
    assert right, f'With too_long="error" a long text must be an InputError among the failures, not {error!r}.'
    assert isinstance(error, IncompleteError)
    assert error.missing == (1,), f"Only the long text must be missing: position 1, not {error.missing}."


def _build_long_text(space: Space) -> str | None:
    """Give a text longer than the model reads; None where no limit is known, or one that takes long to reach."""
    if space.max_tokens is None or space.max_tokens > _LONGEST_CHECKED:
        return None
    return "river " * (space.max_tokens + 8)


@_provider_check
def check_duplicates(case: ProviderCase) -> None:
    """The same text has the same vector: in one call, in another call, and in another embedder."""
    once, many = [_TEXTS[0], _TEXTS[1]], [_TEXTS[0], _TEXTS[1]] * 50
    with case.build_embedder() as embedder:
        first = embedder.embed_documents(once).vectors
        repeated = embedder.embed_documents(many).vectors
    with case.build_embedder() as embedder:
        again = embedder.embed_documents(once).vectors
    sentence = "The same text must have the same vector every time."
    case.require_equal(np.tile(first, (50, 1)), repeated, sentence)
    case.require_equal(first, again, sentence)


@_provider_check
def check_count_tokens(case: ProviderCase) -> None:
    """Tokens are counted for each text by itself, nothing is cut off, and the report of a call adds up to them."""
    with case.build_embedder(document_prompt="") as embedder:
        backend = case.load()
        try:
            counts = backend.count_tokens(_TEXTS)
        finally:
            backend.close()
        if counts is None:
            return
        whole = all(type(count) is int and count > 0 for count in counts) and len(counts) == len(_TEXTS)
        assert whole, f"{len(_TEXTS)} texts must have as many counts, whole numbers above 0, not {counts}."
        alone = [count for text in _TEXTS for count in embedder.count_tokens([text])]
        assert counts == alone, f"Counts must not depend on the other texts: {counts} together, {alone} alone."
        assert embedder.count_tokens([]) == [], "No texts must give no counts."
        long = _build_long_text(embedder.space)
        if long is not None:
            n_long = embedder.count_tokens([long])[0]
            uncut = f"Counting must cut nothing off: {n_long} tokens in a long text."
            assert n_long > (embedder.space.max_tokens or 0), uncut
        report = embedder.embed_documents(_TEXTS).report
        exact = report.n_tokens is None or report.truncated or report.n_tokens == sum(counts)
        assert exact, f"The model read {report.n_tokens} tokens, and {sum(counts)} were counted."


@_provider_check
def check_close(case: ProviderCase) -> None:
    """After `close` a call is a clear error; closing again, other embedders and a new load are not disturbed."""
    texts = _TEXTS[:2]
    with case.build_embedder() as other:
        expected = other.embed_documents(texts).vectors
        embedder = case.build_embedder()
        embedder.embed_documents(texts)
        embedder.close()
        embedder.close()
        error = _catch(lambda: embedder.embed_documents(texts))
        assert isinstance(error, BackendError), f"Use after close must be a BackendError, not {error!r}."
        found = other.embed_documents(texts).vectors
        case.require_equal(expected, found, "Closing one embedder must not disturb another.")
    with case.build_embedder() as again:
        found = again.embed_documents(texts).vectors
    case.require_equal(expected, found, "A new load after close must give the same vectors.")


@_provider_check
def check_errors_pickle(case: ProviderCase) -> None:
    """What goes wrong is an EmbedkitError that survives the way out of another process."""
    with case.build_embedder(too_long="error") as embedder:
        long = _build_long_text(embedder.space)
        provoked = [_catch(lambda: embedder.embed_documents([long]))] if long is not None else []
    provoked.append(_catch(lambda: embedder.embed_documents(_TEXTS)))
    with case.build_embedder(dimensions=1_000_003) as embedder:
        provoked.append(_catch(embedder.load))
    for error in provoked:
        if error is None:
            continue
        assert isinstance(error, EmbedkitError), f"{error!r} must be translated into an EmbedkitError."
        try:
            copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # made here
        except Exception as fault:  # noqa: BLE001  # whatever pickle says
            raise AssertionError(f"{type(error).__name__} must pickle, and does not: {fault}") from error
        same = (type(copy), str(copy)) == (type(error), str(error))
        assert same, f"{error!r} must come out of pickle as it went in, not as {copy!r}."


PROVIDER_CHECKS: tuple[ProviderCheck, ...] = (
    check_row_order,
    check_empty_list,
    check_batch_size,
    check_roles,
    check_space,
    check_unknown_option,
    check_threads,
    check_dimensions,
    check_bad_input,
    check_unusual_texts,
    check_long_texts,
    check_duplicates,
    check_count_tokens,
    check_close,
    check_errors_pickle,
)
"""Every provider passes all of them, for each kind of profile that it can load."""
