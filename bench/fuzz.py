"""Broken and odd models through the exact recipe: nothing but a refusal in one line, or equal answers.

    python bench/fuzz.py --seed 0 --count 20000 [--jobs 2] [--kind edits|flips|cuts] [--keep FOLDER] [MODEL.onnx ...]

Every case is a model that is damaged in one of three ways (see _damage.py), written into a folder of its own and given
to the command line (`compress`, no timing) in a process of its own: a fork of one that has loaded all libraries, so
that a crash, a hang or too much memory is an outcome like any other, and nothing is paid twice. Where that ends with 0
and onnxruntime runs the damaged model with its optimizer off, its answers are compared with those of the result, again
in a process of its own; what the program under test says about itself is not asked. Without models ten of the zoo are
damaged, or with `--small` the network of the demo and a few with control flow, functions, strings and shared weights.

Outcomes: `refused` (exit 2 or 3, one line and perhaps a hint), `equal`, `runs nowhere` (onnxruntime declines the
damaged model, or crashes on it by itself), `costly` (onnxruntime alone takes as much memory or time for the damaged
model as is allowed us), `rolled back` (equal, but a pass did wrong and the net caught it); and the failures: `wrong`
answers, `bigger`, `bug` (any other exit, a traceback, other lines on the console), `crash`, `slow` (more than 20 s of
processor time), `memory` (more than 1 GB and the file at its highest), `leftover` (a file that stays). Exits with 1
where there is a failure. Writes fuzz.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from _common import RESULTS, write_result
from _damage import DAMAGE, KINDS, built_in

SECONDS = 20
"""Of processor time, of one case."""
WAIT = 120
"""Seconds on the clock, of one case; the machine may be busy."""
BYTES = 2**30
"""Resident memory at its highest, beside the file."""
ADDRESSES = 6 * 2**30
"""Of address space, of one process; onnxruntime reserves much more than it uses."""
FAILURES = ("wrong", "bigger", "bug", "crash", "slow", "memory", "leftover")
TOLERANCE = 1e-4
ZOO = (
    *("iris-logreg", "light-squeezenet", "tiny-dscnn-kws", "swift-f0", "tiny-resnet8", "ppocr-cls", "blazeface-back"),
    *("tiny-mobilenet-vww", "oww-hey-jarvis", "silero-vad"),
)


# ---------------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended.

    Attributes:
        code: Exit code, or minus the signal; None where it was stopped for taking too long.
        text: What it wrote on the console.
        peak: Resident memory at its highest, in bytes.
        seconds: Of processor time.
    """

    code: int | None
    text: str
    peak: int
    seconds: float


def forked(work: Callable[[], int], folder: Path) -> End:
    """Run something in a fork of this process, in bounded time and memory."""
    said = folder / "console"
    child = os.fork()
    if child == 0:
        code = 99
        try:
            console = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(console, 1)
            os.dup2(console, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
            resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            code = work()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    until = time.monotonic() + WAIT
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            break
        time.sleep(0.002)
    spent = usage.ru_utime + usage.ru_stime
    code = os.waitstatus_to_exitcode(status)
    stopped = code in (-signal.SIGXCPU, -signal.SIGKILL) and (spent >= SECONDS - 1 or time.monotonic() > until)
    text = said.read_text(errors="replace") if said.exists() else ""
    said.unlink(missing_ok=True)
    return End(None if stopped else code, text, usage.ru_maxrss * 1024, spent)


# ---------------------------------------------------------------------------------------------------- answers


def _open(path: Path) -> Any:
    import onnxruntime as ort

    ort.set_default_logger_severity(4)  # the console is for outcomes
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _feeds(session: Any, seed: int) -> dict[str, Any]:
    rng, kinds = np.random.default_rng(seed), {"tensor(float)": np.float32, "tensor(double)": np.float64}
    kinds |= {
        "tensor(int64)": np.int64,
        "tensor(int32)": np.int32,
        "tensor(bool)": np.bool_,
        "tensor(float16)": np.float16,
    }
    feeds = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) and 0 <= size < 4096 else 2 for size in value.shape]
        dtype = np.dtype(kinds.get(value.type, np.float32))
        drawn = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        feeds[value.name] = np.asarray(drawn, dtype)
    return feeds


def _off(expected: list[list[Any]], found: list[list[Any]]) -> float:
    """Largest difference of an output in any call over its largest value in all calls; infinite where forms differ."""
    worst = 0.0
    for ours, theirs in zip(zip(*expected, strict=True), zip(*found, strict=True), strict=True):
        difference = scale = 0.0
        for a, b in zip(ours, theirs, strict=True):
            if not isinstance(a, np.ndarray):
                difference = max(difference, 0.0 if str(a) == str(b) else np.inf)
                continue
            if a.shape != b.shape or a.dtype != b.dtype:
                return np.inf
            if a.dtype.kind != "f":
                difference = max(difference, 0.0 if np.array_equal(a, b) else np.inf)
                continue
            usable = np.isfinite(a)
            if not np.array_equal(a[~usable], b[~usable], equal_nan=True) or not np.isfinite(b[usable]).all():
                return np.inf
            wide, other = a[usable].astype(np.float64), b[usable].astype(np.float64)
            if wide.size:
                difference = max(difference, float(np.abs(wide - other).max()))
                scale = max(scale, float(np.abs(wide).max()))
        worst = max(worst, difference / (scale or 1.0))
    return worst


