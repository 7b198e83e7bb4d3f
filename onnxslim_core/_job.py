"""Steps, promises and roll-backs of the job `compress`.

A lossy step works on a copy of the state before it, so a roll-back is a look back. Exact steps in a row share one copy,
since they nearly always hold; where one does not, all steps run again on a copy each. What is promised is checked here
and nowhere else:

- Exact steps: the end of every run of exact steps is compared with its beginning in onnxruntime. Where the answers
  differ, or the model got more than 1 % bigger or measurably slower, the step that did it is found, taken back and
  reported, and the steps after it run again without it.
- Lossy steps: each is judged alone against the budget on samples that no pass has seen, and taken back alone.
- The whole: lossy steps that leave the model neither smaller nor faster than the exact ones alone are taken back.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxslim_core._budget import answer_breaches, gain_breaches
from onnxslim_core._feeds import Feeds
from onnxslim_core.errors import InternalError, MeasureError, SlimError
from onnxslim_core.graph import all_nodes, drop_given_names, give_names_back, opset_of, reserve_names
from onnxslim_core.measure.cost import Cost, Size, cost, size_of
from onnxslim_core.measure.counted import counted_by_data
from onnxslim_core.measure.fidelity import Fidelity, Metric, Truth, compare
from onnxslim_core.measure.inputs import random_samples
from onnxslim_core.measure.latency import Latency, compare_latency
from onnxslim_core.measure.pieces import cache_folder
from onnxslim_core.measure.truth import Plain
from onnxslim_core.model import Model, wrap
from onnxslim_core.passes import pass_class
from onnxslim_core.recipe import Budget, Recipe
from onnxslim_core.report import Asked, Report, StepRecord, headline, machine
from onnxslim_core.rewrite import Change, Context, Pass, Progress, Sample
from onnxslim_core.verify import Interface, infers, verify

__all__ = ["Clock", "Job", "said"]

FOLDING = "fold_constants"
CLEANUP = ("normalize", FOLDING)
"""What runs to a fixpoint at the start and after every step, by itself."""

GROWTH = 1.01
"""Exact steps may not make the file bigger than this; what is not smaller by as much is not called smaller."""

NAME_BYTES = 16
"""About what a node's name takes."""

SLOWER = 1.02
"""Slower with confidence: the whole interval lies above this."""

PROBE_SECONDS = 2.0
"""Of a timing that a pass asks for."""

ROUNDS = 10
"""A cleanup that has not come to rest by then is put on record."""


