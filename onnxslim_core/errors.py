"""The exceptions, each with its exit code.

Everything that a user can cause is a `SlimError`: its text is one line, and `hint` is the next step.
`InternalError` is our own bug. It ends a run, and is told by the outermost frame of the command line; only where nobody
saw all of a model run does a job put it down as a refusal of the pass, since such a model may contradict itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "BudgetError",
    "DataError",
    "InternalError",
    "InvalidModel",
    "MeasureError",
    "ModelError",
    "OutputError",
    "RecipeError",
    "SlimError",
    "UnsupportedModel",
    "told",
]


class SlimError(Exception):
    """Something a user can mend; `str()` is one line that says what, where and what is allowed.

    Args:
        message: One line, lower case, without a full stop.
        hint: The next step, or None where there is nothing to advise.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.hint = hint


class RecipeError(SlimError):
    """A recipe, an option or the command line is wrong (exit 2).

    Args:
        message: One line.
        hint: The next step.
        errors: Every error that was found, one line each; where there are several, the message counts them and the
            hint lists them.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None, errors: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.errors = tuple(errors) or (str(self),)


class BudgetError(RecipeError):
    """A budget file or key is wrong (exit 2)."""


class ModelError(SlimError):
    """A model is missing, broken or not supported (exit 3)."""


class InvalidModel(ModelError):
    """The file breaks the ONNX specification or the limits set for untrusted input."""


class UnsupportedModel(ModelError):
    """The model is valid but uses something that cannot be carried; names the feature and the node."""


class DataError(SlimError):
    """Samples are missing, broken or do not fit the model (exit 3)."""


class MeasureError(SlimError):
    """onnxruntime could not run one of the models (exit 3)."""


class OutputError(SlimError):
    """A file cannot be written: no room, no permission (exit 3)."""


class InternalError(Exception):
    """Our own bug (exit 4).

    Args:
        message: What was expected and what was found.
        where: The pass and the node that were at work.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


def told(err: BaseException) -> str:
    """What an exception of somebody else's code says, in one line; its own `__str__` may fail as well."""
    try:
        text = " ".join(str(err).split())
    except Exception:
        text = ""
    return f"{type(err).__name__}: {text}" if text else type(err).__name__
