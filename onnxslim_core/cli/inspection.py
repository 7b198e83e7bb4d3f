"""What `inspect` shows of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxslim_core.graph import all_nodes
from onnxslim_core.measure.cost import Cost, cost
from onnxslim_core.report import plain, readable_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from onnxslim_core.channels.explain import Explanation
    from onnxslim_core.model import Model
    from onnxslim_core.rewrite import Sample

__all__ = ["Inspection", "Port", "inspect"]

LAYERS_SHOWN = 25


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: its type in ONNX words, and its declared sizes (None: not even the rank is known)."""

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a model is.

    Attributes:
        model: The file's name.
        bytes: Of the files, external data included.
        producer: Who wrote it, in its own words.
        opsets: Version by domain; the standard domain is called "ai.onnx".
        operators: How often each occurs, bodies and functions included; foreign ones as `domain::Name`.
        sizes: Of the inputs at which it was counted; empty where nothing runs.
        cost: At those sizes.
        notes: What loading changed, and why it could not be run.
        explanation: Groups of channels, and why the rest cannot go; None where it was not asked for.
    """

    model: str
    bytes: int
    ir_version: int
    producer: str
    opsets: Mapping[str, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: Mapping[str, int]
    sizes: Mapping[str, tuple[int, ...]]
    cost: Cost
    notes: tuple[str, ...] = ()
    explanation: Explanation | None = None

    def to_json(self) -> dict[str, Any]:
        """The record as plain data."""
        return {"schema": 1, "verb": "inspect", **plain(self)}

    def print_console(self, console: Console) -> None:
        """The record for people; of the layers, those that cost most."""
        from rich.markup import escape

        opsets = ", ".join(f"{domain} {number}" for domain, number in self.opsets.items())
        made = f", made by {self.producer}" if self.producer else ""
        console.print(f"[bold]{escape(self.model)}[/]  {readable_bytes(self.bytes)}", highlight=False)
        console.print(escape(f"opset {opsets}, IR {self.ir_version}{made}"), highlight=False)
        for title, ports in (("in ", self.inputs), ("out", self.outputs)):
            for port in ports:
                console.print(f"  {title} {escape(port.name)}  {_port(port)}", highlight=False, markup=False)
        total = self.cost
        console.print(
            f"{total.params:,} parameters, {total.macs:,} MACs, {total.nodes:,} nodes, "
            f"{readable_bytes(total.peak_activation_bytes)} of activations at most",
            highlight=False,
        )
        sizes = ", ".join(f"{name} {'x'.join(map(str, size)) or 'scalar'}" for name, size in self.sizes.items())
        if sizes:
            console.print(escape(f"counted at {sizes}"), highlight=False)
        console.print(", ".join(f"{op} {n}" for op, n in self.operators.items()), highlight=False, markup=False)
        self._print_layers(console)
        for note in self.notes:
            console.print(f"[yellow]note[/]: {escape(note)}", highlight=False)
        if self.explanation is not None:
            _print_explanation(console, self.explanation)

    def _print_layers(self, console: Console) -> None:
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("layer", overflow="fold")
        for title in ("operator", "out", "MACs", "share", "parameters"):
            table.add_column(title, justify="left" if title == "operator" else "right", no_wrap=True)
        weighty = [layer for layer in self.cost.layers if layer.macs or layer.params]
        chosen = set(sorted(weighty, key=lambda layer: (-layer.macs, -layer.params))[:LAYERS_SHOWN])
        for layer in weighty:
            if layer not in chosen:
                continue
            share = f"{100 * layer.macs / self.cost.macs:.1f} %" if self.cost.macs else ""
            shape = "?" if layer.shape is None else "x".join(map(str, layer.shape))
            table.add_row(escape(_short(layer.name)), layer.op, shape, f"{layer.macs:,}", share, f"{layer.params:,}")
        if weighty:
            console.print(table)
        if len(weighty) > len(chosen):
            text = f"the {len(chosen)} that cost most of {len(weighty)} layers, in the order of the graph; all: --json"
            console.print(text, highlight=False, style="dim")


def _port(port: Port) -> str:
    if port.shape is None:
        return f"{port.type} of any rank"
    return f"{port.type} [{', '.join('?' if size is None else str(size) for size in port.shape)}]"


def _short(label: str, length: int = 48) -> str:
    """The end of a node's name, which tells more than its beginning; JSON has the whole."""
    name = label.partition(" '")[2].removesuffix("'") if " '/" in label else label
    return name if len(name) <= length else "…" + name[1 - length :]


