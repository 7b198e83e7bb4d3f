"""What can go and why the rest cannot, as `inspect --explain` shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim_core.channels.groups import ChannelGraph, Group, analyse
from onnxslim_core.graph import label_of
from onnxslim_core.ops.flow import ShapesLike
from onnxslim_core.rewrite import Sample

__all__ = ["Explanation", "GroupNote", "explain"]


@dataclass(frozen=True, slots=True)
class GroupNote:
    """One group of channels.

    Attributes:
        name: The node that makes them first.
        size: Classes of channels that are chosen among each other.
        free: How many of them can go.
        unit: Channels of one class along the axis that makes them (more than 1 for heads and groups).
        params: Weights that stand on these channels.
        macs: Multiply-adds that stand on them.
        producers: Nodes that make them.
        consumers: Nodes that sum over them.
        node: The node that keeps the others; empty where all can go.
        reason: What it does.
    """

    name: str
    size: int
    free: int
    unit: int
    params: int
    macs: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Every group of a model.

    Attributes:
        groups: In the order of the graph.
        free_params: Weights on an axis that can be cut.
        labelled_params: Weights on an axis that carries channels at all.
        obstacles: Reason -> how many groups it freezes, the most frequent first.
    """

    groups: tuple[GroupNote, ...]
    free_params: int
    labelled_params: int
    obstacles: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and strings."""
        return {**asdict(self), "groups": [asdict(group) for group in self.groups], "obstacles": dict(self.obstacles)}


def explain(model: ir.Model, sample: Sample | None, *, shapes: ShapesLike | None = None) -> Explanation:
    """Say for every group of channels what can go, and for the rest the node and the reason.

    Args:
        model: The model, constants folded where they can be.
        sample: Feeds whose sizes stand for symbolic dimensions.
        shapes: Concrete shapes, where the caller has them already.
    """
    channels = analyse(model, sample, shapes=shapes)
    notes = tuple(_note(channels, group) for group in channels.groups)
    obstacles = Counter(": ".join(filter(None, (note.node, note.reason))) for note in notes if note.reason)
    return Explanation(notes, *_weights(channels), dict(obstacles.most_common()))


def _note(channels: ChannelGraph, group: Group) -> GroupNote:
    reason = group.reason
    return GroupNote(
        name=group.name,
        size=group.width,
        free=int(group.free.sum()),
        unit=group.unit,
        params=round(float(channels.class_params[group.classes].sum())),
        macs=round(float(channels.class_macs[group.classes].sum())),
        producers=tuple(label_of(node) for node in group.producers),
        consumers=tuple(label_of(node) for node in group.consumers),
        node="" if reason is None else reason.node,
        reason="" if reason is None else reason.text,
    )


def _weights(channels: ChannelGraph) -> tuple[int, int]:
    """Elements of constants with an axis that can be cut, and with an axis that carries channels."""
    free, labelled = 0, 0
    by_constant: dict[ir.Value, bool] = {}
    for use in channels.uses:
        loose = bool((~channels.classes.pinned[use.labels]).any())
        by_constant[use.constant] = by_constant.get(use.constant, False) or loose
    for constant, loose in by_constant.items():
        size = int(np.prod(channels.flow.shape(constant), dtype=np.int64))
        labelled += size
        free += size if loose else 0
    return free, labelled
