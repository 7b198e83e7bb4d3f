"""Let nodes change places, or join, where onnxruntime has less to do.

    MaxPool(f(x))                          ->  f(MaxPool(x))               f never falls: Sigmoid, LeakyRelu, ...
    AveragePool(Conv1x1(x))                ->  Conv1x1(AveragePool(x))     also of all positions
    Max(x, a*x), 0 < a <= 1                ->  LeakyRelu(x)
    Relu(Concat(Relu(x), Relu(y)))         ->  Concat(Relu(x), Relu(y))
    W*Flatten(Transpose(x))                ->  W'*Flatten(x)               rows of W in another order
    Transpose(f(Transpose(x), Transpose(y)))   ->  f(x, y)                 f element by element, or Concat
    Reshape(Unsqueeze(x)), Transpose(Transpose(x))   ->  one of them, or none

Exact: the same numbers are computed, sums of a matrix or an average in another order. Each rule is here because
onnxruntime 1.32 (default session, one thread of an AVX-512 machine, small nets; bench/neighbours.py) took less time or
because the file gets smaller. Time after over before, 95 % interval:

    Conv, f, MaxPool: f = Softplus .35, Elu .60 to .62, Softsign .83 to .86, Sigmoid .90 to .91, Tanh .90 to .92,
    HardSigmoid .92 to .95, LeakyRelu .93 to .95, Max and Min with a number .94; Relu 1.00 to 1.01 (onnxruntime does
    Conv and Relu in one, so it stays), behind Add .98, behind BatchNormalization .97 (moved)
    1x1 Conv and AveragePool 2x2 .92 to .93, GlobalAveragePool .89 to .91
    Max to LeakyRelu .96 to .97; Transpose into the rows of a matrix .97 to .99, of size 1 .97 to .98
    Transposes at borders, joined Reshapes 1.00 in small nets (onnxruntime does it when it loads; a smaller graph), but
    a ResNet-50 exported with 104 Transposes between its Convs .68 to .76, since fuse_batchnorm then reaches its biases

Tried and left out: Relu behind a Concat of Convs instead of before it 1.01, the other way .99 for one node more.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, final

import onnx_ir as ir

from onnxslim_core.graph import Names, all_nodes, bodies, label_of, opset_of
from onnxslim_core.rewrite import Change, Context, Edit, Guard, Kind, Rewrite, apply

from ._facts import Known
from ._reorder_layout import regions, turn_over
from ._reorder_local import LOCAL, Move

__all__ = ["Reorder"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reorder(Rewrite):
    """Let activations, pools, Transposes and Reshapes change places where less is left to do."""

    name: ClassVar[str] = "reorder"
    kind: ClassVar[Kind] = Kind.ALGEBRAIC
    ops: ClassVar[frozenset[str]] = frozenset(LOCAL)
    guards: ClassVar[tuple[Guard, ...]] = ()

    _known: Known | None = field(default=None, init=False, repr=False, compare=False)

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Layouts first, since Transposes hide what else is there; then pairs of neighbours, to a fixpoint."""
        if opset_of(model) < 7 or not any(node.op_type in LOCAL for node in all_nodes(model.graph)):
            return []
        bound = copy.copy(self)
        known = Known(model)
        object.__setattr__(bound, "_known", known)
        changes: list[Change] = []
        while True:
            found = [*self._layouts(model, known), *apply(bound, model)]
            changes += found
            if not found:
                return changes

    def match(self, node: ir.Node, model: ir.Model) -> Move | None:
        """The first local rule that has something to do at this node."""
        assert self._known is not None
        found = (rule(node, model, self._known) for rule in LOCAL[node.op_type])
        return next((move for move in found if move is not None), None)

    def action(self, m: Move) -> str:
        """What changes places."""
        return m.what

    def rewrite(self, m: Move, edit: Edit) -> None:
        """Carry the move out, and learn what is new."""
        assert self._known is not None
        for node in m.do(edit):
            self._known.relearn(node)

    def _layouts(self, model: ir.Model, known: Known) -> list[Change]:
        changes: list[Change] = []
        names: Names | None = None
        for graph in _graphs(model.graph):
            order = {node: float(index) for index, node in enumerate(graph)}
            for region in regions(graph, known, order):
                names = names or Names(model)
                gone, where = region.gain(), tuple(label_of(node) for node in region.nodes)
                turn_over(region, names, known, order)
                action = f"turn the layout of {len(where)} nodes over: {gone} Transposes less"
                changes.append(Change(self.name, where[:8], action))
        return changes


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        for body in bodies(node):
            yield from _graphs(body)
