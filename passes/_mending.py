"""A plan carried out: channels cut, blocks dropped, layers split, and every reader of what went solved anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core.calibration.consumers import (
    Consumer,
    answer_of,
    bias_of,
    is_linear,
    kept_outputs,
    note_kept,
    put_weights,
    readers_of,
    target_of,
    weights_of,
)
from onnxslim_core.calibration.moments import Moments
from onnxslim_core.calibration.pieces import Swap
from onnxslim_core.calibration.sharing import Layer
from onnxslim_core.channels.branches import Branch, drop, in_copy
from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.channels.removal import remove_atoms
from onnxslim_core.channels.trace import trace
from onnxslim_core.channels.twin import twin_of
from onnxslim_core.criteria.random_search import polish
from onnxslim_core.criteria.table import MEASURED, curve_of
from onnxslim_core.errors import InternalError
from onnxslim_core.lowrank.forms import weights_like
from onnxslim_core.repair.sequential import Refit
from onnxslim_core.rewrite import Change
from onnxslim_core.search.bypass import bypass_of

from ._ranks import Rank, split_layers, split_like
from ._rows import Options, Width

__all__ = ["Mended", "carry_out", "cut", "mended"]

Choice = tuple[int, ...]

_POSITIONS = 24
_ENOUGH = 10
"""Rows per weight that a last layer needs, to be solved for although nothing it reads went."""


@dataclass(frozen=True, slots=True, eq=False)
class Mended:
    """What a plan comes to.

    Attributes:
        choice: The plan.
        classes: What goes.
        weights: By the names of a layer's calls its new weights and bias, at full width.
        lost: Measured on the probes.
    """

    choice: Choice
    classes: list[int]
    weights: dict[tuple[str, ...], Swap]
    lost: float

    @property
    def solved(self) -> int:
        """How many nodes get other weights."""
        return sum(len(names) for names in self.weights)


def mended(options: Options, choice: Choice, repair: str | None = None) -> Mended:
    """What a plan comes to: the classes that go, and the weights of every reader solved anew, one after the other.

    The copy on which this is found keeps its full widths. What goes has rows of zeros, and which channels these
    are is decided only when their reader is reached, on what it reads by then. A polish of that choice stays where
    the whole loses less by it.

    Args:
        options: The units.
        choice: A row of each.
        repair: In place of the one that is asked for.
    """
    repair = options.demand.repair if repair is None else repair
    found = _mended(options, choice, repair, 0)
    if not options.demand.polish or repair == "none":
        return found
    return min(found, _mended(options, choice, repair, options.demand.polish), key=lambda each: each.lost)


def _mended(options: Options, choice: Choice, repair: str, tries: int) -> Mended:
    """One way to do it, with so many swaps tried in every group."""
    work = options.model.clone()
    widths, branches, ranks = _chosen(options, choice)
    for branch in in_copy(work, branches):
        drop(work, branch)
    twins = {str(node.name): node for node in work.graph}
    for rank in ranks:
        put_weights(work, twins[rank.name], *weights_like(rank.node, rank.offer))
    readers = {width: _readers(options, width) for width in widths}
    at_once: dict[str, list[tuple[Group, Consumer, int]]] = {}
    rows: dict[str, NDArray[np.bool_]] = {}
    classes: list[int] = []

    def stays(node: ir.Node, moments: Moments) -> NDArray[np.bool_] | None:
        name = str(node.name)
        found = rows.get(name)
        for group, consumer, count in at_once.get(name, ()):
            setting = options.setting(group)
            free = group.classes[group.free]
            goes = curve_of(options.demand.criterion, [(consumer, moments)], free, setting).order[:count]
            goes = polish([(consumer, moments)], goes, free, setting, tries) if tries else goes
            classes.extend(int(root) for root in goes)
            mine = np.repeat(~np.isin(consumer.classes, goes), consumer.taps)
            found = mine if found is None else found & mine
        return found

    job = None
    if repair != "none":
        around, targets = _around(options, branches)
        nodes = [*(str(each.node.name) for mine in readers.values() for each in mine), *_last_layers(options), *around]
        job = Refit(
            options.model,
            work,
            options.all,
            {},
            nodes,
            seed=options.context.seed,
            threads=options.context.threads,
            repair=repair,
            ridge=options.ridge,
            targets=targets,
            stays=stays,
        )
    layers = [] if job is None else [_names(layer) for layer in job.layers]
    for width, mine in readers.items():
        names = {str(each.node.name) for each in mine}
        layer = next((layer for layer in layers if names == set(layer)), None)
        if layer is not None and options.demand.criterion not in MEASURED:
            at_once.setdefault(layer[0], []).append((width.group, mine[0], len(width.classes)))
            continue
        classes += [int(root) for root in width.classes]
        for each in mine:
            own = np.repeat(~np.isin(each.classes, width.classes), each.taps)
            rows[str(each.node.name)] = rows.get(str(each.node.name), True) & own
    solved = {name for layer in layers for name in layer}
    for node in list(work.graph):
        if str(node.name) not in solved and (used := rows.get(str(node.name))) is not None:
            put_weights(work, node, weights_of(node) * used[:, None], _own_bias(node))
    weights = {}
    if job is not None:
        job.run(options.context.progress)
        weights = {_names(layer): (weights_of(layer[0]), _own_bias(layer[0])) for layer in job.mended}
    return Mended(choice, classes, weights, options.lost(work))


def _readers(options: Options, width: Width) -> list[Consumer]:
    """What reads a group, all of which can be solved for, or the group was no option."""
    found = readers_of(options.channels, width.group, options.consumers)
    assert not isinstance(found, str)
    return found


def _names(layer: Layer) -> tuple[str, ...]:
    return tuple(str(node.name) for node in layer)


def _around(options: Options, branches: Sequence[Branch]) -> tuple[list[str], dict[str, str]]:
    """Who makes up for branches that go, and what for.

    The layer before a branch takes over what the branch did to the stream, so its sum is to be like the sum at the
    end of the branch; each later end of a branch corrects the stream that has lost one.
    """
    shapes = options.channels.flow.shapes.shape
    found = [bypass for branch in branches if (bypass := bypass_of(branch, shapes, branches)) is not None]
    targets = {str(bypass.stream.name): str(bypass.target.name) for bypass in found}
    names = [str(bypass.maker.name) for bypass in found]
    ends = {branch.add for branch in branches}
    after = False
    for node in options.model.graph:
        after = after or node in ends
        if after and is_linear(node) and target_of(node)[1] is not None:
            names.append(str(node.name))
    return names, targets


def _last_layers(options: Options) -> list[str]:
    """Linear nodes whose answer is an answer of the model, where the samples say enough to solve for them.

    They see all that was lost before them, and their target is what counts in the end.
    """
    found = []
    for node in options.model.graph:
        if not is_linear(node) or not answer_of(node).is_graph_output():
            continue
        shape = options.channels.flow.shapes.shape.get(node.outputs[0], ())
        places = int(np.prod(shape[2:] if node.op_type.startswith("Conv") else shape[1:-1]))
        if len(options.context.samples) * min(places, _POSITIONS) >= _ENOUGH * len(weights_of(node)):
            found.append(str(node.name))
    return found


def _chosen(options: Options, choice: Choice) -> tuple[list[Width], list[Branch], list[Rank]]:
    """The payloads of a choice, by kind; what is in a branch that goes is not split."""
    payloads = [unit.rows[row].payload for unit, row in zip(options.units, choice, strict=True)]
    branches = [p for p in payloads if isinstance(p, Branch)]
    gone = {node for branch in branches for node in branch.nodes}
    ranks = [p for p in payloads if isinstance(p, Rank) and p.node not in gone]
    return [p for p in payloads if isinstance(p, Width)], branches, ranks


def cut(options: Options, choice: Choice) -> ir.Model:
    """The plan's widths and blocks on a copy, to be timed; nothing is solved for."""
    work = options.model.clone()
    channels = twin_of(options.channels, work)
    widths, branches, ranks = _chosen(options, choice)
    ends = in_copy(work, branches)
    remove_atoms(channels, channels.gone([int(root) for width in widths for root in width.classes]))
    for branch in ends:
        drop(work, branch)
    twins = {str(node.name): node for node in work.graph}
    for rank in ranks:
        split_like(work, twins[rank.name], rank)
    return work


