"""The mask oracle on real models: `ONNX_ZOO=~/.cache/onnx-zoo pytest -m zoo tests/channels/test_zoo.py`.

The models come by `bench/zoo/fetch.py`; sizes and values at which they run stand in `bench/zoo/zoo.toml`. Each is
normalized and folded first, as every recipe does, and then loses a random share of every group in both views. It is
analysed at one size and judged at up to three others.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxslim_core.passes import pass_class

from onnxslim_core.model import load
from onnxslim_core.rewrite import Context
from tests import oracles
from tests.channels.masks import prove, to_proto
from tests.ops.cases import VIEWS

pytestmark = pytest.mark.zoo

FOLDER = Path(os.environ.get("ONNX_ZOO", Path.home() / ".cache" / "onnx-zoo")).expanduser()
TABLE = Path(__file__).parents[2] / "bench" / "zoo" / "zoo.toml"
ROWS: dict[str, dict[str, Any]] = {
    name: row
    for name, row in tomllib.loads(TABLE.read_text(encoding="utf-8")).items()
    if row["size"] != "large" and (FOLDER / f"{name}.onnx").is_file()
}


def sample(row: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """An input of the model, as the table describes it."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in row["inputs"]:
        how = row["example_shape"][spec["name"]]
        if "value" in how:
            array = np.full(how["shape"], how["value"])
        elif "high" in how:
            array = rng.integers(0, how["high"], how["shape"])
        else:
            array = rng.standard_normal(how["shape"])
        feeds[spec["name"]] = np.asarray(array, spec["dtype"])
    return feeds


def other_sizes(row: Mapping[str, Any], judge: ort.InferenceSession) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of other sizes wherever a size is symbolic, as far as the model runs on them."""
    steps: tuple[Callable[[int], int], ...] = (
        lambda n: n + 64 * (n > 1),
        lambda n: n + 7 * (n > 1),
        lambda n: n + (n == 1),
    )
    for step in steps:
        changed = deepcopy(dict(row))
        for spec in row["inputs"]:
            shape = changed["example_shape"][spec["name"]]["shape"]
            for axis, dim in enumerate(spec["shape"]):
                shape[axis] = step(shape[axis]) if isinstance(dim, str) else shape[axis]
        feeds = sample(changed)
        try:
            judge.run(None, feeds)
        except Exception as err:  # onnxruntime's own exception classes are not public
            if not type(err).__module__.startswith("onnxruntime"):
                raise
        else:
            yield feeds


def prepared(name: str) -> ir.Model:
    """The model as the channel graph sees it."""
    model = load(FOLDER / f"{name}.onnx").ir
    for step in ("normalize", "fold_constants"):
        pass_class(step)().run(model, Context(samples=[sample(ROWS[name])]))
    return model


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ROWS)
def test_smaller_model_equals_the_masked_one(name: str, view: str) -> None:
    model = prepared(name)
    others = other_sizes(ROWS[name], oracles.session(to_proto(model)))
    prove(model, [sample(ROWS[name]), *others], VIEWS[view], seed=1, share=0.3, tolerance=1e-4, strict=False)
