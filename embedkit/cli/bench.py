"""`embedkit bench`: measure profiles on this machine, side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from embedkit.cli import output
from embedkit.cli.arguments import complete_profile, device_option, find_registry, json_option, profile_option

if TYPE_CHECKING:
    from embedkit.benchmark import Benchmark, Contender, Summary
    from embedkit.errors import EmbedkitError

N_TEXTS = 400
"""A processor embeds so many in a few seconds with a small model; a GPU wants more."""


@click.command(
    "bench",
    short_help="Measure profiles on this machine, side by side.",
    help="""
    Measure PROFILES (the active one, unless some are named): documents and tokens in a second, how long a single query
    takes, how long a fresh process takes to its first vector, and peak memory.

    Every turn of a profile is a fresh process. Profiles take turns, round by round; each figure is the median of the
    rounds, with the lowest and the highest. A profile that cannot be used is reported, and the others go on; the exit
    code is then 1. A provider that sends texts to a server sends these, too, and it may cost.
    """,
    epilog="""
    \b
    Examples:
      embedkit bench
      embedkit bench mini speed --plot bench.png
      embedkit bench speed --file talks.txt --rounds 5 --json
      embedkit bench mini mini       how far apart two equal ones are: the error of the measurement
    """,
)
@click.argument("profiles", nargs=-1, metavar="[PROFILE]...", shell_complete=complete_profile)
@click.option("--texts", "n_texts", type=click.IntRange(min=1), help=f"So many built-in texts; {N_TEXTS} unless given.")
@click.option(
    "--file",
    "file",
    metavar="FILE",
    type=click.Path(),
    help="Texts of your own instead, one a line; - is standard input.",
)
@click.option("--rounds", "n_rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Turns of each.")
@click.option("--plot", metavar="FILE.png", type=click.Path(path_type=Path), help="Draw the figures; needs matplotlib.")
@json_option
@profile_option
@device_option
def bench(
    *,
    profiles: tuple[str, ...],
    n_texts: int | None,
    file: str | None,
    n_rounds: int,
    plot: Path | None,
    as_json: bool,
    profile: str | None,
    device: str | None,
) -> int:
    """Measure profiles side by side."""
    if profiles and profile is not None:
        raise click.UsageError("Profiles are named as arguments or by --profile, not both.")
    if n_texts is not None and file is not None:
        raise click.UsageError("Only one of --texts and --file can be given.")
    from embedkit.benchmark import run_benchmark

    if plot is not None:
        from embedkit.cli.plot import require_plot

        require_plot(plot)
    with output.Progress("reading") as progress:
        benchmark = run_benchmark(
            profiles or (profile,),
            texts=_read_texts(file, n_texts or N_TEXTS),
            n_rounds=n_rounds,
            device=device,
            progress=progress,
            registry=find_registry(),
        )
    finished = [contender for contender in benchmark.contenders if contender.turns]
    if as_json:
        output.print_json(_to_json(benchmark))
    elif finished:
        _print(benchmark, finished)
    if plot is not None and finished:
        from embedkit.cli.plot import draw_benchmark

        draw_benchmark(plot, benchmark, finished)
        output.say(f"drawn: {plot}")
    return _report(benchmark)


def _read_texts(file: str | None, n_texts: int) -> list[str]:
    if file is None:
        from embedkit.sample_texts import build_texts

        return build_texts(n_texts)
    from embedkit.documents import read_lines

    return [document.text for document in read_lines(file)]


def _print(benchmark: Benchmark, finished: list[Contender]) -> None:
    from embedkit.benchmark import compute_ratio

    def count(number: float) -> str:
        return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"  # noqa: PLR2004  # a thousand

    def line(name: str, figure: str, write: Callable[[float], str] = count) -> tuple[str, ...]:
        return (name, *(_describe(contender.summarize(figure), write) for contender in finished))

    rows = [
        ("device", *(", ".join(filter(None, [one.device, one.dtype])) or "-" for one in finished)),
        line("texts/s", "texts_per_s"),
    ]
    if len(finished) > 1:
        ratios = (_describe(compute_ratio(one, finished[0]), count) for one in finished[1:])
        rows.append((f"  times {finished[0].profile}", "", *ratios))
    rows += [
        line("tokens/s", "tokens_per_s"),
        line("one query, p50 ms", "query_p50_s", lambda seconds: count(seconds * 1000)),
        line("one query, p95 ms", "query_p95_s", lambda seconds: count(seconds * 1000)),
        line("model loaded, s", "load_s"),
        line("first vector, s", "first_vector_s"),
        line("peak memory", "peak_memory_bytes", lambda size: output.format_bytes(int(size))),
    ]
    output.print_table(("", *(contender.profile for contender in finished)), rows)
    rounds = f"{benchmark.n_rounds} rounds: median (lowest - highest)" if benchmark.n_rounds > 1 else "1 round"
    machine = benchmark.machine
    output.say(
        f"{benchmark.n_texts:,} texts, {benchmark.n_queries} queries, {rounds}; "
        f"{machine['system']}, {machine['cpus']} processors, Python {machine['python']}"
    )


def _describe(summary: Summary | None, write: Callable[[float], str]) -> str:
    if summary is None:
        return "-"
    low, high = write(summary.low), write(summary.high)
    return write(summary.median) if low == high else f"{write(summary.median)} ({low} - {high})"


def _report(benchmark: Benchmark) -> int:
    """Say what went wrong and what to be careful with, and give the exit code."""
    for contender in benchmark.contenders:
        for warning in contender.warnings:
            output.warn(f"{contender.profile}: {warning}")
        if contender.n_truncated:
            output.warn(
                f"{contender.profile} reads {contender.n_truncated:,} of {benchmark.n_texts:,} texts not to their end"
            )
    for noise in benchmark.noise:
        output.warn(noise)
    failures = [contender for contender in benchmark.contenders if contender.failure is not None]
    if len(benchmark.contenders) == 1 and failures and failures[0].failure is not None:
        raise failures[0].failure
    for contender in failures:
        output.say(f"{contender.profile} failed: {contender.failure}")
    return 1 if failures else 0


def _to_json(benchmark: Benchmark) -> dict[str, object]:
    return {
        "texts": benchmark.n_texts,
        "queries": benchmark.n_queries,
        "rounds": benchmark.n_rounds,
        "machine": dict(benchmark.machine),
        "noise": list(benchmark.noise),
        "profiles": [_contender_to_json(contender, benchmark.contenders[0]) for contender in benchmark.contenders],
    }


def _contender_to_json(contender: Contender, first: Contender) -> dict[str, object]:
    from embedkit.benchmark import Turn, compute_ratio

    return {
        "profile": contender.profile,
        "model": contender.model,
        "device": contender.device,
        "dtype": contender.dtype,
        "truncated": contender.n_truncated,
        **{
            figure: _summary_to_json(contender.summarize(figure), [getattr(turn, figure) for turn in contender.turns])
            for figure in attrs.fields_dict(Turn)
        },
        "times_first": _summary_to_json(compute_ratio(contender, first)),
        "warnings": list(contender.warnings),
        "failure": _failure_to_json(contender.failure),
    }


def _summary_to_json(summary: Summary | None, rounds: list[float] | None = None) -> dict[str, object] | None:
    if summary is None:
        return None
    return attrs.asdict(summary) | ({} if rounds is None else {"rounds": rounds})


def _failure_to_json(failure: EmbedkitError | None) -> dict[str, str] | None:
    if failure is None:
        return None
    return {"problem": failure.problem, "origin": failure.origin, "hint": failure.hint}
