"""
What the user declares: `Profile` and `RerankerProfile`.

Owns the keys of `profiles.toml` and their types; each key is one field here. Reads no file: see `config` and
`resolve`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from embedkit.errors import ConfigError
from embedkit.options import CALL, Origin, list_options, option, read_value

TooLong = Literal["truncate", "error"]


@attrs.frozen(kw_only=True)
class Reference:
    """
    Hold a published vector that tells a right way of loading a model from a wrong one.

    Attributes:
        text: Embedded as a document, without a prompt.

        components: Leading components of its vector, compared by direction, so that their scale does not matter.

        source: Who published it.
    """

    text: str = option(help="embedded as a document, without a prompt")
    components: tuple[float, ...] = option(help="leading components of the published vector")
    source: str = option(help="who published it")


def _copy(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return dict(mapping)


def _read_settings(declared: Profile | RerankerProfile) -> None:
    """Read every declared field strictly: a profile made in code is held to the same rules as one in a file."""
    faults: list[ConfigError] = []
    for name, field in list_options(type(declared)).items():
        try:
            value = read_value(field, getattr(declared, name), origin=declared.origins.get(name, CALL))
            object.__setattr__(declared, name, value)  # frozen from here on
        except ConfigError as fault:
            faults += fault.faults or (fault,)
    if faults:
        raise ConfigError.combine(faults)


@attrs.frozen(kw_only=True)
class Profile:
    """
    Bind provider, model, dimensions and batch size.

    Attributes are the keys of a `[profiles.NAME]` table. `origins` says where each value came from and is not compared.
    """

    name: str = "custom"
    provider: str = option(
        help="which plugin makes the vectors",
        default="local",
        belongs_to="connection",
        env="EMBEDDING_PROVIDER",
        at_least=1,
    )
    model: str = option(
        help="the model's name on its hub or server, a directory, or package:NAME/PATH inside an installed package",
        env="EMBEDDING_MODEL",
        at_least=1,
    )
    dimensions: int | None = option(
        help="length of each vector; left out: the model's own", default=None, env="EMBEDDING_DIMENSIONS", at_least=1
    )
    batch_size: int = option(
        help="at most so many texts in one pack or request",
        default=256,
        belongs_to="machine",
        env="EMBEDDING_BATCH_SIZE",
        at_least=1,
    )
    device: str = option(
        help="auto, cpu, cuda, cuda:N or mps; all but auto are strict",
        default="auto",
        belongs_to="machine",
        env="EMBEDDING_DEVICE",
        at_least=1,
    )
    description: str = option(help="one line for people", default="")
    query_prompt: str | None = option(
        help='put before each query; left out: the model\'s own; "": none, on purpose', default=None
    )
    document_prompt: str | None = option(
        help='put before each document; left out: the model\'s own; "": none, on purpose', default=None
    )
    normalize: bool = option(help="give every vector unit length", default=True)
    too_long: TooLong = option(  # it gives a field
        help='a text beyond the model\'s limit: "truncate" it and report so, or "error"',
        default="truncate",
        belongs_to="connection",
    )
    reranker: str | None = option(
        help="the [rerankers.NAME] that ENABLE_RERANKER=true switches on", default=None, belongs_to="connection"
    )
    reference: Reference | None = option(  # it gives a field
        help="a published vector to check the loaded model against", default=None
    )
    price_per_million_tokens: float | None = option(help="for the cost in reports", default=None, at_least=0)
    options: Mapping[str, object] = attrs.field(factory=dict, converter=_copy, hash=False)
    origins: Mapping[str, Origin] = attrs.field(factory=dict, converter=_copy, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        _read_settings(self)


@attrs.frozen(kw_only=True)
class RerankerProfile:
    """
    Bind a reranker's provider and model.

    Attributes are the keys of a `[rerankers.NAME]` table. `origins` says where each value came from and is not
    compared.
    """

    name: str = "custom"
    provider: str = option(help="which plugin makes the scores", default="local", belongs_to="connection", at_least=1)
    model: str = option(help="the model's name on its hub or server, or a directory", at_least=1)
    batch_size: int = option(
        help="at most so many pairs in one pass or request", default=32, belongs_to="machine", at_least=1
    )
    device: str = option(help="auto, cpu, cuda, cuda:N or mps", default="auto", belongs_to="machine", at_least=1)
    description: str = option(help="one line for people", default="")
    options: Mapping[str, object] = attrs.field(factory=dict, converter=_copy, hash=False)
    origins: Mapping[str, Origin] = attrs.field(factory=dict, converter=_copy, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        _read_settings(self)
