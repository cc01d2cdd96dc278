"""
What every way of loading a model through transformers needs.

Owns the direction of attention in a configuration, and the silence while loading. Loads nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as transformers_logging


def set_attention(config: Any, attention: str) -> None:  # noqa: ANN401  # a configuration of transformers
    """Turn the attention of a configuration, before a model is made of it; nothing without a direction."""
    if not attention:
        return
    if getattr(config, "is_decoder", False):
        config.is_decoder = attention == "causal"
    config.is_causal = attention == "causal"
    if hasattr(config, "use_bidirectional_attention"):
        config.use_bidirectional_attention = attention == "bidirectional"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing a progress bar while a model is loaded."""
    was_drawn = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_drawn:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
