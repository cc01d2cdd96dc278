"""A provider in a distribution of its own. Hashed words stand for a model; a real one imports its library in `load`."""
# ruff: noqa: D102  # embedkit.protocols.Backend describes the methods

from collections.abc import Iterator, Mapping, Sequence
from hashlib import shake_256

import attrs
import numpy as np

from embedkit import Profile, Space, hookimpl
from embedkit.options import option
from embedkit.protocols import Batch, Provider, Role


@attrs.frozen(kw_only=True)
class ExampleOptions:
    """What `[profiles.NAME.options]` may say."""

    salt: str = option(help="another salt is another model", default="")


class ExampleBackend:
    """What a model needs around it; `encode` may yield several batches, in any order."""

    device, dtype = "cpu", "float32"

    def __init__(self, profile: Profile, options: ExampleOptions) -> None:
        self.prompts: Mapping[Role, str] = {}  # a model's own: {"query": "query: ", "document": "passage: "}
        self.window = profile.batch_size
        model, prompt = f"{profile.model}/{options.salt}", profile.document_prompt or ""
        d = profile.dimensions or 64
        self.space = Space(weights=model, dimensions=d, normalized=True, document_prompt=prompt, model=profile.model)

    def encode(self, texts: Sequence[str], *, role: Role) -> Iterator[Batch]:  # noqa: ARG002  # prompts are applied
        rows = np.zeros((len(texts), self.space.dimensions), np.float32)
        for i, text in enumerate(texts):
            for word in [text, *text.split()]:
                digest = shake_256(f"{self.space.weights} {word}".encode()).digest(self.space.dimensions)
                rows[i] += np.frombuffer(digest, np.uint8) - np.float32(127.5)
        yield Batch(positions=range(len(texts)), vectors=rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def close(self) -> None:
        pass


@hookimpl
def embedkit_providers() -> list[Provider[ExampleOptions]]:
    """Offer the provider that a profile names as `provider = "example"`."""
    return [Provider(name="example", summary="Hashed words", options=ExampleOptions, load=ExampleBackend)]
