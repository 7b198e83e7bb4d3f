"""The mask oracle on real models: `ONNX_ZOO=~/.cache/onnx-zoo pytest -m zoo tests/channels/test_zoo.py`.

The models come by `bench/zoo/fetch.py`; sizes and values at which they run stand in `bench/zoo/zoo.toml`. Each is
normalized and folded first, as every recipe does, and then loses a random share of every group in both views.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnxslim_core.passes import pass_class

from onnxslim_core.model import load
from onnxslim_core.rewrite import Context
from tests.channels.masks import prove
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


def prepared(name: str) -> ir.Model:
    """The model as the channel graph sees it."""
    model = load(FOLDER / f"{name}.onnx").ir
    for step in ("normalize", "fold_constants"):
        pass_class(step)().run(model, Context(samples=[sample(ROWS[name])]))
    return model


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ROWS)
def test_smaller_model_equals_the_masked_one(name: str, view: str) -> None:
    model, feeds = prepared(name), sample(ROWS[name])
    prove(model, [feeds], VIEWS[view], seed=1, share=0.3, tolerance=1e-4, strict=False)
