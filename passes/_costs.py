"""What the options of a plan cost together: channels, multiply-adds, or seconds of timed parts.

Where layers can be int8, each has its seconds in float and in int8, of which its unit lets one count; every part is
timed in both at every width and rank, and where two neighbours may differ, the conversion between them has its price.
Sums and pools between layers are nobody's part, so once the whole network has been timed with int8 where that seems
fastest, what parts in int8 take is scaled to that (`scaled`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir

from onnxslim_core.channels.branches import Branch
from onnxslim_core.channels.groups import Group
from onnxslim_core.errors import MeasureError
from onnxslim_core.measure.pieces import Table
from onnxslim_core.search.plan import Costs, Term, Unit
from onnxslim_core.search.segments import Segment, segment_of, segment_of_nodes

from ._precision import Precision, narrow_part
from ._precision_clock import INT8, between, edges_of, in_both, seconds_of
from ._ranks import variants_of
from ._rows import Options

__all__ = ["costs_of", "scaled"]

_SCALES = (0.25, 4.0)


def costs_of(options: Options) -> Costs:
    """What the allocation counts: multiply-adds by layer, seconds by layer from timed parts, or channels."""
    channels = options.channels
    if options.demand.allocation == "global":
        sizes = [what.width * what.unit if isinstance(what, Group) else 0 for what in options.homes]
        return Costs(tuple(Term(float(size), ({number: 1.0},)) for number, size in enumerate(sizes)))
    timed = options.demand.allocation == "latency"
    home = np.full(len(channels.classes.of), -1, np.int32)
    inside: dict[ir.Node, int] = {}
    ranked: dict[ir.Node, int] = {}
    precise: dict[ir.Node, int] = {}
    for number, what in enumerate(options.homes):
        if isinstance(what, Group):
            home[what.classes] = number
        elif isinstance(what, ir.Node):
            ranked[what] = number
        elif isinstance(what, Precision):
            precise[what.node] = number
        else:
            inside |= dict.fromkeys(what.nodes, number)
    terms, works = [], []
    for work in channels.works:
        factors: list[dict[int, float]] = []
        for labels in work.factors:
            units, counts = np.unique(home[channels.of(labels)], return_counts=True)
            parts = {int(u): float(c) / labels.size for u, c in zip(units, counts, strict=True) if u >= 0}
            if parts:
                factors.append(parts)
        if work.node in inside:
            factors.append({inside[work.node]: 1.0})
        rank = ranked.get(work.node, -1)
        if rank >= 0 and not timed:
            factors.append({rank: 1.0})
        if factors or rank >= 0 or work.node in precise:
            # a layer that is narrower already gains no time by being split, whatever its multiply-adds say
            terms.append(Term(float(work.macs), tuple(factors), rank if timed else -1))
            works.append(work.node)
    if timed:
        return _seconds(options, terms, works, precise)
    return Costs(tuple(terms), channels.macs() - sum(term.base for term in terms))


def _seconds(options: Options, terms: list[Term], works: list[ir.Node], precise: Mapping[ir.Node, int]) -> Costs:
    """Terms in seconds: each part's time is shared among its layers by their multiply-adds."""
    table = Table.of(options.context)
    weight = {node: term.base for node, term in zip(works, terms, strict=True)}
    found: dict[ir.Node, list[float]] = {}
    for number, what in enumerate(options.homes):
        options.context.progress("timing", number, len(options.homes))
        if isinstance(what, Branch | Precision):
            continue
        rows = options.units[number].rows
        if isinstance(what, Group):
            segment = segment_of(options.channels, what)
            widths = [what.width - len(row.payload.classes) for row in rows[1:]]
            variants = None if segment is None else segment.at_widths(what, widths)
        else:
            segment = segment_of_nodes(options.channels, [what])
            variants = None if segment is None else variants_of(segment, rows[1:])
        if segment is None or variants is None:
            # nobody knows what these widths would save, so they are no options
            options.units[number] = Unit(options.units[number].name, rows[:1])
            reason = "the part of the model in which it lives cannot be timed alone"
            options.refuse(options.units[number].name, "make it narrower", "part_timed", reason)
            continue
        full, *left = table.left(segment.proto, variants, segment.sample)
        own = [node for node in segment.nodes if node in weight]
        total = sum(weight[node] for node in own)
        for node in own if isinstance(what, Group) else []:
            found.setdefault(node, []).append(full * weight[node] / max(total, 1.0))
        others = _left_in_int8(options, table, segment, variants) if precise else [None] * len(left)
        # a smaller width that is not faster is no option, but a plan may pass over it
        new = [
            replace(row, left=share, other=other)
            for row, share, other in zip(rows, [1.0, *left], [None, *others], strict=True)
        ]
        options.units[number] = Unit(options.units[number].name, tuple(new))
    both = seconds_of(options.model, list(precise), options.channels.flow.shapes, table, options.context)
    rate = _median([float(np.mean(s)) / weight[node] for node, s in found.items() if weight[node]])
    timed: list[Term] = []
    for term, node in zip(terms, works, strict=True):
        base = float(np.mean(found[node])) if node in found else term.base * rate
        timed += in_both(replace(term, base=base), precise.get(node), both.get(node))
    if both:
        within = {node: n for n, what in enumerate(options.homes) if isinstance(what, Branch) for node in what.nodes}
        edges = edges_of(options.model, list(precise), options.channels.flow.shapes, table, options.context)
        timed += between(edges, precise, within)
    table.save()
    others_too = options.channels.macs() - sum(term.base for term in terms)
    return Costs(tuple(timed), others_too * rate)


def _left_in_int8(
    options: Options, table: Table, segment: Segment, variants: Sequence[onnx.ModelProto]
) -> Sequence[float | None]:
    """Of each variant of a part the share of its time that it takes in int8; None where that cannot be told."""
    narrow = narrow_part(segment, variants, options.context)
    if narrow is None:
        return [None] * len(variants)
    try:
        return table.left(narrow.protos[0], narrow.protos[1:], narrow.sample)[1:]
    except MeasureError:
        return [None] * len(variants)


def scaled(costs: Costs, units: Sequence[Unit], choice: Sequence[int], seconds: float) -> Costs:
    """The costs with all that layers take in int8 multiplied so that a choice takes what it was measured to take."""
    inner = {number for number, term in enumerate(costs.terms) if term.columns and set(term.columns) == {INT8}}
    mine = Costs(tuple(costs.terms[number] for number in sorted(inner))).total(units, choice)
    if mine <= 0:
        return costs
    factor = float(np.clip((seconds - costs.total(units, choice) + mine) / mine, *_SCALES))
    terms = (replace(term, base=term.base * factor) if n in inner else term for n, term in enumerate(costs.terms))
    return Costs(tuple(terms), costs.fixed)


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 1.0
