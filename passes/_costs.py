"""What the options of a plan cost together: channels, multiply-adds, or seconds of timed parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxslim_core.channels.branches import Branch
from onnxslim_core.channels.groups import Group
from onnxslim_core.measure.pieces import Table, cache_folder
from onnxslim_core.search.plan import Costs, Row, Term, Unit
from onnxslim_core.search.segments import segment_of, segment_of_nodes

from ._ranks import variants_of
from ._rows import Options

__all__ = ["costs_of"]


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
    for number, what in enumerate(options.homes):
        if isinstance(what, Group):
            home[what.classes] = number
        elif isinstance(what, ir.Node):
            ranked[what] = number
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
        if factors or rank >= 0:
            # a layer that is narrower already gains no time by being split, whatever its multiply-adds say
            terms.append(Term(float(work.macs), tuple(factors), rank if timed else -1))
            works.append(work.node)
    if timed:
        return _seconds(options, terms, works)
    return Costs(tuple(terms), channels.macs() - sum(term.base for term in terms))


def _seconds(options: Options, terms: list[Term], works: list[ir.Node]) -> Costs:
    """Terms in seconds: each part's time is shared among its layers by their multiply-adds."""
    table = Table(options.context.threads, cache_folder())
    weight = {node: term.base for node, term in zip(works, terms, strict=True)}
    found: dict[ir.Node, list[float]] = {}
    for number, what in enumerate(options.homes):
        options.context.progress("timing", number, len(options.homes))
        if isinstance(what, Branch):
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
        # a smaller width that is not faster is no option, but a plan may pass over it
        new = tuple(Row(row.what, row.loss, share, row.payload) for row, share in zip(rows, [1.0, *left], strict=True))
        options.units[number] = Unit(options.units[number].name, new)
    table.save()
    rate = _median([float(np.mean(s)) / weight[node] for node, s in found.items() if weight[node]])
    timed = [
        Term(float(np.mean(found[node])) if node in found else term.base * rate, term.factors, term.instead)
        for term, node in zip(terms, works, strict=True)
    ]
    others = options.channels.macs() - sum(term.base for term in terms)
    return Costs(tuple(timed), others * rate)


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 1.0
