"""
What was proved on this machine before, so that it need not be proved at every load.

Owns one directory of empty files, each named by the sha256 of what it stands for. Imports no model library: a usual
model is loaded without.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from embedkit.reference import require_reference

if TYPE_CHECKING:
    from embedkit.profile import Profile
    from embedkit.protocols import Backend

_LIBRARIES = ("embedkit-local", "torch", "transformers")


class Proved:
    """
    Remember that something holds.

    Args:
        directory: Where to remember. It may be missing or unwritable: then everything is proved anew.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "proved"

    def holds(self, *facts: object) -> bool:
        """Whether exactly these facts (plain values) were noted together."""
        try:
            return self._name(facts).exists()
        except OSError:
            return False

    def note(self, *facts: object) -> None:
        """Note facts together; two processes may do so at once."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._name(facts).touch()
        except OSError:
            return

    def _name(self, facts: tuple[object, ...]) -> Path:
        return self._directory / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def require_reference_once(backend: Backend, profile: Profile, proved: Proved) -> None:
    """
    Compare a model with its profile's reference when it is loaded for the first time on this machine.

    Another device, precision, way of running or version of the libraries computes otherwise, so each is a first time.

    Raises:
        ModelLoadError: It is another model, or loaded wrongly.
    """
    if profile.reference is None:
        return
    facts = (
        "reference",
        backend.space.fingerprint,
        attrs.astuple(profile.reference),
        backend.device.partition(":")[0],
        backend.dtype,
        getattr(backend, "way", ""),
        [importlib.metadata.version(library) for library in _LIBRARIES],
    )
    if not proved.holds(*facts):
        require_reference(backend, profile)
        proved.note(*facts)
