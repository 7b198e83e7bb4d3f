"""What the answers lose where some linear nodes get other weights: only what follows them is run again.

Every lossy step on a linear node is, before it is carried out, a change of its weights at their full shape: a channel
that goes is a row of zeros in its readers, a factorization is the product of its factors, a block that is dropped is
a last layer that answers with its mean. So one measurement serves them all, at about half a pass per question.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.calibration.answers import Answers
from onnxslim_core.calibration.lockstep import Walk
from onnxslim_core.calibration.pieces import Swap, cut_out, read_by, read_from
from onnxslim_core.measure.scores import Parts
from onnxslim_core.measure.session import open_piece, run
from onnxslim_core.rewrite import Sample

__all__ = ["Tails"]


class Tails:
    """The original on some batches, cut open wherever somebody asks.

    Args:
        model: The model; it must not change meanwhile.
        batches: Feeds.
        sets: The sets of linear nodes that will be asked about, in the order of the graph; each is asked about until
            `done` is said of it.
        threads: For onnxruntime.
        answers: What answers are held against; the model's own where not given.
        parts: Columns of outputs that are declared to mean different things; see `Answers`.
    """

    def __init__(
        self,
        model: ir.Model,
        batches: Sequence[Sample],
        sets: Sequence[Collection[ir.Node]],
        threads: int = 1,
        answers: Answers | None = None,
        parts: Mapping[str, Parts] | None = None,
    ) -> None:
        self._model = model
        self._threads = threads
        self._parts = parts
        self._walk = Walk(model, batches, threads)
        self._after = _Followers(model)
        self._outputs = list(dict.fromkeys(model.graph.outputs))
        self._walk.reserve(self._outputs)
        for nodes in sets:
            self._walk.reserve(self._open(nodes)[1])
        self._answers = answers

    def lost(self, swaps: Mapping[ir.Node, Swap], zeroed: ir.Value | None = None) -> float:
        """Squared error of the answers over their variance; arguments as in `answers_with`."""
        return self.answers().lost(self.answers_with(swaps, zeroed))

    def answers_with(self, swaps: Mapping[ir.Node, Swap], zeroed: ir.Value | None = None) -> list[dict[str, object]]:
        """What the network answers, batch by batch.

        Args:
            swaps: Linear nodes that use other weights than their own.
            zeroed: A value that is all zeros; it must be read by nodes of one set, and where it is made behind the
                swapped nodes only by an Add.
        """
        asked = [*swaps, *(node for node, _ in verbs.users_of(zeroed)[0])] if zeroed is not None else list(swaps)
        nodes, read = self._open(asked)
        inside = set(nodes)
        held = [self._walk.value(value) for value in read]
        held = [[np.zeros_like(a) for a in each] if v is zeroed else each for v, each in zip(read, held, strict=True)]
        if zeroed is not None and zeroed.producer() in inside:
            nodes = [node for node in nodes if node is not zeroed.producer()]
            nought = np.zeros(1, np.float32 if zeroed.dtype is None else zeroed.dtype.numpy())
            read, held = [*read, zeroed], [*held, [nought] * len(self._walk)]
        made = [v for v in self._outputs if v.producer() in inside]
        if not made:
            return self.own_answers()
        dtypes = {value: arrays[0].dtype for value, arrays in zip(read, held, strict=True)}
        session = open_piece(cut_out(self._model, nodes, read, made, dtypes, swaps), threads=self._threads)
        found = []
        for number in range(len(self._walk)):
            answers = run(session, {str(v.name): arrays[number] for v, arrays in zip(read, held, strict=True)})
            found.append({**self._given(number), **answers})
        return found

    def own_answers(self) -> list[dict[str, object]]:
        """What the original answers, batch by batch."""
        return [self._given(number) for number in range(len(self._walk))]

    def done(self, nodes: Collection[ir.Node]) -> None:
        """Nobody will ask about these nodes again."""
        self._walk.release(self._open(nodes)[1])

    def answers(self) -> Answers:
        """What the original says."""
        if self._answers is None:
            for value in self._outputs:
                self._walk.value(value)
            self._answers = Answers(self.own_answers(), self._parts)
        return self._answers

    def _given(self, number: int) -> dict[str, object]:
        return {str(value.name): self._walk.value(value)[number] for value in self._outputs}

    def _open(self, nodes: Collection[ir.Node]) -> tuple[list[ir.Node], list[ir.Value]]:
        """Everything from these nodes on, and what it reads that is made before."""
        tail = self._after.of(nodes)
        return tail, read_from(tail)


class _Followers:
    """Which nodes of the main graph depend on which."""

    def __init__(self, model: ir.Model) -> None:
        self._order = list(model.graph)
        self._readers: dict[ir.Value, list[ir.Node]] = {}
        for node in self._order:
            for value in read_by(node):
                self._readers.setdefault(value, []).append(node)

    def of(self, nodes: Collection[ir.Node]) -> list[ir.Node]:
        """These nodes and all that follow them, in the order of the graph."""
        found, stack = set(nodes), list(nodes)
        while stack:
            for value in stack.pop().outputs:
                for reader in self._readers.get(value, ()):
                    if reader not in found:
                        found.add(reader)
                        stack.append(reader)
        return [node for node in self._order if node in found]
