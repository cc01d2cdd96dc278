"""
The settings of the provider `local`.

Owns their names, types and what they belong to. Imports nothing heavy and reads nothing.
"""

from __future__ import annotations

from typing import Literal

import attrs

from embedkit.options import option

Attention = Literal["bidirectional", "causal"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@attrs.frozen(kw_only=True)
class LocalOptions:
    """Hold the options of a profile whose provider is `local`; each says in its help what it does."""

    revision: str | None = option(
        help="commit, tag or branch of a hub model; left out: what is cached, else main", default=None, at_least=1
    )
    dtype: Dtype = option(
        help='precision of the arithmetic; "auto" is bfloat16 where the device has it and it was found to agree with '
        "float32, else float32",
        default="auto",
        belongs_to="machine",
    )
    max_batch_tokens: int | None = option(
        help="at most so many tokens in one pack, which bounds memory; left out: by the kind of device",
        default=None,
        belongs_to="machine",
        at_least=1,
    )
    max_tokens: int | None = option(
        help="where a text is cut off, special tokens included; left out: the model's own", default=None, at_least=1
    )
    matryoshka: bool = option(help="whether the model's card allows dimensions below the model's own", default=False)
    append_eos: bool | None = option(
        help="put the tokenizer's end-of-text token after each text; left out: as the tokenizer's configuration says",
        default=None,
    )
    attention: Attention | None = option(
        help="direction of a decoder model's attention; left out: the model's own", default=None
    )
    trust_remote_code: bool = option(help="run Python code that the model brings", default=False)
