"""Small graphs, one per thing a rule of an operator has to get right, and the judgement on them.

A case is a graph in ONNX text with its tensors declared beside it, and the number of channels that may go in each
view, so that a rule may neither be wrong (the mask oracle) nor timid (the number). All sizes in a graph differ
wherever the operators let them, since equal ones hide errors. Symbolic sizes are analysed at one value and proven at
two.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
from onnx import numpy_helper, parser

from onnxslim_core.channels.boxes import inner, whole
from tests.channels.masks import prove

__all__ = ["Case", "check"]

SIZES = ({"N": 1, "H": 6, "W": 7, "T": 5}, {"N": 2, "H": 9, "W": 8, "T": 6})
"""What symbols stand for: first where the graph is analysed, then where it is proven again."""

SEEDS, SHARE = (1, 2), 0.4
"""Of the plans on which a rule is judged."""

VIEWS = {"inner": inner, "whole": whole}


@dataclass(frozen=True)
class Case:
    """One graph.

    Attributes:
        name: What is special.
        tensors: "name dims" separated by "|", an element type in front where it is not float; names that begin with
            x are inputs, the others weights.
        body: Nodes in ONNX text; outputs are y, y2, ...
        free: How many classes of channels may go in the inner and in the whole view; one number where it is the same.
        opset: Of the standard domain.
        arrays: Values of tensors that are not random, weights and inputs.
        outputs: Types of outputs that are not float.
        widths: Whether norms and means over channels may lose some.
    """

    name: str
    tensors: str
    body: str
    free: int | tuple[int, int]
    opset: int = 17
    arrays: Mapping[str, object] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    widths: bool = False

    def __str__(self) -> str:
        return self.name.replace(" ", "-")

    @cached_property
    def declared(self) -> dict[str, tuple[str, list[str]]]:
        """Element type and dims by name."""
        found = {}
        for text in filter(str.strip, self.tensors.split("|")):
            *kind, name, dims = text.replace("[]", ",").split()
            found[name] = (kind[0] if kind else "float", [dim for dim in dims.split(",") if dim])
        return found

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The model, weights filled in from seeds of their names."""
        kinds = {name: f"{kind}[{','.join(dims)}] {name}" for name, (kind, dims) in self.declared.items()}
        inputs = ", ".join(text for name, text in kinds.items() if name.startswith("x"))
        made = [f"y{i}" if i else "y" for i in range(9)]
        made = [name for name in made if f" {name} = " in f" {self.body}" or f"{name}, " in self.body.split("=")[0]]
        outputs = ", ".join(f"{self.outputs.get(name, 'float')}[] {name}" for name in made)
        text = f'<ir_version: 10, opset_import: ["": {self.opset}, "other": 1, "com.microsoft": 1]>\n'
        model = parser.parse_model(f"{text} g ({inputs}) => ({outputs}) {{ {self.body} }}")
        for name, (kind, dims) in self.declared.items():
            if not name.startswith("x"):
                array = self.array(name, kind, [int(dim) for dim in dims])
                model.graph.initializer.append(numpy_helper.from_array(array, name))
        return model

    def array(self, name: str, kind: str, dims: list[int]) -> np.ndarray:
        """A weight or an input: as given, or random by its name."""
        types = {"float": "float32", "double": "float64"}
        if (given := self.arrays.get(name)) is not None:
            return np.asarray(given, types.get(kind, kind)).reshape(dims)
        rng = np.random.default_rng([zlib.crc32(name.encode()), *dims])
        if kind in ("float", "double", "float16"):
            return np.asarray(rng.standard_normal(dims) * 0.6, types.get(kind, kind))
        return np.asarray(rng.integers(-6, 6, dims) if kind == "int8" else rng.integers(1, 4, dims), kind)

    def feeds(self) -> list[dict[str, np.ndarray]]:
        """Inputs at every size."""
        return [
            {
                name: self.array(name, kind, [sizes.get(dim) or int(dim) for dim in dims])
                for name, (kind, dims) in self.declared.items()
                if name.startswith("x")
            }
            for sizes in (
                SIZES if any(dim in SIZES[0] for _, dims in self.declared.values() for dim in dims) else SIZES[:1]
            )
        ]


def check(case: Case, view: str) -> None:
    """Prove random removals, and that as much may go as the case says."""
    wanted = case.free if isinstance(case.free, int) else case.free[view == "whole"]
    for seed in SEEDS:
        proof = prove(case.model, case.feeds(), VIEWS[view], seed, SHARE, widths=case.widths)
        assert proof.free == wanted, f"{proof.free} classes may go instead of {wanted}"
