"""
Measure profiles on this machine: throughput, latency of one query, time from a cold start, memory.

Owns how it is measured. Every turn of a profile is a process of its own, so that loading is cold, peak memory is that
of one model, and only one model is in memory at a time. Profiles take turns, round by round, so that a drifting machine
moves them alike. Gives values and prints nothing.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

import attrs
import numpy as np

from embedkit.api import get_embedder, prepare
from embedkit.config import Config, read_config
from embedkit.errors import BackendError, EmbedkitError, InputError, UnknownProfileError
from embedkit.profile import Profile
from embedkit.registry import Registry, default_registry
from embedkit.resolve import require_no_identity_override
from embedkit.sample_texts import build_queries

NOISY_SPREAD = 0.15
"""Rounds of one profile that differ by more than this share of their median are not explained by the profile."""

NOISY_QUERY_SPREAD = 0.5
"""As `NOISY_SPREAD`, of the median single query: it takes milliseconds, and rounds differ more."""

NOISY_SHARE = 0.1
"""Other processes that use more than this share of the processors slow down what is measured."""

SHORT_S = 0.5
"""What takes less time than this is not measured well."""

N_QUERIES = 40
N_ROUNDS = 3

_N_WARM_QUERIES = 5
_WARM_STRIDE = 10
_LEAST_WARM = 8
_POLL_S = 0.2
_TELL_S = 0.2
_LEAVE_S = 5.0

# Ctrl-C reaches the whole group of processes; who ends them is the parent.
_START = (
    "import json, signal, sys;"
    "signal.signal(signal.SIGINT, signal.SIG_IGN);"
    "sys.path[:] = json.loads(sys.stdin.buffer.readline());"
    "from embedkit.benchmark import serve_turn;"
    "serve_turn()"
)


class Progress(Protocol):
    """Hears how far the work has come."""

    def begin(self, doing: str, total: int | None = None) -> None:
        """Go over to the next piece of work, of *total* texts where that is known."""
        ...

    def advance(self, n: int) -> None:
        """Count *n* more texts as done."""
        ...


@attrs.frozen(kw_only=True)
class Turn:
    """
    Hold what one process measured of one profile.

    Attributes:
        texts_per_s: Documents embedded in a second, in one call with all of them.

        tokens_per_s: Tokens that the model read in a second; None when the provider does not tell.

        query_p50_s: Half of the single queries took at most so long.

        query_p95_s: 95 of 100 single queries took at most so long.

        load_s: Loading the model, with the libraries that it needs.

        first_vector_s: From starting the process to the first vector.

        peak_memory_bytes: The most resident memory that the process ever had; a GPU's own memory is not in it. None
            where the system does not tell.

        documents_s: How long the documents took.

        other_cpus: How many processors other processes kept busy meanwhile.
    """

    texts_per_s: float
    tokens_per_s: float | None
    query_p50_s: float
    query_p95_s: float
    load_s: float
    first_vector_s: float
    peak_memory_bytes: int | None
    documents_s: float
    other_cpus: float


@attrs.frozen(kw_only=True)
class Summary:
    """
    Sum up one figure over the rounds.

    Attributes:
        median: Of the rounds.

        low: The lowest round.

        high: The highest round.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Sum up one value or more."""
        return cls(median=statistics.median(values), low=min(values), high=max(values))

    @property
    def spread(self) -> float:
        """How far the rounds lie apart, as a share of their median."""
        return (self.high - self.low) / self.median if self.median else 0.0


@attrs.frozen(kw_only=True)
class Contender:
    """
    Hold the results of one profile.

    Attributes:
        profile: As it was measured.

        turns: One for each round that it finished.

        device: Where the model ran; empty when unknown.

        dtype: The precision that it computed in; empty when unknown.

        n_truncated: Texts that the model did not read to their end.

        warnings: What the library or the provider warned of.

        failure: Why it has no results, or fewer than there were rounds; None when all went well.
    """

    profile: str
    model: str
    turns: tuple[Turn, ...] = ()
    device: str = ""
    dtype: str = ""
    n_truncated: int = 0
    warnings: tuple[str, ...] = ()
    failure: EmbedkitError | None = None

    def summarize(self, figure: str) -> Summary | None:
        """Sum up a field of `Turn` over the rounds; None without turns, or when it is unknown."""
        values = [getattr(turn, figure) for turn in self.turns]
        return Summary.of(values) if values and None not in values else None


@attrs.frozen(kw_only=True)
class Benchmark:
    """
    Hold what was measured.

    Attributes:
        contenders: In the order in which they were named.

        n_texts: Different documents that each turn embedded.

        n_queries: Single queries of each turn.

        n_rounds: How often each profile was to take a turn.

        machine: What it ran on, for people, by kind.

        noise: Why the figures may not be trusted; empty on a quiet machine.
    """

    contenders: tuple[Contender, ...]
    n_texts: int
    n_queries: int
    n_rounds: int
    machine: Mapping[str, str]
    noise: tuple[str, ...]


def run_benchmark(
    profiles: Sequence[str | Profile | None] = (None,),
    *,
    texts: Sequence[str],
    queries: Sequence[str] | None = None,
    n_rounds: int = N_ROUNDS,
    device: str | None = None,
    progress: Progress | None = None,
    config: Config | None = None,
    registry: Registry | None = None,
) -> Benchmark:
    """
    Measure profiles side by side.

    Before the first round each profile has a turn that does not count: it may download, check and cache. What goes
    wrong with a profile is kept with it, and the others go on.

    Args:
        profiles: Names, or profiles made in code; None is the active one. One may be named twice: how far its results
            lie apart is the error of the measurement.

        texts: Documents; duplicates are left out, for they would be embedded once.

        queries: Embedded one at a time; left out: 40 questions of about twelve tokens.

        n_rounds: How often each profile takes a turn.

        device: Stands above every setting.

        progress: Hears how far it is.

        config: Read now, unless given.

        registry: Only to find providers; each turn finds the plugins anew.

    Raises:
        ConfigError: A name is not declared, or a variable would make several profiles the same.
        InputError: There is no text, or no query.
    """
    config = config or read_config()
    registry = registry or default_registry()
    texts = tuple(dict.fromkeys(texts))
    queries = tuple(build_queries(N_QUERIES) if queries is None else queries)
    if not texts or not queries:
        raise InputError("There is no text to measure with.", hint="give at least one text and one query")
    if len(profiles) > 1:
        require_no_identity_override(config, "bench")
    work = _Work(texts=texts, queries=queries, progress=progress or _Unheard())
    runs = [_Run.of(profile, device, config, registry) for profile in profiles]
    # The first round is the warm-up.
    for number in range(n_rounds + 1):
        for run in runs:
            if run.failure is None:
                run.take_turn(work, number, n_rounds)
    contenders = tuple(run.to_contender(config.warnings) for run in runs)
    return Benchmark(
        contenders=contenders,
        n_texts=len(texts),
        n_queries=len(queries),
        n_rounds=n_rounds,
        machine=_describe_machine(),
        noise=tuple(find_noise(contenders, n_cpus=os.cpu_count() or 1)),
    )


def compute_ratio(contender: Contender, first: Contender, figure: str = "texts_per_s") -> Summary | None:
    """
    Compare two profiles round by round: what moved the machine in a round moved both.

    Args:
        contender: Its figure is divided by that of *first*.

        first: What it is compared with.

        figure: A field of `Turn`.

    Returns:
        The ratio; None when one of them has no such figure.
    """
    rounds = zip(contender.turns, first.turns, strict=False)
    pairs = [(getattr(own, figure), getattr(other, figure)) for own, other in rounds]
    known = [own / other for own, other in pairs if own is not None and other]
    return Summary.of(known) if known else None


def find_noise(contenders: Sequence[Contender], *, n_cpus: int) -> Iterator[str]:
    """
    Say why figures may not be trusted.

    Args:
        contenders: What was measured.

        n_cpus: How many processors the machine has.

    Yields:
        Sentences.
    """
    for contender in contenders:
        speed = contender.summarize("texts_per_s")
        if speed is not None and speed.spread > NOISY_SPREAD:
            yield (
                f"The rounds of {contender.profile} differ by {speed.spread:.0%} in documents a second: "
                "the machine is noisy."
            )
        query = contender.summarize("query_p50_s")
        if query is not None and query.spread > NOISY_QUERY_SPREAD:
            yield f"The rounds of {contender.profile} differ by {query.spread:.0%} in a single query's time."
        seconds = contender.summarize("documents_s")
        if seconds is not None and seconds.median < SHORT_S:
            yield f"{contender.profile} embeds these texts in {seconds.median:.2g} s, too fast to measure: take more."
    busy = max((turn.other_cpus for contender in contenders for turn in contender.turns), default=0.0)
    if busy > NOISY_SHARE * n_cpus:
        yield f"Other processes kept up to {busy:.1f} of {n_cpus} processors busy: the machine is noisy."


def measure_turn(job: Job, tell: Callable[..., None], *, registry: Registry | None = None) -> dict[str, object]:
    """
    Load a profile's model in this process, and measure it.

    Args:
        job: What to measure.

        tell: Called with what has just happened: `event="vector"` after the first vector, `event="embedding"` with the
            number of texts, `event="done"` with how many are done.

        registry: The process's, unless given.

    Returns:
        The figures of this process.

    Raises:
        EmbedkitError: The profile cannot be used.
    """
    started = time.perf_counter()
    with get_embedder(job.profile, registry=registry) as embedder:
        embedder.load()
        load_s = time.perf_counter() - started
        embedder.embed_query(job.queries[0])
        tell(event="vector")
        for query in job.queries[:_N_WARM_QUERIES]:
            embedder.embed_query(query)
        embedder.embed_documents(job.texts[:: max(1, min(_WARM_STRIDE, len(job.texts) // _LEAST_WARM))])
        seconds = []
        for query in job.queries:
            started = time.perf_counter()
            embedder.embed_query(query)
            seconds.append(time.perf_counter() - started)
        tell(event="embedding", n=len(job.texts))
        started = time.perf_counter()
        reports = [part.report for part in embedder.stream_documents(job.texts, progress=_tell_sometimes(tell))]
        documents_s = time.perf_counter() - started
    counts = [report.n_tokens for report in reports]
    p50, p95 = np.percentile(seconds, [50, 95]).tolist()
    return {
        "texts_per_s": len(job.texts) / documents_s,
        "tokens_per_s": None if None in counts else sum(filter(None, counts)) / documents_s,
        "query_p50_s": p50,
        "query_p95_s": p95,
        "load_s": load_s,
        "documents_s": documents_s,
        "peak_memory_bytes": read_peak_memory(),
        "cpu_s": sum(os.times()[:4]),
        "device": reports[0].device,
        "dtype": reports[0].dtype,
        "n_truncated": sum(len(report.truncated) for report in reports),
    }


def read_peak_memory() -> int | None:
    """Give the most resident memory that this process ever had, in bytes; None where the system does not tell."""
    if sys.platform == "win32":
        import psutil  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415  # costs time, and few need it

        return int(psutil.Process().memory_info().peak_wset)
    # What getrusage says on Linux may be the peak of the process that started this one.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # noqa: PLC0415  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@attrs.frozen(kw_only=True)
class Job:
    """
    Hold what a turn is asked to do.

    Attributes:
        profile: Taken as it is.

        texts: Documents, embedded in one call.

        queries: Embedded one at a time.
    """

    profile: Profile
    texts: tuple[str, ...]
    queries: tuple[str, ...]


def serve_turn() -> None:
    """Be the process of a turn: read the job from stdin, write events to stdout, one JSON object a line."""
    job = pickle.load(sys.stdin.buffer)  # noqa: S301  # written by the process that started this one
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", newline="\n") as channel:
        # What a library prints must not get among the answers.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        def tell(**event: object) -> None:
            channel.write(f"{json.dumps(event)}\n")
            channel.flush()

        logging.getLogger("embedkit").addHandler(_Telling(tell))
        try:
            tell(event="result", **measure_turn(job, tell))
        except EmbedkitError as error:
            tell(event="failure", problem=error.problem, origin=error.origin, hint=error.hint)
        except Exception as error:  # noqa: BLE001  # a fault of one provider must not end the others' work
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"
            tell(event="failure", problem=problem, origin="", hint=_suggest_look(job.profile))


class _Telling(logging.Handler):
    """Passes on what the library warns of."""

    def __init__(self, tell: Callable[..., None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(event="warning", message=record.getMessage())


def _tell_sometimes(tell: Callable[..., None]) -> Callable[[int], None]:
    """Count texts, and tell only now and then: telling must not cost what is measured."""
    n_waiting, told_at = 0, time.perf_counter()

    def count(n: int) -> None:
        nonlocal n_waiting, told_at
        n_waiting += n
        if (now := time.perf_counter()) - told_at > _TELL_S:
            tell(event="done", n=n_waiting)
            n_waiting, told_at = 0, now

    return count


def _suggest_look(profile: Profile) -> str:
    return f"see the whole error: echo text | embedkit --profile {profile.name} embed --query"


class _Unheard:
    """The progress of a caller who does not ask."""

    def begin(self, doing: str, total: int | None = None) -> None:
        pass

    def advance(self, n: int) -> None:
        pass


@attrs.frozen(kw_only=True)
class _Work:
    """What every turn does, and who hears of it."""

    texts: tuple[str, ...]
    queries: tuple[str, ...]
    progress: Progress


@attrs.define(kw_only=True)
class _Run:
    """One profile's turns so far."""

    name: str
    profile: Profile | None = None
    turns: list[Turn] = attrs.field(factory=list)
    answer: Mapping[str, Any] = attrs.field(factory=dict)
    warnings: dict[str, None] = attrs.field(factory=dict)
    failure: EmbedkitError | None = None

    @classmethod
    def of(cls, profile: str | Profile | None, device: str | None, config: Config, registry: Registry) -> _Run:
        """Resolve a profile; what is wrong with it is kept, but for a name that is not declared."""
        name = profile.name if isinstance(profile, Profile) else config.choose_profile(profile)[0]
        try:
            return cls(name=name, profile=prepare(profile, device=device, config=config, registry=registry).profile)
        except UnknownProfileError:
            raise
        except EmbedkitError as failure:
            return cls(name=name, failure=failure)

    def take_turn(self, work: _Work, number: int, n_rounds: int) -> None:
        """Run a process for one turn; number 0 is the warm-up, which takes few texts and is not counted."""
        assert self.profile is not None
        job = Job(profile=self.profile, texts=work.texts, queries=work.queries)
        if number == 0:
            job = attrs.evolve(job, texts=job.texts[:_LEAST_WARM], queries=job.queries[:1])
        label = f"{self.name}, round {number} of {n_rounds}" if number else f"{self.name}, warm-up"
        work.progress.begin(f"{label}: loading", None)
        try:
            turn = self._listen(job, label, work.progress)
        except EmbedkitError as failure:
            self.failure = failure
            return
        if number:
            self.turns.append(turn)

    def to_contender(self, known_warnings: Sequence[str]) -> Contender:
        """Give what was found; warnings of the configuration are not this profile's."""
        return Contender(
            profile=self.name,
            model="" if self.profile is None else self.profile.model,
            turns=tuple(self.turns),
            device=self.answer.get("device", ""),
            dtype=self.answer.get("dtype", ""),
            n_truncated=self.answer.get("n_truncated", 0),
            warnings=tuple(warning for warning in self.warnings if warning not in known_warnings),
            failure=self.failure,
        )

    def _listen(self, job: Job, label: str, progress: Progress) -> Turn:
        load = _Load()
        first_vector_s = 0.0
        with _start_process(job) as events:
            for event in events:
                kind = event.pop("event")
                if kind == "vector":
                    first_vector_s = load.elapsed_s
                    progress.begin(f"{label}: queries", None)
                elif kind == "embedding":
                    progress.begin(label, event["n"])
                elif kind == "done":
                    progress.advance(event["n"])
                elif kind == "warning":
                    self.warnings[event["message"]] = None
                elif kind == "failure":
                    raise BackendError(event["problem"], origin=event["origin"], hint=event["hint"])
                else:
                    other_cpus = load.count_other_cpus(event["cpu_s"])
                    self.answer = event
                    break
        figures = {name: event[name] for name in attrs.fields_dict(Turn) if name in event}
        return Turn(**figures, first_vector_s=first_vector_s, other_cpus=other_cpus)