def carry_out(options: Options, best: Mended, shown: dict[str, Any]) -> Change:
    """Do to the model what was found: new weights at their full width, then the cut, then the blocks."""
    _, branches, ranks = _chosen(options, best.choice)
    reference = options.model.clone() if ranks else options.model
    nodes = {str(node.name): node for node in options.model.graph}
    for names, (weights, bias) in best.weights.items():
        first, *others = (nodes[name] for name in names)
        put_weights(options.model, first, weights, bias, others)
    flow = trace(options.model, options.context.samples[0], widths=options.channels.flow.widths)
    channels = ChannelGraph(flow, options.channels.classes)
    if flow.atoms.count != len(channels.classes.of):
        raise InternalError("new weights changed what is analysed")
    gone = channels.gone(best.classes)
    macs = channels.macs(gone)
    kept = kept_outputs(channels, gone)
    saved = remove_atoms(channels, gone)
    note_kept(options.model, kept)
    for branch in in_copy(options.model, branches):
        drop(options.model, branch)
    if ranks:
        count = split_layers(options.model, ranks, reference, options.all, options.context, options.demand.repair)
        shown = {**shown, "split": count, "measured_loss": options.lost(options.model)}
    what = f"remove {len(best.classes)} channels in all, repair {options.demand.repair if best.weights else 'none'}"
    what = f"split {len(ranks)} layers and {what}" if ranks else what
    what = f"drop {len(branches)} blocks and {what}" if branches else what
    details = {"macs_ratio": macs / max(options.channels.macs(), 1), **shown} if not branches else shown
    return Change(options.demand.name, (), what, bytes_saved=saved, details=details)


def _own_bias(node: ir.Node) -> NDArray[np.float64]:
    return bias_of(node, weights_of(node).shape[1])
