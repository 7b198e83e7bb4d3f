"""What a pass leaves on a node for the scoring of channels.

Records lie in `node.meta`, which stays with the node, is copied with the model, and is never written to a file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["BATCHNORM", "BatchNormRecord"]

BATCHNORM = "onnxslim_core.batchnorm"
"""Key in `node.meta` of a Conv, ConvTranspose, Gemm or MatMul: the `BatchNormRecord` of what was fused into it."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchNormRecord:
    """The distribution of a node's output channels, as its fused BatchNormalization promised it.

    On the data that the network was trained on, output channel i has mean beta[i] and standard deviation |gamma[i]|.
    Network Slimming (Liu et al., ICCV 2017) scores by |gamma|, which can no longer be read off a fused weight; the
    mean of a channel behind a Relu follows from both (Nagel et al., ICCV 2019, appendix C).

    Attributes:
        gamma: float64, one per output channel.
        beta: float64, one per output channel.
    """

    gamma: np.ndarray
    beta: np.ndarray
