"""The network that comes with the package, its data, and the command that compresses it.

`digits.onnx` reads handwritten digits of 8x8 pixels; bench/train_demo.py trained it on the UCI data set "Optical
Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, CC BY 4.0). `calibration.npz` holds images from the
training part, without labels; `heldout.npz` holds images and labels that neither the training nor the compression saw.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["FOLDER"]

FOLDER = Path(__file__).resolve().parent
"""Where the files of the demo are."""
