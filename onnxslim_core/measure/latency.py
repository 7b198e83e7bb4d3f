"""How long whole models take against each other, with an interval that one can stand on.

A and B are called in turns within one process, in shuffled order, with garbage collection off. Every round builds its
sessions anew, since where a session happens to lie in memory moves its timing by several per cent; calls within one
session therefore say little about the next, and the interval is a bootstrap over rounds first and calls second. Few
rounds make a percentile interval too narrow, so it is widened as Student's t asks (Hesterberg, "What teachers should
know about the bootstrap", 2015). In the same rounds a second session of A is timed against the first: the machine's own
noise, reported beside the result. Its calls are references too, so each round gives two ratios per call of B.

With one thread onnxruntime works on the calling thread, and the time that this thread spent on a CPU is taken: unlike
wall clock it does not count what other programs take. Where the process is seen to use more CPU than this thread, work
is done elsewhere and wall clock is taken.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxslim_core.errors import MeasureError
from onnxslim_core.measure.session import feeds_for, open_session, run
from onnxslim_core.rewrite import Progress, Sample

if TYPE_CHECKING:
    from onnxslim_core.model import Model

__all__ = [
    "Alone",
    "Interval",
    "Latency",
    "Stopwatch",
    "compare_latency",
    "interval",
    "measure_alone",
    "student",
    "time_rounds",
]

Call = Callable[[], object]

_ENOUGH = 0.02
"""Measuring ends early once the interval is this narrow."""
_MOST_CALLS = 200
_RESAMPLES = 500
# two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with its 95 % interval."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Time of a candidate over time of a reference.

    Attributes:
        ratio: Median of the per-pair ratios; below 1 where the candidate is faster.
        low: Lower end of the 95 % interval.
        high: Upper end.
        reference_ms: Median time of a call, in milliseconds.
        candidate_ms: The same of the candidate.
        noise: The reference against itself in the same rounds; None where that was not asked for.
        pairs: Ratios that went in.
        sessions: Rounds of freshly built sessions.
        threads: Within one operator; nodes run one after the other, with all of onnxruntime's graph optimizations.
        batch: First axis of the first input that has one.
        seconds: What measuring took.
        clock: "thread" (CPU time of the calling thread) or "wall".
    """

    ratio: float
    low: float
    high: float
    reference_ms: float
    candidate_ms: float
    noise: Interval | None
    pairs: int
    sessions: int
    threads: int
    batch: int
    seconds: float
    clock: str

    @property
    def verdict(self) -> str:
        """One of "faster", "slower", "not slower", "inconclusive"."""
        if self.high < 1:
            return "faster"
        if self.low > 1.02:
            return "slower"
        return "not slower" if self.high - self.low <= 0.10 else "inconclusive"


@dataclass(frozen=True, slots=True)
class Alone:
    """Time of one model: a median in milliseconds with its 95 % interval over sessions and calls."""

    ms: float
    low: float
    high: float
    calls: int
    sessions: int
    threads: int
    batch: int
    seconds: float
    clock: str


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """The clocks, in nanoseconds; a test brings its own."""

    wall: Callable[[], int] = time.perf_counter_ns
    thread: Callable[[], int] = time.thread_time_ns
    process: Callable[[], int] = time.process_time_ns


@dataclass(frozen=True, slots=True)
class _Times:
    """Times of calls in nanoseconds: one array [calls, models, 3 clocks] (wall, thread, process) per round."""

    rounds: tuple[np.ndarray, ...]
    threads: int
    seconds: float

    @property
    def clock(self) -> str:
        """Thread time, where one thread is asked for and it accounts for what the process did meanwhile."""
        if self.threads != 1:
            return "wall"
        typical = np.median(np.concatenate(self.rounds), axis=0)
        return "thread" if (typical[:, 1] >= 0.9 * typical[:, 2]).all() else "wall"

    def logs(self) -> list[np.ndarray]:
        """Natural logarithms by the clock that holds: one array [calls, models] per round."""
        index = 1 if self.clock == "thread" else 0
        return [np.log(np.maximum(r[:, :, index], 1.0)) for r in self.rounds]


