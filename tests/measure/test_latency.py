"""The statistics of timing, on clocks that a test turns; and the plumbing, on tiny models.

No test here looks at the real time of a model: what is judged is whether the interval tells apart what differs and
leaves alone what does not, when calls, sessions and the machine are as noisy as they were measured to be.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxslim_core.errors import MeasureError
from onnxslim_core.measure.latency import (
    Latency,
    Stopwatch,
    _latency,
    compare_latency,
    interval,
    measure_alone,
    time_rounds,
)
from onnxslim_core.measure.latency import ratios as pair_ratios
from onnxslim_core.model import Model, load


class Machine:
    """A machine whose time a test turns: sessions differ, calls jitter, and other programs stop us at times."""

    def __init__(self, seed: int, *, session: float = 0.02, call: float = 0.05, preempt: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.session, self.call, self.preempt = session, call, preempt
        self.wall = self.thread = self.process = 0
        self.log: list[int] = []

    def watch(self) -> Stopwatch:
        return Stopwatch(wall=lambda: self.wall, thread=lambda: self.thread, process=lambda: self.process)

    def model(self, milliseconds: float, index: int) -> Callable[[], None]:
        own = milliseconds * 1e6 * np.exp(self.rng.normal(0, self.session))

        def call() -> None:
            self.log.append(index)
            spent = int(own * np.exp(abs(self.rng.normal(0, self.call))))
            self.thread += spent
            self.process += spent
            self.wall += spent + (int(self.rng.exponential(20 * own)) if self.rng.random() < self.preempt else 0)

        return call

    def builder(self, *milliseconds: float) -> Callable[[], list[Callable[[], None]]]:
        def build() -> list[Callable[[], None]]:
            self.wall += 20_000_000  # a session is created
            return [self.model(ms, index) for index, ms in enumerate(milliseconds)]

        return build


def _compare(machine: Machine, a: float, b: float, *, threads: int = 1, seconds: float = 20, seed: int = 0) -> Latency:
    times = time_rounds(
        machine.builder(a, b, a),
        pair_ratios,
        threads=threads,
        seconds=seconds,
        sessions=5,
        seed=seed,
        watch=machine.watch(),
    )
    return _latency(times, 1, seed)


@pytest.mark.parametrize(("milliseconds", "seconds"), [(0.3, 6), (60.0, 20)])
def test_the_same_model_twice_is_never_far_from_one(milliseconds: float, seconds: float) -> None:
    for seed in range(5):
        found = _compare(Machine(seed), milliseconds, milliseconds, seconds=seconds, seed=seed)
        assert found.high <= 1.05
        assert found.verdict not in ("slower", "inconclusive")


@pytest.mark.parametrize(("milliseconds", "seconds"), [(0.3, 6), (60.0, 20)])
def test_thirty_per_cent_more_work_is_always_seen(milliseconds: float, seconds: float) -> None:
    for seed in range(5):
        found = _compare(Machine(seed, preempt=0.05), milliseconds, 1.3 * milliseconds, seconds=seconds, seed=seed)
        assert found.low > 1.05
        assert found.verdict == "slower"


def test_faster_is_said_only_where_the_interval_lies_below_one() -> None:
    found = _compare(Machine(0), 1.0, 0.8)
    assert found.verdict == "faster"
    assert found.low < found.ratio < found.high < 1
    assert found.ratio == pytest.approx(0.8, rel=0.05)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """95 % intervals over few rounds whose sessions differ more than their calls; 80 experiments of each."""
    for rounds in (4, 8):
        hits = 0
        for seed in range(80):
            rng = np.random.default_rng(seed)
            logs = [rng.normal(rng.normal(0, 0.03), 0.05, (30, 2)) for _ in range(rounds)]
            found = interval(logs, seed=seed, resamples=150)
            hits += found.low <= 1 <= found.high
        assert hits >= 0.9 * 80


def test_calls_of_one_session_are_not_taken_for_independent() -> None:
    """Two thousand calls in two sessions tell little: the sessions decide how wide the interval is."""
    rng = np.random.default_rng(0)
    shifts = [-0.03, 0.03]
    clustered = interval([rng.normal(shift, 0.001, (1000, 1)) for shift in shifts])
    pooled = interval([rng.normal(rng.choice(shifts), 0.001, (1, 1)) for _ in range(100)])
    assert clustered.high / clustered.low > 1.06
    assert pooled.high - pooled.low < clustered.high - clustered.low


def test_a_single_round_gives_no_interval() -> None:
    found = interval([np.zeros((50, 1))])
    assert (found.ratio, found.low, found.high) == (1.0, 0.0, float("inf"))
    with pytest.raises(MeasureError):
        interval([])


def test_thread_time_is_taken_where_it_accounts_for_the_work() -> None:
    found = _compare(Machine(1, preempt=0.6, session=0.005), 1.0, 1.0)
    assert found.clock == "thread"
    assert found.high - found.low < 0.05
    assert _compare(Machine(1), 1.0, 1.0, threads=2).clock == "wall"


def test_wall_clock_is_taken_where_work_happens_on_other_threads() -> None:
    machine = Machine(2)
    build = machine.builder(1.0, 1.5, 1.0)

    def elsewhere() -> list[Callable[[], None]]:
        calls = build()

        def hidden() -> None:
            before = machine.thread
            calls[1]()
            machine.thread = before + 1000  # most of it was done by another thread

        return [calls[0], hidden, calls[2]]

    times = time_rounds(elsewhere, pair_ratios, threads=1, seconds=20, sessions=5, seed=0, watch=machine.watch())
    found = _latency(times, 1, 0)
    assert found.clock == "wall"
    assert found.verdict == "slower"


def test_measuring_is_bounded_in_time_but_for_the_two_rounds_an_interval_needs() -> None:
    machine = Machine(3, session=0.3)  # never narrow
    found = _compare(machine, 5.0, 5.0, seconds=3)
    assert found.seconds <= 3.3
    assert found.sessions >= 5
    slow = _compare(Machine(4), 4000.0, 4000.0, seconds=10)
    assert slow.sessions == 2
    assert slow.pairs >= 4


def test_measuring_ends_early_once_the_interval_is_narrow() -> None:
    found = _compare(Machine(5, session=0.001, call=0.001), 1.0, 1.0)
    assert found.seconds < 10
    assert found.high - found.low <= 0.02


def test_calls_are_interleaved_in_shuffled_order() -> None:
    machine = Machine(6)
    _compare(machine, 1.0, 1.0, seconds=2)
    triples = [tuple(machine.log[i : i + 3]) for i in range(0, len(machine.log) - 2, 3)]
    assert all(sorted(triple) == [0, 1, 2] for triple in triples)
    assert len(set(triples)) == 6


def test_the_noise_of_the_machine_is_measured_in_the_same_rounds() -> None:
    found = _compare(Machine(7), 1.0, 2.0)
    assert found.noise is not None
    assert found.noise.low <= 1.03
    assert found.noise.high >= 0.97
    assert found.reference_ms == pytest.approx(1, rel=0.1)
    assert found.candidate_ms == pytest.approx(2, rel=0.1)


def test_collection_is_off_while_measuring_and_on_again_after_an_interruption() -> None:
    seen = []

    def build() -> list[Callable[[], object]]:
        seen.append(gc.isenabled())
        raise KeyboardInterrupt

    assert gc.isenabled()
    with pytest.raises(KeyboardInterrupt):
        time_rounds(build, pair_ratios, threads=1, seconds=1, sessions=2, seed=0)
    assert seen == [False]
    assert gc.isenabled()


def _verdict(low: float, high: float) -> str:
    return Latency((low * high) ** 0.5, low, high, 1, 1, None, 10, 5, 1, 1, 1.0, "thread").verdict


def test_verdicts() -> None:
    assert _verdict(0.90, 0.999) == "faster"
    assert _verdict(0.98, 1.01) == "not slower"
    assert _verdict(1.02, 1.10) == "not slower"
    assert _verdict(1.021, 1.05) == "slower"
    assert _verdict(0.90, 1.05) == "inconclusive"
    assert _verdict(0.0, float("inf")) == "inconclusive"


def _model() -> Model:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>\ng (float[n, 8] x) => (float[n, 8] y) { y = MatMul(x, w) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(np.eye(8, dtype=np.float32), "w"))
    return load(model)


def test_models_are_timed_against_each_other() -> None:
    told: list[tuple[str, int, int]] = []
    sample = {"x": np.ones((4, 8), np.float32)}
    found = compare_latency(
        _model(), _model(), sample, seconds=0.5, progress=lambda step, done, total: told.append((step, done, total))
    )
    assert found.sessions >= 2
    assert found.pairs >= 4
    assert found.batch == 4
    assert found.threads == 1
    assert found.noise is not None
    assert 0 < found.low <= found.ratio <= found.high
    assert told
    assert all(step == "latency" and done <= total for step, done, total in told)
    assert compare_latency(_model(), _model(), sample, seconds=0.2, aa=False).noise is None


def test_a_model_is_timed_alone() -> None:
    found = measure_alone(_model(), {"x": np.ones((2, 8), np.float32)}, seconds=0.3)
    assert 0 < found.low <= found.ms <= found.high
    assert found.calls > 0
    assert found.batch == 2


def test_what_does_not_run_is_a_measure_error() -> None:
    with pytest.raises(MeasureError):
        compare_latency(_model(), _model(), {"x": np.ones((2, 7), np.float32)}, seconds=0.2)
    with pytest.raises(MeasureError, match="'x'"):
        measure_alone(_model(), {}, seconds=0.2)
