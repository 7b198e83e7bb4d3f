"""Other tools' int8 of one model: run by `int8.py` in an environment of its own.

    python bench/_int8_rivals.py TOOL MODEL SAMPLES.npz OUT

TOOL is `onnxruntime` (quantize_static with its defaults), `onnxruntime-cnn` (uint8
activations, int8 weights per channel), `nncf` or `nncf-accuracy` (quantize_with_accuracy_control on the cosine). All
get the graph behind onnxruntime's preprocessing, which fuses BatchNormalization: without it none of them is fast.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx


def main() -> None:
    """Quantize and write."""
    tool, source, samples, target = sys.argv[1:]
    with np.load(samples) as file:
        (name,) = file.files
        array = file[name]
    feeds = [{name: each[None]} for each in array]
    tools = {"onnxruntime": _ort, "onnxruntime-cnn": _ort_cnn, "nncf": _nncf, "nncf-accuracy": _nncf_accuracy}
    with tempfile.TemporaryDirectory() as folder:
        ready = str(Path(folder, "ready.onnx"))
        _preprocess(source, ready)
        tools[tool](ready, feeds, target)


def _preprocess(source: str, target: str) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(source, target)
    except Exception:  # its symbolic shapes fail on some graphs; that step is optional
        quant_pre_process(source, target, skip_symbolic_shape=True)


def _ort(source: str, feeds: list[dict[str, np.ndarray]], target: str, **options: Any) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[dict[str, np.ndarray]] = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    quantize_static(source, target, Reader(), **options)


def _ort_cnn(source: str, feeds: list[dict[str, np.ndarray]], target: str) -> None:
    from onnxruntime.quantization import QuantType

    _ort(source, feeds, target, per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)


def _nncf(source: str, feeds: list[dict[str, np.ndarray]], target: str) -> None:
    import nncf  # type: ignore[import-not-found]

    onnx.save(nncf.quantize(onnx.load(source), nncf.Dataset(feeds), subset_size=len(feeds)), target)


def _nncf_accuracy(source: str, feeds: list[dict[str, np.ndarray]], target: str) -> None:
    import nncf
    import onnxruntime as ort

    model = onnx.load(source)
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    expected = [session.run(None, feed) for feed in feeds]

    def validate(candidate: onnx.ModelProto, data: Any) -> float:
        run = ort.InferenceSession(candidate.SerializeToString(), providers=["CPUExecutionProvider"])
        found = []
        for number, feed in enumerate(data):
            for ours, theirs in zip(expected[number], run.run(None, feed), strict=True):
                a, b = np.ravel(ours).astype(np.float64), np.ravel(theirs).astype(np.float64)
                found.append(float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))
        return float(np.mean(found))

    data = nncf.Dataset(feeds)
    made = nncf.quantize_with_accuracy_control(model, data, data, validate, max_drop=0.01, subset_size=len(feeds))
    onnx.save(made, target)


if __name__ == "__main__":
    main()