@dataclass(slots=True)
class Clock:
    """Seconds by stage; what is spent in a stage within another counts there alone, so that they add up."""

    seconds: dict[str, float] = field(default_factory=dict)
    _within: list[float] = field(default_factory=list)
    """Per open stage, the seconds of stages within it."""

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time spent inside to a stage."""
        start = time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent - self._within.pop()
            if self._within:
                self._within[-1] += spent


@dataclass(frozen=True, slots=True)
class _Planned:
    """A step that is to run.

    Attributes:
        name: Of the pass; "cleanup" for the one that the job puts in front.
        exact: What it promises.
        step: The pass; None for the cleanup.
        options: As given in the recipe.
        tidy: Whether the cleanup runs after it.
    """

    name: str
    exact: bool
    step: Pass | None
    options: Mapping[str, Any]
    tidy: bool

    @property
    def foreign(self) -> bool:
        """True for a pass of somebody else, which may do more than it tells of."""
        return ":" in self.name


@dataclass(frozen=True, slots=True)
class _State:
    """The model after a step.

    Attributes:
        model: The very object of the state before where the step did nothing or was taken back. Exact steps that share
            a copy share this object: it is what the last of them left.
        size: Of the model, right after the step.
        record: Of the step; None before the first.
        notes: For later passes.
        resting: The cleanup passes that find nothing here.
    """

    model: Model
    size: Size
    record: StepRecord | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    resting: frozenset[str] = frozenset()

    @property
    def moved(self) -> bool:
        """True where the step did something that stays."""
        return self.record is not None and self.record.outcome == "done"


class _Contradiction(Exception):
    """A pass broke off on what a model that nobody saw run says of itself.

    Attributes:
        record: Of the step.
    """

    def __init__(self, record: StepRecord) -> None:
        super().__init__(record.reason)
        self.record = record


@dataclass(slots=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        start: The model as the passes get it.
        reference: What results are held against: the model as it was given.
        compares: Whether answers are compared.
        times: Whether anything is timed.
        out: Steps (from 1) that stay out, with the record that says why.
        lean: Every byte counts, since the file would get too big otherwise: nodes without a name get none, and nothing
            is computed ahead that takes more room than it frees.
        apart: Every exact step works on a copy of its own, so that a fault can be laid at the door of one.
        plain: The session that proved that `start` runs; closed where the model is large.
        given_bytes: Of the file that was given, where it holds everything; None: what `start` would take.
    """

    start: Model
    reference: Model
    recipe: Recipe
    budget: Budget | None
    feeds: Feeds
    clock: Clock
    threads: int
    seed: int
    compares: bool
    times: bool
    metric: Metric | None
    latency_seconds: float
    progress: Progress
    plain: Plain
    given_bytes: int | None = None
    plan: list[_Planned] = field(default_factory=list)
    out: dict[int, StepRecord] = field(default_factory=dict)
    lean: bool = False
    apart: bool = False
    _unnamed: bool = False
    """Naming the nodes would take a good part of what the file may grow by, so they stay without."""
    costs: dict[int, tuple[Model, Cost]] = field(default_factory=dict)
    verdicts: dict[int, tuple[Model, Fidelity]] = field(default_factory=dict)
    truths: dict[tuple[int, int], Truth] = field(default_factory=dict)

    def run(self, asked: Asked, why_not_compared: str) -> tuple[Model, Report]:
        """Run the recipe, keep what holds, measure it and write it down."""
        self.plan = self._planned()
        reserve_names(self.start.ir)
        unnamed = sum(not node.name for node in all_nodes(self.start.ir.graph))
        if self.feeds.cost is not None:
            self.costs[id(self.start)] = self.start, self.feeds.cost
        before = self._state_before(self.start)
        self._unnamed = NAME_BYTES * unnamed > 0.2 * (GROWTH - 1) * before.size.bytes
        states = self._settle([before])
        states = self._worth_it(states)
        states, latency = self._not_slower(states)
        final = states[-1].model
        fidelity = self._fidelity(final) if self.compares else None
        latency, breaches = self._against_budget(final, fidelity, latency)
        cost_before, cost_after = self._cost(self.start), self._cost(final)
        lossy = any(not self.plan[number - 1].exact for number in self._moved(states))
        unchanged = final is self.start and not self.start.notes
        report = Report(
            outcome="over budget" if breaches else "unchanged" if unchanged else "compressed" if lossy else "exact",
            headline="",
            passed=not breaches,
            asked=asked,
            machine=machine(),
            data=self.feeds.used,
            breaches=tuple(breaches),
            verified=self.compares,
            unverified_because="" if self.compares else why_not_compared,
            notes=(*self.start.notes, *_flaws(self.feeds.misdeclared)),
            steps=tuple(_once(state.record for state in states if state.record is not None)),
            sizes=(self.given_bytes or cost_before.bytes, cost_after.bytes),
            nodes=(cost_before.nodes, cost_after.nodes),
            cost_before=cost_before,
            cost_after=cost_after,
            fidelity=fidelity,
            latency=latency,
            latency_note=self._latency_note(final, latency),
            seconds={stage: round(seconds, 3) for stage, seconds in self.clock.seconds.items()},
        )
        return final, dataclasses.replace(report, headline=headline(report))

    # ------------------------------------------------------------------------------------------------ steps

    def _planned(self) -> list[_Planned]:
        """The recipe's passes; a cleanup in front unless they begin with one themselves."""
        steps = self.recipe.steps
        plan: list[_Planned] = []
        leading = True
        for number, step in enumerate(steps):
            leading = leading and step.name in CLEANUP
            follower = steps[number + 1].name if number + 1 < len(steps) else ""
            tidy = not (leading and follower in CLEANUP)
            plan.append(_Planned(step.name, step.exact, step.build(), step.options, tidy))
        if not steps or steps[0].name not in CLEANUP:
            plan.insert(0, _Planned("cleanup", True, None, {}, True))
        return plan

    def _state_before(self, model: Model) -> _State:
        """Where the walk begins."""
        if self.feeds.cost is not None:
            return _State(model, Size(self.feeds.cost.bytes, self.feeds.cost.nodes))
        return _State(model, size_of(model))

    def _moved(self, states: Sequence[_State]) -> list[int]:
        """The steps that changed the model for good; state 0 is before the first."""
        return [number for number, state in enumerate(states) if state.moved]

    def _walk(self, states: Sequence[_State]) -> list[_State]:
        """Run what is still to run, without the steps that stay out."""
        found = list(states)
        shared: Model | None = None
        for number in range(len(found), len(self.plan) + 1):
            planned, last = self.plan[number - 1], found[-1]
            self.progress(planned.name, number - 1, len(self.plan))
            if number in self.out:
                found.append(dataclasses.replace(last, record=self.out[number]))
            elif not planned.exact and not self.feeds.runs:
                reason = f"a lossy pass needs a model that runs: {self.feeds.used.note}"
                record = StepRecord(planned.name, planned.exact, "refused", reason, planned.options)
                found.append(dataclasses.replace(last, record=record))
            else:
                if shared is None or self.apart or planned.foreign or not planned.exact:
                    with self.clock("passes"):
                        shared = last.model.copy(sealed=True)
                try:
                    found.append(self._step(planned, last, shared, self._before_lossy(found)))
                except _Contradiction as met:
                    if not self.apart:
                        return self._one_by_one(found)  # the copy that it broke off on is that of other steps, too
                    found.append(dataclasses.replace(last, record=met.record))
                if planned.foreign or not planned.exact:
                    shared = None  # what was judged must not change any more, what nobody told of is not handed on
        return found

    def _before_lossy(self, states: Sequence[_State]) -> Model | None:
        """The model as it was before the first lossy step that holds."""
        lossy = (number for number in self._moved(states) if not self.plan[number - 1].exact)
        first = next(lossy, None)
        return None if first is None else states[first - 1].model

    def _step(self, planned: _Planned, last: _State, work: Model, whole: Model | None) -> _State:
        """Run one step on a copy of the state before it, tidy up, and judge it if it is lossy."""
        began = time.perf_counter()
        with self.clock("passes"):
            if self.lean or self._unnamed:  # passes tell nodes by their names, of the reference as well
                give_names_back(work.ir.graph)
                if whole is not None:
                    whole = whole.copy()
                    give_names_back(whole.ir.graph)
            context = self._context(last.notes, whole)
            try:
                changes = self._fit(planned.step).run(work.ir, context) if planned.step is not None else []
                resting = self._resting(planned.step, changes, last.resting)
                # after a lossy step that did nothing there is nothing to tidy, and what was taken back stays back
                if planned.tidy and (planned.exact or any(change.applied for change in changes)):
                    changes, resting = [*changes, *self._tidy(work.ir, context, resting)], frozenset(CLEANUP)
            except Exception as err:
                if (met := self._contradiction(planned, err)) is None:
                    raise
                raise met from err
            if any(change.applied for change in changes):
                work.forget()
            if self.lean or self._unnamed:
                drop_given_names(work.ir.graph)
                changes = [change for change in changes if not change.action.startswith("named ")]
        seconds = time.perf_counter() - began
        done = any(change.applied for change in changes)
        began = time.perf_counter()
        breaches, figures = self._judge(work) if done and not planned.exact else ([], {})
        kept = done and not breaches
        own_refusals = any(change.pass_name == planned.name and not change.applied for change in changes)
        idle = "refused" if own_refusals else "nothing to do"
        size = last.size
        if done:
            with self.clock("counting"):
                size = size_of(work)
        record = StepRecord(
            name=planned.name,
            exact=planned.exact,
            outcome="done" if kept else "rolled back" if done else idle,
            reason="; ".join(breaches),
            options=planned.options,
            changes=tuple(changes),
            nodes=(last.size.nodes, size.nodes),
            bytes=(last.size.bytes, size.bytes),
            seconds=seconds,
            judging_seconds=time.perf_counter() - began,
            figures=figures,
        )
        if kept:
            return _State(work, size, record, context.notes, resting)
        return dataclasses.replace(last, record=record, resting=resting if not done else last.resting)

    def _contradiction(self, planned: _Planned, error: Exception) -> _Contradiction | None:
        """What a failure of a pass means on a model of which nobody knows whether all of it runs.

        What that says of its shapes may be contradictory, and it is not for every pass to find that out. None, and so
        the very error, where the model runs, where it says what is wrong, where memory ran out, and of a pass of
        somebody else's, who is to see it.
        """
        told = isinstance(error, SlimError) and not isinstance(error, InternalError)
        if self.feeds.proven or told or isinstance(error, MemoryError) or planned.foreign:
            return None
        reason = f"it failed with {type(error).__name__}: not all of the model was seen to run, and what it says of "
        reason += "its shapes may be contradictory; if it is not, this is a bug of the pass"
        return _Contradiction(StepRecord(planned.name, planned.exact, "refused", reason, planned.options))

    def _resting(self, step: Pass | None, changes: Sequence[Change], before: frozenset[str]) -> frozenset[str]:
        """The cleanup passes that find nothing after a step: each runs until it finds nothing itself."""
        stays = frozenset[str]() if any(change.applied for change in changes) else before
        return stays | {name for name in CLEANUP if step is not None and self._fit(step) == self._cleaner(name)}

    def _fit(self, step: Pass) -> Pass:
        """The pass, or where every byte counts one that adds none."""
        if not self.lean or step.name != FOLDING:
            return step
        return dataclasses.replace(step, max_growth=0)  # type: ignore[type-var]

    def _context(self, notes: Mapping[str, Any], whole: Model | None) -> Context:
        """What a pass is handed; each step has its own notes, so that those of a step taken back go with it."""
        return Context(
            samples=self.feeds.deciding,
            samples_are_real=self.feeds.decides,
            origins=self.feeds.origins,
            seed=self.seed,
            threads=self.threads,
            progress=self.progress,
            parts=(self.budget or Budget()).parts,
            latency=self._probe if self.times else None,
            cache=cache_folder() if self.times else None,
            reference=None if whole is None else whole.ir,
            notes={key: copy.copy(value) for key, value in notes.items()},
        )

    def _probe(self, reference: ir.Model, candidate: ir.Model) -> Latency:
        """A short timing of two graphs, for passes: of the model, or of a part of it with inputs of its own."""
        sample = (self.feeds.deciding or self.feeds.judging)[0]
        if {value.name for value in reference.graph.inputs} != set(sample):
            sample = random_samples(wrap(reference), seed=self.seed)[0]
        with self.clock("timing for passes"):
            return compare_latency(
                wrap(reference), wrap(candidate), sample, threads=self.threads, seconds=PROBE_SECONDS, seed=self.seed
            )

    def _faulty(self) -> frozenset[str]:
        """The cleanup passes that a fault was found with."""
        named = {self.plan[number - 1].name for number in self.out}
        return frozenset(CLEANUP) if "cleanup" in named else frozenset(CLEANUP) & named

    def _cleaner(self, name: str) -> Pass:
        """A cleanup pass, with the recipe's own options where it names it."""
        named = next((step for step in self.recipe.steps if step.name == name), None)
        return self._fit(named.build() if named is not None else pass_class(name)())

    def _tidy(self, graph: ir.Model, context: Context, resting: frozenset[str]) -> list[Change]:
        """The cleanup passes in turn until none of them finds anything; those at rest are not asked.

        Nor are those whose own step was left out: what they did wrong there they would do again.
        """
        done: list[Change] = []
        refused: dict[str, list[Change]] = {}
        faulty = self._faulty()
        quiet = faulty | resting
        for _ in range(ROUNDS):
            for name in CLEANUP:
                if name in quiet:
                    continue
                found = self._cleaner(name).run(graph, context)
                applied = [change for change in found if change.applied]
                refused[name] = [change for change in found if not change.applied]
                done += applied
                quiet = faulty | {name} if applied else quiet | {name}
            if len(quiet) == len(CLEANUP):
                return done + [change for changes in refused.values() for change in changes]
        return [*done, Change("cleanup", (), "cleaned up", reason=f"did not come to rest in {ROUNDS} rounds")]

    # ------------------------------------------------------------------------------------------------ judging

    def _cost(self, model: Model) -> Cost:
        """The cost of a state, computed once; the model is kept with it, so that its id stays its own."""
        if id(model) not in self.costs:
            with self.clock("counting"):
                self.costs[id(model)] = model, cost(model, self.feeds.judging[0] if self.feeds.runs else None)
        return self.costs[id(model)][1]

    def _fidelity(self, model: Model) -> Fidelity:
        """A state against the model as given, on the samples for judging, computed once.

        Raises:
            MeasureError: if the state does not load or run.
        """
        if id(model) not in self.verdicts:
            with self.clock("comparing"):
                self.verdicts[id(model)] = (
                    model,
                    compare(
                        self._truth(self.reference, self.feeds.judging),
                        model,
                        data=self.feeds.used.kind,
                        metric=self.metric,
                        labels=self.feeds.labels,
                        sparing=True,
                    ),
                )
        return self.verdicts[id(model)][1]

    def _truth(self, model: Model, samples: Sequence[Sample]) -> Truth:
        """What a model answers, asked once for all that is held against it."""
        key = id(model), id(samples)
        if key not in self.truths:
            parts = (self.budget or Budget()).parts
            plain = self.plain if model is self.plain.model else None
            self.truths[key] = Truth(model, samples, parts, self.threads, self.seed, plain)
        return self.truths[key]

    def answers(self, model: Model) -> tuple[Mapping[str, Any] | None, str | None]:
        """What a model answered to the first sample for judging, and the digest of the file that was asked for it.

        Either is None where it is not known; a model that takes more than one file has no digest.
        """
        truth = self.truths.get((id(self.reference), id(self.feeds.judging)))
        latest = None if truth is None else truth.latest
        if latest is None or latest[0] is not model:
            return None, None
        return latest[1], model.digest()

    def _judge(self, model: Model) -> tuple[list[str], dict[str, float]]:
        """What a lossy step breaks, and the figures it was judged by."""
        if not self.compares:
            return [], {}
        try:
            found = self._fidelity(model)
        except MeasureError as err:
            return [str(err)], {}
        figures = {name: output.cosine for name, output in found.outputs.items() if output.cosine is not None}
        if self.budget is None:
            # how many boxes a detector finds is an answer as well, and nobody set limits to answers
            counted = counted_by_data(self.start.ir)
            kept = {name: output for name, output in found.outputs.items() if not (output.mismatch and name in counted)}
            found = dataclasses.replace(found, outputs=kept)
        return answer_breaches(self.budget or Budget(), found), figures

    def _settle(self, states: Sequence[_State]) -> list[_State]:
        """Walk to the end, and again without whatever breaks a promise, until all hold.

        Comes to an end because every round but one leaves one more step out for good.
        """
        found = self._walk(states)
        while True:
            fault = self._malformed(found)
            if fault is None and (fault := self._grown(found)) is not None and not self.lean:
                self.lean = True
                found = self._walk(found[:1])
                continue
            fault = fault or self._unequal(found)
            if fault is None:
                return found
            if self._share(found):
                found = self._one_by_one(found)
                continue
            found = self._without(found, *fault)

    def _share(self, states: Sequence[_State]) -> bool:
        """True where steps that did something share a model, so that the states between them are gone."""
        models = [id(states[number].model) for number in self._moved(states)]
        return len(set(models)) < len(models)

    def _one_by_one(self, states: Sequence[_State]) -> list[_State]:
        """The same walk with a copy for each step, so that every state can be looked at."""
        self.apart = True
        return self._walk(states[:1])

    def _without(self, states: Sequence[_State], number: int, reason: str) -> list[_State]:
        """The walk with a step left out for good."""
        record = states[number].record
        assert record is not None
        self.out[number] = dataclasses.replace(record, outcome="rolled back", reason=reason)
        return self._walk(states[:number])

    def _malformed(self, states: Sequence[_State]) -> tuple[int, str] | None:
        """The first step after which the verifier complains of what it did not complain of before."""
        with self.clock("verifying"):
            moved = self._moved(states)
            if not moved:
                return None
            interface, last = Interface.of(self.start.ir, may_infer=True), states[moved[-1]].model
            if not verify(last.ir, interface, last.bare()):
                return None
            # folding shows what the declaration hid: then failing inference tells nothing of the step
            interface = dataclasses.replace(interface, infers=not self.feeds.misdeclared and not infers(self.start.ir))
            if not verify(last.ir, interface):
                return None
            known = set(verify(self.start.ir, interface))
            for number in moved:
                problems = [line for line in verify(states[number].model.ir, interface) if line not in known]
                if problems:
                    return number, f"left an invalid graph: {problems[0]}"
        return None

    def _segments(self, states: Sequence[_State]) -> list[tuple[int, list[int]]]:
        """Runs of exact steps: (number of the state they begin at, the steps that changed something)."""
        runs: list[tuple[int, list[int]]] = [(0, [])]
        for number in self._moved(states):
            if self.plan[number - 1].exact:
                runs[-1][1].append(number)
            else:
                runs.append((number, []))
        return [run for run in runs if run[1]]

    def _grown(self, states: Sequence[_State]) -> tuple[int, str] | None:
        """The exact step that added most, where a run of exact steps made the model bigger."""
        for first, numbers in self._segments(states):
            sizes = [states[number].size.bytes for number in (first, *numbers)]
            if sizes[-1] <= GROWTH * sizes[0]:
                continue
            added = [after - before for before, after in itertools.pairwise(sizes)]
            worst = max(range(len(added)), key=added.__getitem__)
            return numbers[worst], f"made the model {100 * added[worst] / max(sizes[worst], 1):.1f} % bigger"
        return None

    def _unequal(self, states: Sequence[_State]) -> tuple[int, str] | None:
        """The first exact step that changed the answers beyond rounding."""
        if not self.compares:
            return None
        for first, numbers in self._segments(states):
            if self._differs(states, first, numbers[-1]) is None:
                continue
            for number in numbers:
                if found := self._differs(states, first, number):
                    return number, f"changed the answers: {found}"
        return None

    def _differs(self, states: Sequence[_State], first: int, number: int) -> str | None:
        """How the state after a step answers otherwise than one before it."""
        model = states[number].model
        base = states[first].model if first else self.reference
        try:
            if first == 0 and self.feeds.exact is self.feeds.judging:
                return said(self._fidelity(model))  # the same comparison, made once
            with self.clock("comparing"):
                return said(compare(self._truth(base, self.feeds.exact), model, sparing=True))
        except MeasureError as err:
            return str(err)

    # ------------------------------------------------------------------------------------------------ outcome

    def _time(self, reference: Model, candidate: Model, seconds: float) -> Latency:
        with self.clock("timing"):
            return compare_latency(
                reference,
                candidate,
                self.feeds.judging[0],
                threads=self.threads,
                seconds=seconds,
                seed=self.seed,
                progress=self.progress,
            )

    def _worth_it(self, states: list[_State]) -> list[_State]:
        """Take the lossy steps back where they leave the model neither smaller nor faster than the exact ones do."""
        lossy = [number for number in self._moved(states) if not self.plan[number - 1].exact]
        if not lossy:
            return states
        before = dict(self.out)
        for number in lossy:
            record = states[number].record
            assert record is not None
            self.out[number] = dataclasses.replace(record, outcome="rolled back", reason="for comparison")
        exact = self._settle(states[: lossy[0]])
        old, new = exact[-1].model, states[-1].model
        reason = ""
        if states[-1].size.bytes * GROWTH >= exact[-1].size.bytes:
            reason = "made the model no smaller, and nothing was timed"
            if self.times:
                timing = self._time(old, new, self.latency_seconds)
                reason = "" if timing.high < 1 else f"made the model neither smaller nor faster (x {timing.ratio:.3f})"
        if not reason:
            self.out = before
            return states
        for number in lossy:
            self.out[number] = dataclasses.replace(self.out[number], reason=reason)
        return self._walk(exact[: lossy[0]])

    def _exact_at_first(self, states: Sequence[_State]) -> list[int]:
        """The steps that changed something, up to the first lossy one."""
        return list(itertools.takewhile(lambda number: self.plan[number - 1].exact, self._moved(states)))

    def _not_slower(self, states: list[_State]) -> tuple[list[_State], Latency | None]:
        """Time the result; take exact steps back, from the last on, where it is slower with confidence.

        Lossy steps may be there for the size; what comes before them has no such excuse.
        """
        while True:
            final, moved = states[-1].model, self._exact_at_first(states)
            if not self.times or (final is self.start and self.reference is self.start):
                return states, None
            latency = self._time(self.reference, final, self.latency_seconds)
            if latency.low <= SLOWER or not moved:
                return states, latency
            if moved != self._moved(states):
                early = self._time(self.reference, states[moved[-1]].model, self.latency_seconds)
                if early.low <= SLOWER:
                    return states, latency
            if self._share(states):
                states = self._settle(self._one_by_one(states))
                moved = self._exact_at_first(states)
            guilty = moved[0]
            for number, earlier in zip(moved[:0:-1], moved[-2::-1], strict=True):
                if self._time(self.reference, states[earlier].model, self.latency_seconds).low <= SLOWER:
                    guilty = number
                    break
            told = f"measured slower: x {latency.ratio:.3f} ({latency.low:.3f} to {latency.high:.3f})"
            states = self._settle(self._without(states, guilty, told))

    def _against_budget(
        self, final: Model, fidelity: Fidelity | None, latency: Latency | None
    ) -> tuple[Latency | None, list[str]]:
        """Every limit that is not met; times longer where the timing cannot say yet."""
        budget = self.budget
        if budget is None:
            return latency, []
        breaches = answer_breaches(budget, fidelity) if fidelity is not None else []
        if fidelity is None and budget.judges_answers:
            breaches.append(f"the answers could not be compared: {self.feeds.used.note}")
        breaches += gain_breaches(
            budget,
            self._cost(self.start),
            self._cost(final),
            domains=frozenset(node.domain for node in all_nodes(final.ir.graph)),
            opset=opset_of(final.ir),
            given=self.feeds.used.kind == "given",
        )
        limit = budget.max_latency_ratio
        if limit is None:
            return latency, breaches
        if not self.times:
            return latency, [*breaches, "max_latency_ratio: nothing runs, so nothing was timed"]
        seconds = self.latency_seconds
        latency = latency or self._time(self.reference, final, seconds)
        while latency.low <= limit < latency.high and seconds < 4 * self.latency_seconds:
            seconds *= 2
            latency = self._time(self.reference, final, seconds)
        told = f"{latency.ratio:.3f} ({latency.low:.3f} to {latency.high:.3f}), the limit is {limit:g}"
        if not latency.low <= limit:
            breaches.append(f"max_latency_ratio: {told}")
        elif not latency.high <= limit and not budget.allow_inconclusive:
            breaches.append(f"max_latency_ratio: inconclusive, {told}")
        return latency, breaches

    def _latency_note(self, final: Model, latency: Latency | None) -> str:
        if latency is not None:
            return ""
        if not self.feeds.runs:
            return "not timed: nothing runs"
        return "not timed: asked not to (--no-latency)" if not self.times else "not timed: the model is unchanged"


