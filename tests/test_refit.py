"""refit: after another lossy pass the answers on new samples are nearer to the original's, or nothing changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxslim_core.passes import pass_class

from onnxslim_core.demo import FOLDER
from onnxslim_core.errors import RecipeError
from onnxslim_core.rewrite import Change, Context, Sample


def network() -> ir.Model:
    model = ir.load(FOLDER / "digits.onnx")
    for name in ("fold_constants", "fuse_batchnorm"):
        pass_class(name)().run(model, Context())
    return model


def images(file: str, count: int) -> list[dict[str, np.ndarray]]:
    with np.load(FOLDER / file) as archive:
        return [{"image": image[None]} for image in archive["image"][:count]]


@pytest.fixture(scope="module")
def samples() -> list[dict[str, np.ndarray]]:
    return images("calibration.npz", 384)


def answers(model: ir.Model, feeds: Sequence[Sample]) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, each)[0] for each in feeds])


def lost(model: ir.Model, original: ir.Model) -> float:
    fresh = images("heldout.npz", 300)
    expected = answers(original, fresh)
    return float(np.square(answers(model, fresh) - expected).sum() / np.square(expected - expected.mean(0)).sum())


def refit(model: ir.Model, reference: ir.Model | None, samples: Sequence[Sample], **options: Any) -> Change:
    context = Context(samples=samples, samples_are_real=True, reference=reference)
    changes: list[Change] = pass_class("refit")(**options).run(model, context)
    assert len(changes) == 1
    return changes[0]


def bytes_of(model: ir.Model) -> bytes:
    found: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return found


CUTS: dict[str, tuple[str, dict[str, Any], bool, float]] = {
    "channels": ("prune_channels", {"criterion": "l2", "ratio": 0.25, "repair": "none", "round_to": 1}, True, 0.5),
    "factors, found without samples": ("factorize", {"energy": 0.6}, False, 0.5),
    "factors, mended by their own pass": ("factorize", {"energy": 0.6}, True, 1.0),
}
"""The pass, its options, whether it sees the samples, and of what is lost the share that may be left."""


@pytest.mark.parametrize("cut", CUTS)
def test_another_pass_is_mended_on_new_samples(cut: str, samples: list[Sample]) -> None:
    original, model = network(), network()
    name, options, seen, share = CUTS[cut]
    pass_class(name)(**options).run(model, Context(samples=samples, samples_are_real=seen))
    reference, spoiled = original.clone(), lost(model, original)
    assert spoiled > 1e-3
    change = refit(model, reference, samples)
    assert change.applied, change.reason
    assert change.details["nodes_solved"] > 3
    assert change.details["loss_after"] < change.details["loss_before"]
    assert lost(model, original) < share * spoiled
    assert bytes_of(reference) == bytes_of(original)


def test_noise_on_weights_of_a_foreign_pass_is_mended(samples: list[Sample]) -> None:
    original, model = network(), network()
    rng = np.random.default_rng(0)
    for name, value in list(model.graph.initializers.items()):
        array = value.const_value.numpy() if value.const_value is not None else None
        if array is not None and array.dtype == np.float32 and array.ndim > 1:
            noisy = array + rng.normal(0, 0.3 * array.std(), array.shape).astype(np.float32)
            value.const_value = ir.tensor(noisy, name=name)
    spoiled = lost(model, original)
    assert refit(model, original, samples).applied
    assert lost(model, original) < 0.5 * spoiled


def test_what_does_not_help_is_not_done(samples: list[Sample]) -> None:
    original, model = network(), network()
    before = bytes_of(model)
    change = refit(model, original, samples)  # nothing was taken, so nothing can be gained
    assert change.guard == "helps_held_out"
    assert "set aside" in change.reason
    assert bytes_of(model) == before


def test_it_says_what_it_needs(samples: list[Sample]) -> None:
    model = network()
    assert refit(model, None, samples).guard == "reference_given"
    assert refit(model, model.clone(), []).guard == "data_given"
    assert refit(model, model.clone(), samples[:1]).guard == "samples_apart"


@pytest.mark.parametrize("options", [{"repair": "none"}, {"ridge": -1.0}, {"held_out": 1.0}, {"per_sample": 0}])
def test_options_out_of_range_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="of refit is"):
        pass_class("refit")(**options)
