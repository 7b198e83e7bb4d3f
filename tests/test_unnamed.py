"""Small files whose nodes have no names: names would be a good part of them, and passes tell nodes by their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxslim_core.lock import apply
from onnxslim_core.pipeline import compress_file
from onnxslim_core.recipe import Recipe
from tests.smooth import samples
from tests.test_slim import answers, network

RECIPES = {
    "prune_channels": 'criterion = "obs"\nratio = 0.4\nround_to = 4',
    "drop_blocks": "count = 1",
    "quantize": 'measure = "never"\nignored = ["none of them"]',
    "refit": 'held_out = 0.3\n[[pass]]\nname = "prune_channels"\ncriterion = "l1"\nratio = 0.3\nround_to = 4\n'
    '[[pass]]\nname = "refit"',
}


def without_names() -> onnx.ModelProto:
    proto = ir.to_proto(network(blocks=2))
    for node in proto.graph.node:
        node.name = ""
    return proto


@pytest.mark.parametrize("name", RECIPES)
def test_a_lossy_pass_does_what_it_does_with_names(name: str, tmp_path: Path) -> None:
    recipe = Recipe.parse(f'version = 1\n[[pass]]\nname = "{name}"\n{RECIPES[name]}\n')
    np.savez(tmp_path / "data.npz", x=np.concatenate([each["x"] for each in samples(40, 1)]))
    made = []
    for number, proto in enumerate((ir.to_proto(network(blocks=2)), without_names())):
        source, target, lock = (tmp_path / f"{number}{end}" for end in (".onnx", ".out.onnx", ".lock"))
        onnx.save(proto, source)
        options = {"data": tmp_path / "data.npz", "measure_latency": False}
        result = compress_file(source, target, recipe, lock=lock, **options)
        assert any(step.outcome == "done" for step in result.report.steps if not step.exact), result.report.headline
        made.append(answers(ir.from_proto(onnx.load(target))))
        apply(lock, source).save(tmp_path / "again.onnx")
        assert (tmp_path / "again.onnx").read_bytes() == target.read_bytes()
    assert np.array_equal(made[0], made[1])
    assert not any(node.name for node in onnx.load(target).graph.node), "and the file is as small as it was"
