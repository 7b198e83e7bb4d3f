"""The job `gate`: a reference, a candidate and a budget in, yes or no out.

    record   the verdict row by row, and its views
    judge    facts against the budget, and how long a timing is measured
    job      what is true of the two models: interface, files, cost, operators, answers

A gate must not be fooled by accident. A key whose figure cannot be computed fails, a figure that is not a number
fails, a budget that judges nothing is an error, and what every budget implies is always judged: the candidate takes
and gives what the reference does, and it answers with finite numbers wherever the reference does.
"""

from __future__ import annotations

from onnxslim_core.verdict.job import gate
from onnxslim_core.verdict.record import Row, Verdict

__all__ = ["Row", "Verdict", "gate"]