class _Load:
    """How busy the machine is, since this was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._busy_s = self._read_busy()
        self._own_s = time.process_time()

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started

    def count_other_cpus(self, child_s: float) -> float:
        """Give how many processors were busy with neither this process nor its child, on average."""
        own_s = time.process_time() - self._own_s + child_s
        return max(0.0, self._read_busy() - self._busy_s - own_s) / self.elapsed_s

    @staticmethod
    def _read_busy() -> float:
        import psutil  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415  # costs time, and few need it

        times = psutil.cpu_times()
        return float(times.user + times.system + getattr(times, "nice", 0.0))


@contextmanager
def _start_process(job: Job) -> Iterator[Iterator[dict[str, Any]]]:
    """Start the process of a turn, give its events as they come, and end it whatever happens."""
    with tempfile.TemporaryFile() as errors:
        # -P: a file of the working directory must not stand in for a library.
        process = subprocess.Popen(  # noqa: S603  # ourselves
            [sys.executable, "-P", "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            # A process that died at once says more by its exit code than this does.
            with suppress(OSError):
                process.stdin.write(json.dumps(sys.path).encode() + b"\n")
                pickle.dump(job, process.stdin)
                process.stdin.flush()
            yield _read_events(process, process.stdout, errors, job.profile)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LEAVE_S)
        finally:
            process.kill()
            process.wait()
            with suppress(OSError):
                process.stdin.close()


def _read_events(
    process: subprocess.Popen[bytes], stdout: IO[bytes], errors: IO[bytes], profile: Profile
) -> Iterator[dict[str, Any]]:
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def read() -> None:
        with stdout:
            for line in stdout:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            # Waiting without an end could not be interrupted on Windows.
            line = lines.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        if line is None:
            break
        yield json.loads(line)
    code = process.wait()
    errors.seek(0)
    said = errors.read().decode(errors="replace").split("\n")
    last = next((text.strip().rstrip(".") for text in reversed(said) if text.strip()), "")
    raise BackendError(
        f"The process of profile {profile.name!r} ended with code {code}{f': {last}' if last else ''}.",
        hint="for lack of memory, choose a smaller model or batch size"
        if code == -9  # noqa: PLR2004  # how Linux ends a process when memory runs out
        else _suggest_look(profile),
    )


def _describe_machine() -> dict[str, str]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
        "python": platform.python_version(),
    }
