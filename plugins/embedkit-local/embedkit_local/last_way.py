"""
How models were run when they were last loaded on this machine: for who explains a profile without loading it.

Owns one directory of small text files, each named by the sha256 of what was asked for. Imports no model library, and
reads no model: a model that was exchanged under its name is told as it was run before, until it is loaded again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from embedkit.profile import Profile
from embedkit_local.options import LocalOptions


class LastWay:
    """
    Remember, for each model and setting that decides how it is run, lines for people.

    Args:
        directory: Where to remember. It may be missing or unwritable: then nothing is known.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "last_way"

    def find(self, profile: Profile, options: LocalOptions) -> tuple[str, ...]:
        """Give the lines that were kept for a profile's model; none when it was never loaded here."""
        try:
            return tuple(self._name(profile, options).read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError):
            return ()

    def keep(self, profile: Profile, options: LocalOptions, lines: Sequence[str]) -> None:
        """Keep lines for a profile's model, in the place of earlier ones; two processes may do so at once."""
        if self.find(profile, options) == tuple(lines):
            return
        with suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self._directory, suffix=".tmp")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                    file.writelines(f"{' '.join(line.split())}\n" for line in lines)
                Path(temporary).replace(self._name(profile, options))
            except OSError:
                Path(temporary).unlink(missing_ok=True)

    def _name(self, profile: Profile, options: LocalOptions) -> Path:
        asked = [profile.model, options.revision, options.dtype, options.attention, profile.device]
        return self._directory / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()}.txt"
