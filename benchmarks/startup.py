"""
Measure what starting costs, beside what one pays anyway.

`import embedkit` stands beside numpy and attrs, and `embedkit profiles` beside `import sentence_transformers`.

Each row is a whole fresh process; contenders take turns, so that a drifting machine moves them alike. Prints medians,
ratios and versions.

    python benchmarks/startup.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import statistics
import subprocess
import sys
import time

PYTHON = sys.executable

COMMANDS = {
    "python, nothing": [PYTHON, "-c", ""],
    "import numpy, attrs": [PYTHON, "-c", "import numpy, attrs"],
    "import embedkit": [PYTHON, "-c", "import embedkit"],
    "embedkit profiles": [PYTHON, "-m", "embedkit", "profiles"],
    "import sentence_transformers": [PYTHON, "-c", "import sentence_transformers"],
}

RATIOS = (
    ("import embedkit", "import numpy, attrs", 3.0),
    ("embedkit profiles", "import sentence_transformers", 0.1),
)
"""Contender, peer, and the ratio of wall times that is promised."""


def measure(command: list[str]) -> float:
    """Run a command once and give its wall time in seconds."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> int:
    """Print the table; exit code 1 when a promised ratio is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds

    commands = dict(COMMANDS)
    if importlib.util.find_spec("sentence_transformers") is None:
        del commands["import sentence_transformers"]
    for command in commands.values():
        measure(command)  # warms the file cache
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            seconds[name].append(measure(command))

    print(f"{'process':<32}{'median s':>10}{'min':>8}{'max':>8}")
    for name, values in seconds.items():
        print(f"{name:<32}{statistics.median(values):>10.3f}{min(values):>8.3f}{max(values):>8.3f}")
    missed = 0
    for name, peer, promised in RATIOS:
        if peer in seconds:
            ratio = statistics.median(own / other for own, other in zip(seconds[name], seconds[peer], strict=True))
            missed += ratio > promised
            print(f"{name} / {peer}: {ratio:.2f} (promised: at most {promised:g})")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("embedkit-core", "numpy", "attrs"))
    print(f"{versions}; Python {platform.python_version()}, {platform.system()} {platform.machine()}, {rounds} rounds")
    return min(missed, 1)


if __name__ == "__main__":
    raise SystemExit(main())