def _flaws(misdeclared: Mapping[str, str]) -> list[Change]:
    """What is wrong with the model as it was given, for the report."""
    return [
        Change("load", (name,), f"kept the wrong shape of output '{name}'", details={"found": text})
        for name, text in misdeclared.items()
    ]


def said(found: Fidelity) -> str | None:
    """What of a comparison is more than rounding; None where nothing is."""
    if found.equal():
        return None
    noise = {name: output.noise_floor for name, output in found.outputs.items()}
    places = [(output, name, "") for name, output in found.outputs.items()]
    places += [(output, name, " in onnxruntime's default session") for name, output in found.default.items()]
    # the largest first, and what is no number before everything
    places.sort(key=lambda place: -place[0].error if place[0].error == place[0].error else -math.inf)
    output, name, where = next((place for place in places if place[0].mismatch), places[0])
    floor = "" if noise.get(name) is None else f", noise floor {noise[name]:.2g}"
    return output.mismatch or f"output '{name}' is off by {output.error:.2g} of its scale{where}{floor}"


def _once(records: Iterator[StepRecord]) -> Iterator[StepRecord]:
    """The records with each refusal told once, though every cleanup meets it again."""
    seen: set[tuple[str, tuple[str, ...], str]] = set()
    for record in records:
        kept: list[Change] = []
        for change in record.changes:
            key = (change.pass_name, change.where, change.reason)
            if change.applied or key not in seen:
                kept.append(change)
            if not change.applied:
                seen.add(key)
        yield dataclasses.replace(record, changes=tuple(kept))