def _is_random(data: bytes) -> bool:
    random_ops = (b"Bernoulli", b"RandomNormal", b"RandomUniform", b"Multinomial", b"Dropout")
    return any(name in data for name in random_ops)


def answers(source: Path, target: Path) -> int:
    """Print how the answers compare, as an outcome and a note."""
    from onnxslim_core.model import load

    try:
        session = _open(source)
        runs = [(feeds := _feeds(session, seed), session.run(None, feeds)) for seed in range(3)]
    except Exception:  # onnxruntime's exception classes are not public
        print("runs nowhere\n")
        return 0
    print("ran", flush=True)
    before = len(load(source).to_proto().SerializeToString())
    if target.stat().st_size > 1.01 * before + 8:
        print(f"bigger\n{before} to {target.stat().st_size} bytes")
    elif _is_random(source.read_bytes()):
        print("equal\nrandom")
    else:
        try:
            after = _open(target)
            off = _off([expected for _, expected in runs], [after.run(None, feeds) for feeds, _ in runs])
        except Exception as err:
            print(f"wrong\nthe result does not run: {' '.join(str(err).split())[:300]}")
        else:
            print(f"wrong\noff by {off:.3g}" if off > TOLERANCE else "equal\n")
    return 0


# ---------------------------------------------------------------------------------------------------- one case


@dataclass(frozen=True, slots=True)
class Case:
    """One damaged model.

    Attributes:
        path: What is damaged; for a built-in one its name alone.
        kind: How.
        number: Which one.
        seed: Of the whole run.
    """

    path: str
    kind: str
    number: int
    seed: int

    @property
    def name(self) -> str:
        """The model's name."""
        return Path(self.path).name

    def damaged(self) -> bytes:
        """The bytes of the damaged file."""
        data = _originals(self.path)
        return DAMAGE[self.kind](data, random.Random(f"{self.seed} {self.name} {self.kind} {self.number}"))