def compare_latency(
    reference: Model,
    candidate: Model,
    sample: Sample,
    *,
    threads: int = 1,
    seconds: float = 20.0,
    sessions: int = 5,
    seed: int = 0,
    aa: bool = True,
    progress: Progress | None = None,
) -> Latency:
    """Time two models against each other.

    Args:
        reference: What the candidate is held against.
        candidate: Takes the same sample.
        sample: One call's inputs; its first axis is the batch.
        threads: Within one operator.
        seconds: Measuring takes about this long at most, and less once the interval is narrow. Two rounds are always
            made, since without them there is no interval.
        sessions: Fewest rounds of fresh sessions, if the time suffices.
        seed: Of the order of calls and of the bootstrap.
        aa: Whether to time the reference against itself too.
        progress: Told the seconds that have gone.

    Raises:
        MeasureError: if one of the models does not load or run.
    """
    models = [reference, candidate, reference] if aa else [reference, candidate]
    rng = np.random.default_rng(seed)

    def build() -> list[Call]:
        calls: list[Call | None] = [None] * len(models)
        for index in rng.permutation(len(models)):
            calls[index] = _caller(models[index], sample, threads)
        return [call for call in calls if call is not None]

    times = time_rounds(
        build, ratios, threads=threads, seconds=seconds, sessions=sessions, seed=seed, progress=progress
    )
    return _latency(times, _batch(sample), seed)


def _latency(times: _Times, batch: int, seed: int) -> Latency:
    logs = times.logs()
    found = interval(ratios(logs), seed=seed)
    each = np.concatenate(logs)
    has_aa = each.shape[1] == 3
    noise = interval([r[:, 2:3] - r[:, 0:1] for r in logs], seed=seed) if has_aa else None
    return Latency(
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        reference_ms=float(np.exp(np.median(each[:, 0]))) / 1e6,
        candidate_ms=float(np.exp(np.median(each[:, 1]))) / 1e6,
        noise=noise,
        pairs=sum(r.size for r in ratios(logs)),
        sessions=len(logs),
        threads=times.threads,
        batch=batch,
        seconds=times.seconds,
        clock=times.clock,
    )


