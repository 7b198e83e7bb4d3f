"""Lock files: what a run decided, kept so that it can be done again without samples, search or a clock.

Passes decide by samples and by time, and mended weights come out of samples, so a journal of decisions would not
suffice to make the same bytes. A lock therefore holds a *patch*: the graph of the result without weights, and those
weights that the model given does not have. All others are named by the sha256 of their bytes, wherever that model keeps
them; a weight that lost rows or columns and nothing else is named by what was kept of each axis. No pass needs to know
of this, so it holds for every pass, also for those of others.

    FILE (a zip archive)
      lock.json       for people: recipe, versions, processor, data, every change and refusal, where each weight is from
      graph.onnx      the result; each weight is external data whose location is the sha256 of its bytes
      weights/SHA256  the weights that are new, as they are

The hash of a model is that of such a graph: since it names every weight by its hash, it stands for all of the model.
`content` leaves out what changes no answer: producers, doc strings, metadata.
"""

from __future__ import annotations

from onnxslim_core.lock.record import Lock, Record
from onnxslim_core.lock.replay import Applied, apply
from onnxslim_core.lock.take import take

__all__ = ["Applied", "Lock", "Record", "apply", "take"]
