"""Taking the lock of a run."""

from __future__ import annotations

import json

import onnx_ir as ir

from onnxslim_core import _files, _tensors
from onnxslim_core.lock.hashes import Hashed, sha256_of
from onnxslim_core.lock.parts import Pool
from onnxslim_core.lock.record import Kept, Lock, Record
from onnxslim_core.model import LARGE, Model
from onnxslim_core.report import Report, plain

__all__ = ["take"]


def take(given: Model, made: Model, report: Report, given_sha256: str | None = None) -> Lock:
    """The lock of a run.

    Args:
        given: The model as it was loaded, initializers that are also inputs left as they are.
        made: The result.
        report: Of the run.
        given_sha256: Of the file that was loaded.
    """
    hashed = Hashed()
    pool = Pool(given.ir, hashed)
    new: dict[str, memoryview] = {}
    weights: dict[str, str] = {}
    parts: dict[str, Kept] = {}

    def told(name: str, digest: str, tensor: ir.TensorProtocol) -> None:
        if digest in pool.tensors:
            weights[name] = "given"
            return
        part = parts.get(digest) or (None if digest in new else pool.part(name, tensor))
        weights[name] = "new" if part is None else "part"
        if part is not None:
            parts[digest] = part
        else:
            new[digest] = _tensors.buffer_of(tensor)

    graph = hashed.graph(made.ir, told)
    asked = plain(report.asked)
    recipe = json.dumps({key: asked[key] for key in ("steps", "budget")}, sort_keys=True).encode()
    record = Record(
        given=hashed.side(given, report.asked.model, given_sha256),
        made=hashed.side(made, "", None if made.nbytes >= LARGE else _files.digest(made.pieces()), graph),
        outcome=report.outcome,
        verified=report.verified,
        recipe_sha256=sha256_of(recipe),
        asked=asked,
        machine=plain(report.machine),
        data=plain(report.data),
        # how long it took says nothing of what was decided, and would make every lock another
        steps=[{key: value for key, value in plain(step).items() if "seconds" not in key} for step in report.steps],
        weights=weights,
        parts=parts,
    )
    return Lock(record, graph, new)
