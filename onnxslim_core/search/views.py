"""Which way to cut a head or a group, by what would be lost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.channels.boxes import Outcome, View, free_share
from onnxslim_core.criteria._makers import rows_of
from onnxslim_core.ops.flow import Flow

__all__ = ["least_loss", "maker_energy"]


def least_loss(energy: NDArray[np.float64], ratio: float) -> View:
    """A view that loses least when the weakest classes with `ratio` of the weights go.

    Args:
        energy: Squared norm of the weights that make each atom; shape (atoms,).
        ratio: In 0..1.
    """

    def view(outcome: Outcome) -> tuple[float, ...]:
        free = ~outcome.pinned
        roots, which = np.unique(outcome.classes[free], return_inverse=True)
        if not roots.size:
            return 0.0, 0.0, 0.0
        lost = np.bincount(which, energy[outcome.atoms[free]], len(roots))
        mass = np.bincount(which, outcome.mass[free], len(roots))
        order = np.argsort(lost / np.maximum(mass, 1e-30), kind="stable")
        goes = np.cumsum(mass[order]) <= ratio * mass.sum() * (1 + 1e-9)
        total = float(lost.sum())
        share = float(lost[order][goes].sum()) / total if total else 0.0
        reached = float(mass[order][goes].sum()) / float(mass.sum()) if mass.sum() else 0.0
        return free_share(outcome), round(reached - share, 9), float(len(roots))

    return view


def maker_energy(flow: Flow) -> NDArray[np.float64]:
    """Squared norm of the weights that make each atom, with a BatchNormalization's scale; shape (atoms,).

    All zero where no array varies along two axes: then nothing is to be chosen, and no weight is read.
    """
    energy = np.zeros(flow.atoms.count)
    if not flow.atoms.boxes:
        return energy
    for labels, rows in rows_of(flow, flow.uses):
        np.add.at(energy, labels, np.square(rows).sum(axis=1))
    return energy
