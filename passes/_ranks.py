"""Ranks of single layers as rows of a plan: what each form loses and takes, and the split once it is chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir

from onnxslim_core.calibration.consumers import is_linear, kept_of
from onnxslim_core.calibration.moments import Moments
from onnxslim_core.calibration.sharing import layers_of
from onnxslim_core.calibration.tails import Tails
from onnxslim_core.channels.groups import ChannelGraph
from onnxslim_core.errors import SlimError
from onnxslim_core.lowrank.forms import Offer, offers, weights_like
from onnxslim_core.lowrank.gather import Seen, gather
from onnxslim_core.lowrank.split import split
from onnxslim_core.lowrank.weights import weight_of
from onnxslim_core.measure.shapes import concrete_shapes
from onnxslim_core.model import load
from onnxslim_core.ops.macs import macs
from onnxslim_core.repair.sequential import Refit
from onnxslim_core.rewrite import Context, Sample
from onnxslim_core.search.plan import Row
from onnxslim_core.search.segments import Segment

__all__ = ["Rank", "layers_for_ranks", "rank_rows", "split_layers", "split_like", "variants_of"]

_LEAST = 4096
"""Weights of fewer elements are too small to gain by a split."""
_ROWS = 10
"""Offers of one layer that go into the plan."""
_WORTH = 0.9
"""An offer must save at least the rest of the layer's multiply-adds."""


@dataclass(frozen=True, slots=True, eq=False)
class Rank:
    """A layer in another form.

    Attributes:
        node: The layer.
        offer: The form and its ranks.
        share: Of the layer's multiply-adds.
    """

    node: ir.Node
    offer: Offer
    share: float

    @property
    def name(self) -> str:
        """Of the layer."""
        return str(self.node.name)

    @property
    def whole(self) -> float:
        """Weights of the layer as it is."""
        found = weight_of(self.node)
        assert found is not None
        return float(found[1].size)


def layers_for_ranks(model: ir.Model, known: Mapping[ir.Node, Moments]) -> list[ir.Node]:
    """Layers whose input was studied and whose weight is large enough to be split, in the order of the graph.

    A weight that something else reads, too, would stay in the file beside its factors.
    """
    found = []
    for node in model.graph:
        weight = weight_of(node) if node in known and is_linear(node) and layers_of([node]) else None
        if weight is not None and weight[1].size >= _LEAST and len(weight[1]) == len(known[node].mean_x):
            found.append(node)
    return found


def rank_rows(node: ir.Node, moments: Moments, tails: Tails, channels: ChannelGraph) -> list[Row]:
    """The layer as it is, and in the forms that nothing beats in both cost and error."""
    shapes = channels.flow.shapes.shape
    x = next(shapes.get(v, ()) for v in node.inputs if v is not None and v.const_value is None)
    y = shapes.get(node.outputs[0], ())
    full = macs(node, [None if v is None else shapes.get(v) for v in node.inputs], [y])
    rows = [Row("keep", 0.0, 1.0)]
    try:
        found = offers(node, Seen.of(moments), x, y)
    except ValueError:
        return rows
    found = _thinned([offer for offer in _front(found) if full and offer.macs <= _WORTH * full])
    if not found:
        return rows
    anchors = sorted({0, len(found) // 2, len(found) - 1})
    more = []
    for at in anchors:
        lost = tails.lost({node: weights_like(node, found[at])})
        more.append(np.log(max(lost, 1e-12) / max(found[at].error, 1e-12)))
    for number, offer in enumerate(found):
        loss = max(offer.error, 1e-12) * float(np.exp(np.interp(number, anchors, more)))
        share = offer.macs / full
        what = f"{offer.form} {' x '.join(map(str, offer.ranks))}"
        rows.append(Row(what, max(loss, rows[-1].loss), share, Rank(node, offer, share)))
    return rows


def _macs(offer: Offer) -> int:
    return offer.macs


def _front(found: Sequence[Offer]) -> list[Offer]:
    """Offers of all forms that no other beats, dear to cheap."""
    kept: list[Offer] = []
    for offer in sorted(found, key=lambda offer: (offer.macs, offer.error)):
        if not kept or offer.error < kept[-1].error:
            kept.append(offer)
    return kept[::-1]


def _thinned(found: Sequence[Offer]) -> list[Offer]:
    if len(found) <= _ROWS:
        return list(found)
    return [found[at] for at in sorted({round(part) for part in np.linspace(0, len(found) - 1, _ROWS)})]


def variants_of(segment: Segment, rows: Sequence[Row]) -> list[onnx.ModelProto] | None:
    """The part of a layer in each of its forms, to be timed; None where it cannot be written."""
    found = []
    for row in rows:
        try:
            part = load(segment.proto.SerializeToString()).ir
            node = next(each for each in part.graph if each.name == row.payload.name)
            # an Add behind it, which would take the shift, is no part of this
            split(part, node, replace(row.payload.offer, mean=None))
        except (SlimError, ValueError, StopIteration):
            return None
        found.append(ir.to_proto(part))
    return found


def split_like(model: ir.Model, node: ir.Node, rank: Rank) -> None:
    """Write a layer of a copy out as the plan has it, to be timed: what it answers does not matter.

    A layer that has become narrower is decomposed without data, at the rank that costs the same share of it.
    """
    found = weight_of(node)
    assert found is not None
    size = found[1].shape
    offer = rank.offer
    if size != weight_of(rank.node)[1].shape:  # type: ignore[index]
        rows = offers(node, None, forms=(offer.form,))
        whole = float(np.prod(size))
        if not rows:
            return
        offer = min(rows, key=lambda each: abs(each.params / whole - rank.offer.params / rank.whole))
    split(model, node, dataclasses.replace(offer, mean=None))


def split_layers(
    model: ir.Model,
    chosen: Sequence[Rank],
    reference: ir.Model,
    batches: Sequence[Sample],
    context: Context,
    repair: str,
) -> int:
    """Write the chosen layers out in their forms, decomposed anew on what they read by now; how many were.

    A layer that has become narrower takes the rank that costs the same share of it. Last, the last node of every split
    layer is solved anew against what the reference answers.
    """
    wanted = {each.name: each for each in chosen}
    nodes = {node: wanted[str(node.name)] for node in model.graph if str(node.name) in wanted}
    weights = {node: found[1] for node in nodes if (found := weight_of(node)) is not None}
    seen = dict(gather(model, batches, weights, seed=context.seed, threads=context.threads))
    shapes = concrete_shapes(model, context.samples[0])
    done, spare = list[str](), 0.0
    for node, each in nodes.items():
        if node not in seen:
            continue
        x = next(shapes.shape.get(v, ()) for v in node.inputs if v is not None and v.const_value is None)
        y = shapes.shape.get(node.outputs[0], ())
        full = macs(node, [None if v is None else shapes.shape.get(v) for v in node.inputs], [y])
        try:
            cheaper = [o for o in offers(node, seen[node], x, y, forms=(each.offer.form,)) if o.macs < full]
        except ValueError:
            continue
        # the dearest within the plan's share, and what one layer leaves of it goes to the next, so that a target holds
        share = each.share * full + spare
        within = [offer for offer in cheaper if offer.macs <= share] or cheaper[-1:]
        if within:
            best = max(within, key=_macs)
            spare = share - best.macs
            done.append(str(split(model, node, best)[-1].name))
    if done and repair != "none":
        kept = kept_of(model)
        Refit(reference, model, batches, kept, done, seed=context.seed, threads=context.threads, repair=repair).run(
            context.progress
        )
    return len(done)
