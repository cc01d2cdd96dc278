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
    dtype: Dtype = option(  # it gives a field
        help='precision of the arithmetic; "auto" is bfloat16 on a GPU that has it, else float32',
        default="float32",
        belongs_to="machine",
    )
    max_tokens: int | None = option(
        help="where a text is cut off, special tokens included; left out: the model's own", default=None, at_least=1
    )
    matryoshka: bool = option(help="whether the model's card allows dimensions below the model's own", default=False)
    append_eos: bool | None = option(
        help="put the tokenizer's end-of-text token after each text; left out: as the tokenizer's configuration says",
        default=None,
    )
    attention: Attention | None = option(  # it gives a field
        help="direction of a decoder model's attention; left out: the model's own", default=None
    )
    trust_remote_code: bool = option(help="run Python code that the model brings", default=False)
