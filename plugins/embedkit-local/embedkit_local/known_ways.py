"""
The ways that were chosen on this machine before, so that no load measures again what an earlier one measured.

Owns a directory of small files, each named by the sha256 of what its content depends on. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, get_args, get_type_hints

import attrs

from embedkit_local.choosing import Way

if TYPE_CHECKING:
    from collections.abc import Sequence


class KnownWays:
    """
    Remember ways.

    Args:
        directory: Where to remember. It may be missing, unwritable or hold rubbish: then a way is chosen anew.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "ways"

    def find(self, facts: Sequence[object]) -> Way | None:
        """Give the way that was kept for exactly these facts (plain values)."""
        try:
            content = json.loads(self._name(facts).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(content, dict) or content.keys() != {field.name for field in attrs.fields(Way)}:
            return None
        notes = content["notes"]
        if not isinstance(notes, list) or not all(_fits(name, content[name]) for name in content if name != "notes"):
            return None
        return Way(**{**content, "notes": tuple(map(str, notes))})

    def keep(self, facts: Sequence[object], way: Way) -> None:
        """Keep a way for these facts; two processes may do so at once."""
        path = self._name(facts)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                    json.dump(attrs.asdict(way), file)
                Path(temporary).replace(path)
            except OSError:
                Path(temporary).unlink(missing_ok=True)

    def _name(self, facts: Sequence[object]) -> Path:
        return self._directory / f"{hashlib.sha256(json.dumps(list(facts), sort_keys=True).encode()).hexdigest()}.json"


def _fits(name: str, value: object) -> bool:
    hint = get_type_hints(Way)[name]
    choices = get_args(hint)
    if choices and isinstance(choices[0], str):
        return value in choices
    return isinstance(value, hint)