def inspect(model: Model, sample: Sample | None, *, explain: bool = False, note: str = "") -> Inspection:
    """Look at a model.

    Args:
        model: Any.
        sample: Inputs at whose sizes it is counted; None: at the declared ones.
        explain: Also say which channels can go, and why the others cannot.
        note: Why there is no sample.
    """
    source, found = model.ir, None
    if explain:
        found = _explain(model, sample)
    maker = " ".join(part for part in (source.producer_name, source.producer_version) if part)
    sizes = {name: tuple(int(n) for n in array.shape) for name, array in (sample or {}).items()}
    counted = cost(model, sample)
    notes = [change.action + (f" ({change.reason})" if change.reason else "") for change in model.notes]
    notes += ["MACs inside If, Loop and Scan are not counted"] if counted.has_bodies else []
    notes += [note] if note else []
    return Inspection(
        model=model.source.name if model.source is not None else "a model in memory",
        bytes=counted.bytes,
        ir_version=int(source.ir_version),
        producer=maker,
        opsets={domain or "ai.onnx": number for domain, number in sorted(source.opset_imports.items())},
        inputs=tuple(_ports(v for v in source.graph.inputs if v.name not in source.graph.initializers)),
        outputs=tuple(_ports(source.graph.outputs)),
        operators=_operators(source),
        sizes=sizes,
        cost=counted,
        notes=tuple(notes),
        explanation=found,
    )


def _explain(model: Model, sample: Sample | None) -> Explanation:
    """What can go from the model that passes see: weights constant, and what exporters compute at run time folded."""
    from onnxslim_core.channels.explain import explain
    from onnxslim_core.model import load
    from onnxslim_core.passes import pass_class
    from onnxslim_core.rewrite import Context

    tidy = load(model)
    context = Context(samples=[] if sample is None else [sample])
    for name in ("normalize", "fold_constants"):
        pass_class(name)().run(tidy.ir, context)
    return explain(tidy.ir, sample)


def _print_explanation(console: Console, explanation: Explanation) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Channels, group by group", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("group", overflow="fold")
    for title in ("channels", "can go", "parameters", "MACs"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("what keeps the rest", overflow="fold")
    for group in explanation.groups:
        colour = "green" if group.free == group.size else "yellow" if group.free else "red"
        size = f"{group.size} x {group.unit}" if group.unit > 1 else str(group.size)
        why = ": ".join(part for part in (_short(group.node), group.reason) if part)
        cells = (f"[{colour}]{group.free}[/]", f"{group.params:,}", f"{group.macs:,}", escape(why))
        table.add_row(escape(_short(group.name)), size, *cells)
    console.print(table)
    share = 100 * explanation.free_params / explanation.labelled_params if explanation.labelled_params else 0.0
    text = f"{explanation.free_params:,} of {explanation.labelled_params:,} weights on channels ({share:.1f} %)"
    console.print(f"{text} lie on an axis that can be cut", highlight=False)
    reasons = Counter(group.reason for group in explanation.groups if group.reason)
    for reason, count in reasons.most_common():
        console.print(f"  {count} group{'s' if count > 1 else ''}: {escape(reason)}", highlight=False)


def _ports(values: Any) -> list[Port]:
    ports = []
    for value in values:
        sizes = None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
        ports.append(Port(str(value.name), "?" if value.type is None else str(value.type), sizes))
    return ports


def _operators(model: ir.Model) -> dict[str, int]:
    nodes = [*all_nodes(model.graph), *(node for function in model.functions.values() for node in function)]
    counts = Counter(n.op_type if n.domain in ("", "ai.onnx") else f"{n.domain}::{n.op_type}" for n in nodes)
    return dict(counts.most_common())
