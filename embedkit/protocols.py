"""
What plugins supply: recipes (`Provider`, `RerankProvider`), what they make (`Backend`, `RerankBackend`), and `Check`.

Owns shapes only; nothing here does work. Plugin authors import from here, and from `embedkit.space`,
`.options`, `.errors`, `.testing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import attrs
import numpy as np
from numpy.typing import NDArray

from embedkit.errors import EmbedkitError
from embedkit.profile import Profile, RerankerProfile
from embedkit.space import Space

Role = Literal["document", "query"]
"""What a text is embedded as; only the prompt differs."""

OptionsT = TypeVar("OptionsT")


@attrs.frozen(kw_only=True)
class Batch:
    """
    Give the vectors of some texts of a call to `Backend.encode`.

    Attributes:
        positions: Which of the call's texts these are.

        vectors: Shape (n, d), float32: row i belongs to the text at `positions[i]`.

        n_tokens: Tokens that the model read for them; None when it does not tell.

        truncated: Those of the call's texts that were not read to their end.

        failures: Texts of the call that could not be embedded (none of `positions`), each with its error.
    """

    positions: Sequence[int]
    vectors: NDArray[np.float32]
    n_tokens: int | None = None
    truncated: Sequence[int] = ()
    failures: Mapping[int, EmbedkitError] = attrs.field(factory=dict)


class Backend(Protocol):
    """
    Turn texts into vectors: a loaded model, or the client of a server.

    Attributes:
        window: How many texts it likes to see at once (to sort, to pack, to keep requests in flight).

        device: Where it runs, for people ("cpu", "cuda:0"); empty when unknown.

        dtype: The precision it computes in, for people; empty when unknown.

    A backend that chooses between ways of running its model may also have `way`, one line for people that says which it
    took, and `notes`, lines that say what was not taken and why: reports and `embedkit doctor` show them.
    """

    window: int
    device: str
    dtype: str

    @property
    def prompts(self) -> Mapping[Role, str]:
        """The model's own prompts, used where the profile states none."""
        ...

    @property
    def space(self) -> Space:
        """The space of every vector it returns."""
        ...

    def encode(self, texts: Sequence[str], *, role: Role) -> Iterator[Batch]:
        """
        Embed texts.

        Args:
            texts: Valid, all different, prompt already put before each, at most `window`.

            role: What they are embedded as.

        Returns:
            Batches as they finish, in any order, together covering every position once. Closing the iterator cancels
            the rest.
        """
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int] | None:
        """Count the tokens of each text, special ones included, nothing cut off; None when the provider cannot tell."""
        ...

    def close(self) -> None:
        """Give back memory and connections; called once, when no call is under way."""
        ...


@attrs.frozen(kw_only=True)
class FetchProgress:
    """
    Say how far a download has come.

    Attributes:
        n_bytes: Bytes on this machine by now.

        total_bytes: Bytes in all.
    """

    n_bytes: int
    total_bytes: int


def _identify_nothing(profile: Profile, options: Any) -> Space | None:  # noqa: ANN401, ARG001  # as the fields of Provider are called
    return None


def _describe_nothing(profile: Profile, options: Any) -> Sequence[str]:  # noqa: ANN401, ARG001  # as the fields of Provider are called
    return ()


@attrs.frozen(kw_only=True)
class Provider(Generic[OptionsT]):
    """
    A recipe for making backends; making a recipe imports nothing heavy.

    Attributes:
        name: What `provider = "…"` in `profiles.toml` says.

        summary: One line for people.

        options: An attrs class whose fields are declared with `embedkit.options.option`; the core types a
            profile's options with it.

        load: Makes a backend; may import heavy libraries, read files and reach the network.

        identify: Gives the space from files alone, without loading; None: known only after load.

        describe: Says from files alone how the model was run when it was last loaded on this machine, in lines for
            people; none when it never was.

        fetch: Brings a profile's weights onto this machine; yields how far it has come, the total first. None: there is
            nothing to fetch.
    """

    name: str
    summary: str
    options: type[OptionsT]
    load: Callable[[Profile, OptionsT], Backend]
    identify: Callable[[Profile, OptionsT], Space | None] = _identify_nothing
    describe: Callable[[Profile, OptionsT], Sequence[str]] = _describe_nothing
    fetch: Callable[[Profile, OptionsT], Iterator[FetchProgress]] | None = None


class RerankBackend(Protocol):
    """
    Score how well documents answer a query.

    Attributes:
        device: Where it runs, for people; empty when unknown.

        scores: What its scores are: unbounded "logits", or "probabilities" within [0, 1].
    """

    device: str
    scores: Literal["logits", "probabilities"]

    def score(self, query: str, documents: Sequence[str]) -> NDArray[np.float32]:
        """
        Score each document for the query.

        Args:
            query: One valid text.

            documents: Valid texts.

        Returns:
            Shape (n,), float32, higher is better, in the order of *documents*.
        """
        ...

    def close(self) -> None:
        """Give back memory and connections; called once, when no call is under way."""
        ...


@attrs.frozen(kw_only=True)
class RerankProvider(Generic[OptionsT]):
    """
    A recipe for making rerankers; making a recipe imports nothing heavy.

    Attributes:
        name: What `provider = "…"` in `[rerankers.NAME]` says.

        summary: One line for people.

        options: An attrs class whose fields are declared with `embedkit.options.option`.

        load: Makes a rerank backend.
    """

    name: str
    summary: str
    options: type[OptionsT]
    load: Callable[[RerankerProfile, OptionsT], RerankBackend]


@attrs.frozen(kw_only=True)
class Finding:
    """
    Say one thing that a check found.

    Attributes:
        level: "ok" and "note" are for the reader; a "problem" is to be mended, and makes `embedkit doctor` fail.

        sentence: What was found, with its value.

        hint: What mends it: something one can type. Empty only where nothing needs mending.

        prevents_loading: Whether loading the model now is pointless or dangerous, so that nobody should try.
    """

    level: Literal["ok", "note", "problem"]
    sentence: str
    hint: str = ""
    prevents_loading: bool = False


@attrs.frozen(kw_only=True)
class Subject:
    """
    Hold what a check looks at.

    Attributes:
        profile: The profile that is examined; None while the configuration is wrong.

        options: Its options, typed by its provider's class; None likewise.

        backend: Its loaded model, without the embedder around it; None before loading.
    """

    profile: Profile | None = None
    options: Any = None
    backend: Backend | None = None


@attrs.frozen(kw_only=True)
class Check:
    """
    Examine a machine, or a loaded model, for `embedkit doctor`.

    Attributes:
        name: The topic that its findings are shown under.

        summary: One line for people.

        run: Gives findings, none where it has nothing to say: a check is asked about profiles of every provider. May
            import heavy libraries; what it raises becomes a finding.

        needs_model: Whether it is asked after loading, with `Subject.backend`; else it is asked before.
    """

    name: str
    summary: str
    run: Callable[[Subject], Iterable[Finding]]
    needs_model: bool = False
