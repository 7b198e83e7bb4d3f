"""What a pass is, what it may do, what it leaves on record, and the engine that runs local rewrites.

There are two shapes of a pass, both frozen dataclasses whose fields are their options. A *local rewrite* declares
`match` (structure only), `guards` (named predicates that give a reason for refusal) and `rewrite` (cannot fail); one
engine runs it over a work list that is fed by use-def edges, in time linear in the nodes. A *whole-graph pass* has
`run(model, context)`. Both work in place on an `onnx_ir.Model` and return a list of `Change` records.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core._checks import globs
from onnxslim_core.errors import InternalError

__all__ = [
    "OVERRIDE_FITS",
    "Change",
    "Context",
    "Edit",
    "Guard",
    "Kind",
    "Match",
    "Override",
    "Pass",
    "Progress",
    "Rewrite",
    "Sample",
    "Timing",
    "apply",
    "glob_for",
    "weight_bytes",
]

Sample = Mapping[str, np.ndarray]
"""One call of the model: an array per graph input."""


class Kind(enum.Enum):
    """What a pass promises about the answers."""

    BITWISE = "bitwise"
    """Every output bit is equal."""
    ALGEBRAIC = "algebraic"
    """Equal in real arithmetic; rounding may differ."""
    LOSSY = "lossy"
    """May differ; measured and reported, never in a default recipe."""

    @property
    def exact(self) -> bool:
        """True for the two kinds that a recipe with `requires = "exact"` may hold."""
        return self is not Kind.LOSSY


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the journal: something done, or refused where a user would have expected it.

    Attributes:
        pass_name: The pass, as in a recipe.
        where: The nodes (or the group of channels) concerned, by name.
        action: What was done, in a few words; what would have been done, in a refusal.
        reason: Why not; empty where it was done.
        guard: The guard that refused; empty where it was done.
        bytes_saved: Weights that went, in bytes (negative: added).
        details: Numbers and strings for the report, never graph objects.
    """

    pass_name: str
    where: tuple[str, ...]
    action: str
    reason: str = ""
    guard: str = ""
    bytes_saved: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def applied(self) -> bool:
        """False for a refusal."""
        return not self.reason


def glob_for(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    """The first of the globs that one of the names fits; None where none does. A text is one glob."""
    wanted = (wanted,) if isinstance(wanted, str) else wanted
    known = list(names)
    return next((glob for glob in wanted for name in known if fnmatchcase(name, glob)), None)


OVERRIDE_FITS = "override_fits"
"""The guard that refuses a glob which no name fits: a mistake of the recipe, not a finding about the model."""


@dataclass(frozen=True, slots=True)
class Override:
    """`[[pass.override]]` of a recipe: other options of a pass for some of its groups.

    A pass that takes these has a field `override: tuple[Override, ...]` and says in the class variable `per_group`
    which of its options may be given.

    Attributes:
        match: Globs over names.
        keep: Leave them alone.
        options: By name; of the types of the pass's own.
    """

    match: tuple[str, ...]
    keep: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "match", globs("match of an override", self.match))

    def glob_for(self, names: Sequence[str]) -> str | None:
        """The first of the globs that one of the names fits."""
        return glob_for(names, self.match)


class Timing(Protocol):
    """What a latency measurement tells a pass (see `measure.latency.Latency`)."""

    @property
    def ratio(self) -> float:
        """Time of the candidate over time of the reference."""

    @property
    def low(self) -> float:
        """Lower end of the interval."""

    @property
    def high(self) -> float:
        """Upper end of the interval."""


class Progress(Protocol):
    """Told how far long work is."""

    def __call__(self, step: str, done: int, total: int, /) -> None:
        """Report that `done` of `total` are through in a step."""


def _silent(step: str, done: int, total: int) -> None:
    return None


@dataclass(slots=True)
class Context:
    """What a pass is handed besides the model.

    Attributes:
        samples: Feeds that run, at concrete sizes; the first sets the sizes at which symbolic shapes are analysed.
            Empty where nothing runs: then exact passes work without them and lossy passes refuse.
        samples_are_real: False where they are seeded random numbers, or look like noise, and nobody has said that
            passes may decide on those.
        origins: Parallel to the samples: which image or recording each was taken from, by number. Samples of one origin
            say much the same: see `calibration.diversity`. Empty where the samples are random.
        seed: Of everything that is drawn.
        threads: For measuring.
        progress: Called with (step, done, total).
        parts: By output: an axis, and by name the first and one past the last of its columns that mean different
            things and are judged apart.
        latency: Interleaved measurement (reference, candidate) -> Timing, or None where measuring is off.
        cache: Folder in which what was timed is kept for the next run; None keeps nothing.
        reference: The model before the first lossy pass, not to be changed; None where none has run.
        notes: What earlier passes left for later ones, by pass name.
    """

    samples: Sequence[Sample] = ()
    samples_are_real: bool = False
    origins: Sequence[int] = ()
    seed: int = 0
    threads: int = 1
    progress: Progress = _silent
    parts: Mapping[str, tuple[int, Mapping[str, tuple[int, int]]]] = field(default_factory=dict)
    latency: Callable[[ir.Model, ir.Model], Timing] | None = None
    cache: Path | None = None
    reference: ir.Model | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Pass(Protocol):
    """What the pipeline asks of a pass."""

    name: ClassVar[str]
    kind: ClassVar[Kind]

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Change the model in place; return what was done and what was refused."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """A place where a rewrite applies. Passes derive their own with the nodes and values they need.

    Attributes:
        node: The anchor: the node from which the pattern was found.
        model: The model around it, for opsets and the like.
    """

    node: ir.Node
    model: ir.Model

    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes that the rewrite will consume, for the journal."""
        return (self.node,)


