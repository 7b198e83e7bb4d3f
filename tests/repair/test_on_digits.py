"""On a trained network: every criterion on samples beats chance, and every repair beats none, on new images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxslim_core.passes import pass_class

from onnxslim_core.criteria.table import SAMPLED
from onnxslim_core.demo import FOLDER
from onnxslim_core.repair.table import REPAIRS
from onnxslim_core.rewrite import Context, Sample

SEEDS = (0, 1)


def images(file: str, count: int) -> list[Sample]:
    with np.load(FOLDER / file) as archive:
        return [{"image": image[None]} for image in archive["image"][:count]]


def network() -> ir.Model:
    model = ir.load(FOLDER / "digits.onnx")
    for name in ("fold_constants", "fuse_batchnorm"):
        pass_class(name)().run(model, Context())
    return model


def answers(model: ir.Model, feeds: Sequence[Sample]) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, each)[0] for each in feeds])


@cache
def expected() -> tuple[list[Sample], np.ndarray]:
    fresh = images("heldout.npz", 200)
    return fresh, answers(network(), fresh)


@cache
def lost(criterion: str, repair: str, ratio: float = 0.4, seed: int = 0) -> float:
    """Squared error of the answers to new images over their variance, all widths cut alike."""
    model = network()
    context = Context(samples=images("calibration.npz", 128), samples_are_real=True, seed=seed)
    options: dict[str, Any] = {"criterion": criterion, "repair": repair, "ratio": ratio, "round_to": 1}
    changes = pass_class("prune_channels")(**options).run(model, context)
    assert sum(change.applied for change in changes) > 3
    fresh, right = expected()
    return float(np.square(answers(model, fresh) - right).sum() / np.square(right - right.mean(0)).sum())


@pytest.mark.parametrize("criterion", SAMPLED)
def test_a_criterion_on_samples_loses_less_than_chance(criterion: str) -> None:
    chance = float(np.mean([lost("random", "least_squares", seed=seed) for seed in SEEDS]))
    assert lost(criterion, "least_squares") < chance


@pytest.mark.parametrize("repair", REPAIRS)
@pytest.mark.parametrize("criterion", ["l2", "thinet"])
def test_a_repair_loses_less_than_none(criterion: str, repair: str) -> None:
    assert lost(criterion, repair, 0.25) < lost(criterion, "none", 0.25)


def test_new_weights_lose_less_than_scales_and_these_less_than_a_bias() -> None:
    assert lost("l2", "least_squares", 0.25) < lost("l2", "scale", 0.25) < lost("l2", "bias", 0.25)
