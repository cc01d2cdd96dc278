"""
sha256 of large files, each computed once: kept by path, size and modification time.

Owns the small file that they are kept in. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_FORMAT = 1
_N_KEPT = 1000


def find_cache_directory(environ: Mapping[str, str]) -> Path:
    """Give the directory where this user's machine keeps what can be computed again."""
    if sys.platform == "win32":
        base = environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "embedkit"


class Digests:
    """
    Compute sha256 of files, and remember it as long as path, size and modification time stay.

    Args:
        directory: Where to remember. It may be missing, unwritable or hold rubbish: then digests are computed anew.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / "digests.json"

    def compute(self, path: Path) -> str:
        """
        Give the sha256 of a file's content in hexadecimal.

        Raises:
            OSError: The file cannot be read.
        """
        real = path.resolve()
        status = real.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        kept = self._read()
        entry = kept.get(str(real))
        if isinstance(entry, list) and entry[:2] == stamp and isinstance(entry[-1], str):
            return entry[-1]
        with real.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._keep(str(real), [*stamp, digest])
        return digest

    def _read(self) -> dict[str, object]:
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if (
            not isinstance(content, dict)
            or content.get("format") != _FORMAT
            or not isinstance(content.get("files"), dict)
        ):
            return {}
        files: dict[str, object] = content["files"]
        return files

    def _keep(self, path: str, entry: list[object]) -> None:
        # Two processes may each lose the other's entry: it is computed again, nothing worse.
        kept = self._read()
        kept.pop(path, None)
        kept[path] = entry
        content = {"format": _FORMAT, "files": dict(list(kept.items())[-_N_KEPT:])}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self._file.parent, prefix=".digests-", suffix=".json")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                    json.dump(content, file)
                Path(temporary).replace(self._file)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
        except OSError:
            return