Guard = Callable[[Any, Any], str | None]
"""A named predicate (match, options) -> reason for refusal or None. The guard's `__name__` goes on record."""


class Edit:
    """The only way in which a rewrite changes the graph; notes what it touched, so that the work list is fed."""

    def __init__(self, names: verbs.Names) -> None:
        self._names = names
        self.touched: list[ir.Node] = []

    def constant(self, near: ir.Node, array: np.ndarray, hint: str) -> ir.Value:
        """A new initializer in the graph of `near`."""
        graph = near.graph
        if not isinstance(graph, ir.Graph):
            raise InternalError("node is in no graph", verbs.label_of(near))
        return verbs.add_constant(graph, self._names, array, hint)

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        before: ir.Node,
        hint: str = "",
        domain: str = "",
        num_outputs: int = 1,
    ) -> ir.Node:
        """A new node before another one."""
        node = verbs.add_node(
            self._names, op_type, inputs, attributes, before=before, hint=hint, domain=domain, num_outputs=num_outputs
        )
        self.touched.append(node)
        return node

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Let a node read another value; what the old one alone needed goes."""
        old = node.inputs[index] if index < len(node.inputs) else None
        verbs.replace_input(node, index, value)
        self.touched.append(node)
        if old is not None:
            self._drop_if_idle(old)

    def set_attribute(
        self, node: ir.Node, name: str, value: float | str | Sequence[int] | Sequence[float] | None
    ) -> None:
        """Set an attribute, or take it away with None."""
        verbs.set_attribute(node, name, value)
        self.touched.append(node)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let every reader of `old` read `new`, and remove the producer of `old` if nothing needs it any more."""
        readers = [node for node, _ in verbs.users_of(old)[0]]
        verbs.replace(old, new, self._names)
        self.touched.extend(readers)
        if (producer := new.producer()) is not None:
            self.touched.append(producer)
        self._drop_if_idle(old)

    def _drop_if_idle(self, value: ir.Value) -> None:
        producer = verbs.idle_source(value)
        if producer is None or producer.graph is None:
            return
        self.touched.extend(p for v in producer.inputs if v is not None and (p := v.producer()) is not None)
        verbs.remove(producer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """A local rewrite; see `passes/fuse_batchnorm.py` for the model of one.

    A derived class sets `name`, `kind`, `ops` (the types of its anchor nodes), `guards`, and gives `match`,
    `rewrite` and `action`. Its options are its own dataclass fields.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    ops: ClassVar[frozenset[str]]
    guards: ClassVar[tuple[Guard, ...]] = ()

    def match(self, node: ir.Node, model: ir.Model) -> Match | None:
        """The pattern around an anchor node, from ops and edges alone, or None."""
        raise NotImplementedError

    def rewrite(self, m: Any, edit: Edit) -> None:
        """Carry out a match that every guard let pass. Cannot fail."""
        raise NotImplementedError

    def action(self, m: Any) -> str:
        """A few words for the journal: what is done at this match."""
        return self.name

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Run to a fixpoint over the whole model, bodies included."""
        return apply(self, model)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, bodies included, without reading them."""
    total, graphs = 0, [model.graph]
    while graphs:
        graph = graphs.pop()
        total += sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None)
        graphs.extend(body for node in graph for body in verbs.bodies(node))
    return total


def apply(rewrite: Rewrite, model: ir.Model) -> list[Change]:
    """Run a local rewrite over a work list: every node once, and again whatever an edit touched.

    A place that was refused is put on record once. The number of rewrites is bounded by 50 times the nodes, so that
    a pair of rewrites that undo each other ends as our own error and not as a hang.
    """
    todo = deque(node for node in verbs.all_nodes(model.graph) if _is_anchor(rewrite, node))
    waiting = set(todo)
    names = verbs.Names(model)
    changes: list[Change] = []
    refused: dict[ir.Node, Change] = {}
    limit = 50 * (len(todo) + 100)
    while todo:
        node = todo.popleft()
        waiting.discard(node)
        if node.graph is None or (m := rewrite.match(node, model)) is None:
            refused.pop(node, None)  # what was refused here is no longer there
            continue
        where = tuple(verbs.label_of(n) for n in m.nodes())
        verdict = _refusal(rewrite, m)
        if verdict is not None:
            guard, reason = verdict
            refused[node] = Change(rewrite.name, where, rewrite.action(m), reason=reason, guard=guard)
            continue
        refused.pop(node, None)
        action, edit = rewrite.action(m), Edit(names)
        rewrite.rewrite(m, edit)
        changes.append(Change(rewrite.name, where, action))
        if len(changes) > limit:
            raise InternalError("does not come to an end", f"{rewrite.name} at {where[0]}")
        for touched in _around(edit.touched):
            if touched not in waiting and _is_anchor(rewrite, touched):
                waiting.add(touched)
                todo.append(touched)
    return changes + [change for node, change in refused.items() if node.graph is not None]


def _is_anchor(rewrite: Rewrite, node: ir.Node) -> bool:
    return node.graph is not None and node.op_type in rewrite.ops and node.domain in verbs.STANDARD


def _refusal(rewrite: Rewrite, m: Match) -> tuple[str, str] | None:
    for guard in rewrite.guards:
        if (reason := guard(m, rewrite)) is not None:
            return guard.__name__, reason
    return None


def _around(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """The touched nodes with their direct neighbours, since a pattern may be anchored at either end."""
    found: dict[ir.Node, None] = {}
    for node in nodes:
        if node.graph is None:
            continue
        found[node] = None
        for value in node.inputs:
            if value is not None and (producer := value.producer()) is not None:
                found[producer] = None
        for value in node.outputs:
            for user, _ in verbs.users_of(value)[0]:
                found[user] = None
    return list(found)
