"""
How much memory and how many processors this process has, and how much a model's weights will take.

Owns what a container's limits take away. Loads no weights and no torch.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped,unused-ignore]  # it has no types of its own

from embedkit_local.model_files import read_header

if TYPE_CHECKING:
    from embedkit_local.model_files import ModelFiles

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use."""

_NO_LIMIT = 1 << 60


def find_free_memory(control_group: Path = CONTROL_GROUP) -> int:
    """Give the bytes of main memory that this process can still take."""
    free = int(psutil.virtual_memory().available)
    room = find_group_room(control_group)
    return free if room is None else min(free, room)


def find_group_room(control_group: Path) -> int | None:
    """Give the bytes that a container's limit leaves; None where there is no limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            bound = (control_group / limit).read_text(encoding="ascii").strip()
            taken = (control_group / used).read_text(encoding="ascii").strip()
        except OSError:
            continue
        # Without a limit, version 2 says "max" and version 1 a number beyond every memory.
        if bound.isdecimal() and taken.isdecimal() and int(bound) < _NO_LIMIT:
            return max(0, int(bound) - int(taken))
    return None


def count_cpus(control_group: Path = CONTROL_GROUP) -> int:
    """Count the processors that this process may use: fewer than the machine's in a container or under an affinity."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (control_group / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return n
    return max(1, min(n, int(quota) // int(period))) if quota.isdecimal() else n


def count_parameters(files: ModelFiles) -> int:
    """Count the numbers in a model's weights, from the headers of their files."""
    return sum(
        math.prod(tensor["shape"])
        for path in files.list_weights()
        for tensor in read_header(path, files.place).values()
    )
