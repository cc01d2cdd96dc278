"""
Draw figures into a PNG.

Owns matplotlib, which is optional and imported only here, when a plot was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from embedkit.benchmark import Benchmark, Contender

_COLORS = ("#4477aa", "#66ccee", "#ccbb44")
_INK = "#333333"


def require_plot(path: Path) -> None:
    """
    Refuse what would fail only after the work.

    Raises:
        InputError: The file is no PNG, or its directory is not there.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"A plot is a PNG, not {path.name}.", hint=f"--plot {path.with_suffix('.png')}")
    if not path.parent.is_dir():
        raise InputError(f"There is no directory {path.parent}.", hint="create it, or choose another place for --plot")
    try:
        import matplotlib as mpl  # noqa: F401  # only whether it is there
    except ImportError as error:
        raise MissingDependencyError(
            f"--plot needs matplotlib, which cannot be imported: {error}.",
            hint='python -m pip install "embedkit-core[plot]"',
        ) from error


def draw_benchmark(path: Path, benchmark: Benchmark, contenders: Sequence[Contender]) -> None:
    """
    Draw throughput, latency of a query, and memory, one bar for each profile, with the range of its rounds.

    Args:
        path: The PNG; an older one is replaced.

        benchmark: What was measured.

        contenders: Those of its profiles that have results.

    Raises:
        EmbedkitError: The file cannot be written.
    """
    # Not pyplot: it would look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.9 + 0.6 * len(contenders)), dpi=150, layout="constrained")
    speed, latency, memory = figure.subplots(1, 3, sharey=True)
    _draw_bars(speed, contenders, "texts_per_s", color=_COLORS[0])
    speed.set(title="documents", xlabel="texts/s, more is better")
    names = [f"{one.profile}\n{', '.join(filter(None, [one.device, one.dtype]))}".strip() for one in contenders]
    speed.set_yticks(range(len(names)), names)
    speed.invert_yaxis()
    _draw_bars(latency, contenders, "query_p50_s", scale=1000, color=_COLORS[1], mark="query_p95_s")
    latency.set(title="one query", xlabel="ms, p50 (bar) / p95 (diamond), less is better")
    _draw_bars(memory, contenders, "peak_memory_bytes", scale=1e-6, color=_COLORS[2])
    memory.set(title="peak memory of the process", xlabel="MB, less is better")
    machine = benchmark.machine
    rounds = f"median and range of {benchmark.n_rounds} rounds" if benchmark.n_rounds > 1 else "1 round"
    figure.suptitle(
        f"{benchmark.n_texts:,} texts, {rounds}; {machine['system']}, {machine['cpus']} processors", fontsize="medium"
    )
    try:
        figure.savefig(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}.", hint="choose another place for --plot"
        ) from error


def _draw_bars(
    axes: Any,  # noqa: ANN401  # matplotlib's
    contenders: Sequence[Contender],
    figure: str,
    *,
    color: str,
    scale: float = 1.0,
    mark: str = "",
) -> None:
    """Draw a bar for the median of a figure, a whisker for its range, and a mark for the median of another figure."""
    farthest = 0.0
    for position, contender in enumerate(contenders):
        summary = contender.summarize(figure)
        if summary is None:
            continue
        median, low, high = scale * summary.median, scale * summary.low, scale * summary.high
        whisker = {"ecolor": _INK, "capsize": 4}
        axes.barh(position, median, height=0.6, xerr=[[median - low], [high - median]], color=color, error_kw=whisker)
        end, written = high, _write(median)
        marked = contender.summarize(mark) if mark else None
        if marked is not None:
            axes.plot(scale * marked.median, position, "D", color=_INK, markersize=5)
            end, written = max(high, scale * marked.median), f"{written} / {_write(scale * marked.median)}"
        # Beyond whisker and mark, so that nothing covers the number.
        axes.annotate(written, (end, position), xytext=(8, 0), textcoords="offset points", va="center")
        farthest = max(farthest, end)
    axes.set_xlim(0, 1.45 * farthest or 1.0)
    axes.spines[["top", "right"]].set_visible(False)


def _write(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"  # noqa: PLR2004  # three digits
