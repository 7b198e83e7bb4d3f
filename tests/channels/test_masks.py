"""The mask oracle must be able to say no."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxslim_core import graph as verbs
from onnxslim_core.channels import removal
from onnxslim_core.channels.boxes import inner
from onnxslim_core.channels.groups import ChannelGraph, analyse
from onnxslim_core.errors import InternalError
from tests.channels import masks
from tests.channels.masks import plan, prove
from tests.ops.cases import Case

NET = Case("net", "x N,3,H,W | w 10,3,1,1 | b 10 | z 4,10,1,1", "a = Conv(x, w, b) r = Sigmoid(a) y = Conv(r, z)", 10)


def test_says_yes_to_what_is_right() -> None:
    proof = prove(NET.model, NET.feeds(), inner)
    assert (proof.free, proof.removed) == (10, 5)
    assert proof.moved > 0.01
    assert proof.params == pytest.approx(0.5)


def test_one_weight_off_by_a_percent_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(channels: ChannelGraph, gone: np.ndarray) -> int:
        saved = removal.remove_atoms(channels, gone)
        weight = channels.flow.model.graph.initializers["z"]
        array = np.array(verbs.array_of(weight))
        array[2, 1] *= 1.01
        weight.const_value = ir.tensor(array, name="z")
        return saved

    monkeypatch.setattr(masks, "remove_atoms", spoiled)
    monkeypatch.setattr(masks, "_check_weights", lambda expected: None)
    with pytest.raises(AssertionError, match="is off by"):
        prove(NET.model, NET.feeds(), inner)


def test_other_channels_than_those_masked_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def others(channels: ChannelGraph, gone: np.ndarray) -> int:
        moved = gone.copy()
        moved[1:11] = np.roll(gone[1:11], 1)
        return removal.remove_atoms(channels, moved)

    monkeypatch.setattr(masks, "remove_atoms", others)
    with pytest.raises(AssertionError):
        prove(NET.model, NET.feeds(), inner)


def test_a_mask_that_does_not_move_the_output_proves_nothing() -> None:
    dead = Case("dead", NET.tensors, NET.body, 10, arrays={"z": [[0.0] * 10] * 4})
    with pytest.raises(AssertionError, match="moved the output by 0 only"):
        prove(dead.model, dead.feeds(), inner)


def test_a_nan_proves_nothing() -> None:
    broken = Case("broken", NET.tensors, NET.body.replace("Sigmoid", "Sqrt"), 10, arrays={"b": [-9.0] * 10})
    with pytest.raises(AssertionError, match="proves nothing"):
        prove(broken.model, broken.feeds(), inner)


def test_a_plan_never_takes_all_of_a_group() -> None:
    channels = analyse(ir.from_proto(NET.model), NET.feeds()[0], view=inner)
    assert len(plan(channels, np.random.default_rng(0), 1.0)) == 9


def test_removal_refuses_to_empty_a_tensor() -> None:
    channels = analyse(ir.from_proto(NET.model), NET.feeds()[0], view=inner)
    with pytest.raises(InternalError, match="nothing would be left"):
        removal.remove_atoms(channels, channels.gone(channels.groups[0].classes))


def test_every_reason_names_what_keeps_a_channel() -> None:
    case = Case("kept", NET.tensors, "a = Conv(x, w, b) s = Softmax<axis=1>(a) y = Conv(s, z)", 0)
    channels = analyse(ir.from_proto(case.model), case.feeds()[0], view=inner)
    (group, *_) = channels.groups
    assert not group.free.any()
    assert group.reason is not None and "Softmax" in group.reason.node + group.reason.text