def measure_alone(
    model: Model,
    sample: Sample,
    *,
    threads: int = 1,
    seconds: float = 10.0,
    sessions: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Alone:
    """Time one model; see `compare_latency` for the arguments.

    Raises:
        MeasureError: if the model does not load or run.
    """

    def build() -> list[Call]:
        return [_caller(model, sample, threads)]

    times = time_rounds(build, list, threads=threads, seconds=seconds, sessions=sessions, seed=seed, progress=progress)
    logs = times.logs()
    found = interval(logs, seed=seed)
    ms, low, high = found.ratio / 1e6, found.low / 1e6, found.high / 1e6
    return Alone(ms, low, high, sum(map(len, logs)), len(logs), threads, _batch(sample), times.seconds, times.clock)


def ratios(logs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Logarithms of the candidate's time over the reference's: [calls, references] per round.

    Args:
        logs: Per round [calls, models]: the reference, the candidate and, it may be, the reference once more.
    """
    return [r[:, 1:2] - r[:, [0, 2] if r.shape[1] == 3 else [0]] for r in logs]


def interval(rounds: Sequence[np.ndarray], *, seed: int = 0, resamples: int = _RESAMPLES) -> Interval:
    """The median of all values and its 95 % interval, by a bootstrap over rounds first and calls second.

    Args:
        rounds: Logarithms, [calls, ...] per round; what belongs to one call is drawn together.
        seed: Of the bootstrap.
        resamples: How often it is drawn.

    Returns:
        The exponentials. With a single round the interval is all positive numbers.
    """
    if not rounds:
        raise MeasureError("no timing to judge")
    centre = float(np.median(np.concatenate([r.reshape(-1) for r in rounds])))
    count = len(rounds)
    if count < 2:
        return Interval(float(np.exp(centre)), 0.0, float("inf"))
    rng = np.random.default_rng(seed)
    medians = np.empty(resamples)
    for index in range(resamples):
        chosen = [rounds[i] for i in rng.integers(0, count, count)]
        medians[index] = np.median(np.concatenate([r[rng.integers(0, len(r), len(r))].reshape(-1) for r in chosen]))
    low, high = np.quantile(medians, [0.025, 0.975])
    widen = student(count - 1) / 1.96 * (count / (count - 1)) ** 0.5
    low, high = centre - widen * max(centre - low, 0.0), centre + widen * max(high - centre, 0.0)
    return Interval(float(np.exp(centre)), float(np.exp(low)), float(np.exp(high)))


def student(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t."""
    return _STUDENT[degrees - 1] if degrees <= len(_STUDENT) else 1.96 + 2.5 / degrees


def _spread(rounds: Sequence[np.ndarray]) -> float:
    """About how wide the interval is, from the rounds' medians alone: cheap enough to ask after every round."""
    medians = np.array([np.median(r) for r in rounds])
    return float(2 * 1.25 * student(len(rounds) - 1) * medians.std(ddof=1) / len(rounds) ** 0.5)


def time_rounds(
    build: Callable[[], Sequence[Call]],
    judged: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]],
    *,
    threads: int,
    seconds: float,
    sessions: int,
    seed: int,
    progress: Progress | None = None,
    watch: Stopwatch | None = None,
) -> _Times:
    """Rounds of interleaved calls, until the interval is narrow or the time is up.

    Args:
        build: Makes a round's calls anew, one per model.
        judged: From the logarithms of all rounds, what the interval is taken of.
        threads: Decides the clock.
        seconds: See `compare_latency`.
        sessions: Fewest rounds, if the time suffices.
        seed: Of the order of the calls.
        progress: Told the seconds that have gone.
        watch: The clocks.
    """
    watch = watch or Stopwatch()
    rng = np.random.default_rng(seed)
    begin, rounds = watch.wall(), list[np.ndarray]()
    share = seconds / max(sessions, 2)

    def passed() -> float:
        return (watch.wall() - begin) / 1e9

    with _no_collection():
        while True:
            started = passed()
            rounds.append(_one_round(build(), rng, share, passed, watch))
            times = _Times(tuple(rounds), threads, passed())
            if progress is not None:
                progress("latency", min(round(times.seconds), round(seconds)), round(seconds))
            if len(rounds) < 2:
                continue
            if times.seconds + (times.seconds - started) > seconds:
                return times
            if len(rounds) >= sessions and _spread(judged(times.logs())) <= _ENOUGH:
                return times


def _one_round(
    calls: Sequence[Call], rng: np.random.Generator, share: float, passed: Callable[[], float], watch: Stopwatch
) -> np.ndarray:
    """Warm up, then call all in shuffled order again and again: [calls, models, 3 clocks], in nanoseconds."""
    begin = passed()
    warm = 0.0
    for count in range(5):
        before = passed()
        for call in calls:
            call()
        warm = passed() - before
        if count >= 1 and passed() - begin + 2 * warm > 0.2 * share:
            break
        if warm > 0.1 * share:
            break
    # as long as one fresh round of sessions is worth, at least three times, within the round's share of the time
    wanted = min(max(0.4, share / 8) / max(warm, 1e-9), _MOST_CALLS)
    affordable = (share - (passed() - begin)) / max(warm, 1e-9)
    times = np.empty((int(max(min(max(wanted, 3), affordable), 1)), len(calls), 3))
    for row in times:
        for index in rng.permutation(len(calls)):
            call = calls[index]
            wall, process, thread = watch.wall(), watch.process(), watch.thread()
            call()
            row[index, 1] = watch.thread() - thread
            row[index, 2] = watch.process() - process
            row[index, 0] = watch.wall() - wall
    return times


def _caller(model: Model, sample: Sample, threads: int) -> Call:
    session = open_session(model, threads=threads)
    run(session, sample)  # an error comes out here, in one line
    names, feeds = [output.name for output in session.get_outputs()], dict(feeds_for(session, sample))
    return lambda: session.run(names, feeds)


def _batch(sample: Sample) -> int:
    return next((int(a.shape[0]) for a in sample.values() if getattr(a, "ndim", 0)), 1)


@contextmanager
def _no_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