@cache
def _originals(path: str) -> bytes:
    small = built_in()
    return small[path] if path in small else Path(path).read_bytes()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a case."""

    outcome: str
    note: str
    peak: int
    seconds: float


def compressed(source: Path, target: Path, report: Path) -> int:
    """The command line, as a user calls it."""
    from onnxslim_core.cli import main

    os.environ["TMPDIR"] = str(source.parent)
    tempfile.tempdir = None
    return main(["compress", str(source), "-o", str(target), "--quiet", "--no-latency", "--report", str(report)])


def judge(case: Case) -> Verdict:
    """The outcome of one damaged model, and what there is to say about it."""
    data = case.damaged()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, target, report = folder / "in.onnx", folder / "out.onnx", folder / "report.json"
        source.write_bytes(data)
        end = forked(partial(compressed, source, target, report), folder)
        left = {path.name for path in folder.iterdir()}
        outcome, note = _outcome(end, left, len(data))
        if outcome in ("crash", "memory", "slow"):
            alone = _alone(source, folder)
            if alone.code is not None and alone.code < 0:
                outcome, note = "runs nowhere", "onnxruntime crashes on the model as given"
            elif alone.peak > BYTES or alone.seconds > SECONDS / 4:  # several sessions run it, with three inputs each
                outcome, note = "costly", f"onnxruntime alone takes {alone.peak >> 20} MB and {alone.seconds:.0f} s"
        if outcome == "equal":
            outcome, note = _compared(source, target, report, folder)
    return Verdict(outcome, note, end.peak, end.seconds)


def _outcome(end: End, left: set[str], size: int) -> tuple[str, str]:
    """What the end of the process alone says; `equal` where the answers decide."""
    lines = end.text.splitlines()
    if end.code is None:
        return "slow", f"more than {SECONDS} s"
    if end.code < 0:
        return "crash", f"ended by signal {-end.code}"
    if end.code not in (0, 2, 3):
        return "bug", f"exit {end.code}: {(lines or [''])[0][:300]}"
    wanted = [line for line in lines if line.startswith("  hint: ")]
    if lines[:1] and end.code:
        wanted.insert(0, lines[0])
    if lines != wanted or (end.code and not (lines and lines[0].startswith("onnxslim-core: "))):
        return "bug", f"exit {end.code} and other lines: {' / '.join(lines)[:300]}"
    if end.peak > BYTES + size:
        return "memory", f"{end.peak >> 20} MB"
    if left != ({"in.onnx", "out.onnx", "out.onnx.lock", "report.json"} if end.code == 0 else {"in.onnx"}):
        return "leftover", ", ".join(sorted(left))
    return ("refused", "") if end.code else ("equal", "")


def _alone(source: Path, folder: Path) -> End:
    """How onnxruntime itself gets on with the damaged model: what it takes for that is not ours."""

    def work() -> int:
        session = _open(source)
        for seed in range(3):
            session.run(None, _feeds(session, seed))
        return 0

    return forked(work, folder)


def _compared(source: Path, target: Path, report: Path, folder: Path) -> tuple[str, str]:
    """The outcome that the answers say."""
    end = forked(partial(answers, source, target), folder)
    outcome, note = ([*end.text.removeprefix("ran\n").splitlines(), "", ""])[:2]
    if end.code != 0:
        ran = end.text.startswith("ran\n")
        return (
            ("wrong", f"the result ends the process: {end.code}") if ran else ("runs nowhere", f"ends with {end.code}")
        )
    if outcome == "equal":
        steps = json.loads(report.read_text())["steps"]
        taken = [f"{step['name']}: {step['reason']}" for step in steps if step["outcome"] == "rolled back"]
        return ("rolled back", taken[0][:200]) if taken else (outcome, note)
    return outcome, note


# ---------------------------------------------------------------------------------------------------- all cases


def _warm() -> None:
    """Load all libraries, so that the forks have them."""
    from onnxslim_core.passes import TABLE, pass_class

    import onnxslim_core.cli.verbs
    import onnxslim_core.pipeline  # noqa: F401

    for row in TABLE:
        pass_class(row.name)


def cases(paths: list[str], kinds: list[str], count: int, seed: int) -> Iterator[Case]:
    """About as many cases as asked for, spread evenly."""
    each = -(-count // (len(paths) * len(kinds)))
    for number in range(each):
        for path in paths:
            for kind in kinds:
                yield Case(path, kind, number, seed)


class Tally:
    """What came of the cases so far.

    Args:
        seed: Of the run.
        folder: Where fuzz.json is written.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self.folder = seed, folder
        self.outcomes: dict[str, Counter[str]] = {}
        self.said: Counter[str] = Counter()
        self.failures: list[dict[str, object]] = []
        self.most_bytes, self.most_seconds = 0, 0.0

    def add(self, case: Case, verdict: Verdict) -> None:
        """One more case."""
        self.outcomes.setdefault(f"{case.name} {case.kind}", Counter())[verdict.outcome] += 1
        self.most_bytes = max(self.most_bytes, verdict.peak)
        self.most_seconds = max(self.most_seconds, verdict.seconds)
        if verdict.note:
            self.said[f"{verdict.outcome}: {verdict.note}"] += 1
        if verdict.outcome in FAILURES:
            facts = {"model": case.name, "kind": case.kind, "number": case.number}
            self.failures.append({**facts, "outcome": verdict.outcome, "note": verdict.note})
            print(f"{case.name} {case.kind} {case.number}: {verdict.outcome}: {verdict.note}", flush=True)

    def total(self) -> Counter[str]:
        """Cases by outcome."""
        return sum(self.outcomes.values(), Counter[str]())

    def write(self) -> None:
        """Write fuzz.json."""
        payload = {"seed": self.seed, "cases": self.total().total(), "total": self.total(), "outcomes": self.outcomes}
        most = {"most_seconds": round(self.most_seconds, 2), "most_bytes": self.most_bytes}
        said = dict(self.said.most_common(40))
        write_result("fuzz", {**payload, "failures": self.failures, **most, "said": said}, self.folder)


def main() -> int:
    """Damage, judge, count, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--small", action="store_true", help="the built-in models in place of the zoo's")
    parser.add_argument("--zoo", type=Path, default=Path("~/.cache/onnx-zoo"), help="folder of the zoo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20_000, help="cases in all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--keep", type=Path, help="write the models that fail into this folder")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    zoo = [options.zoo.expanduser() / f"{name}.onnx" for name in ZOO]
    paths = list(built_in()) if options.small else [str(path) for path in options.models or zoo]
    todo = list(cases(paths, options.kind or list(KINDS), options.count, options.seed))
    tally = Tally(options.seed, options.out)
    started = time.monotonic()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"), initializer=_warm) as pool:
        for number, (case, verdict) in enumerate(zip(todo, pool.map(judge, todo, chunksize=4), strict=True), 1):
            tally.add(case, verdict)
            if verdict.outcome in FAILURES and options.keep is not None:
                options.keep.mkdir(parents=True, exist_ok=True)
                where = options.keep / f"{Path(case.name).stem}-{case.kind}-{case.number}.onnx"
                where.write_bytes(case.damaged())
            if number % 500 == 0:
                tally.write()  # a run takes an hour: what it found so far outlives it
                print(f"{number} of {len(todo)}, {time.monotonic() - started:.0f} s", flush=True)
    tally.write()
    print(", ".join(f"{n} {outcome}" for outcome, n in tally.total().most_common()))
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
