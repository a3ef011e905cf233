"""A block that is checked before the model runs: its shapes, its dtypes and its order.

with model.trace(prompt, validate=True):
    h = model.transformer.h[30].output
    model.transformer.h[31].output = h[:, :-1]      # raises here, and nothing has been computed

The block is taken out of its frame as an invoke's is, and run once on fake tensors (`scan`), under
names of its own (`capture.trial`). It is an ordinary trace afterwards.
"""

import os
import warnings
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from insitu.engine.capture.bodies import Names, find_body
from insitu.engine.capture.scope import VALUE, Body
from insitu.engine.capture.trial import apart
from insitu.engine.scan import Scan
from insitu.engine.trace import Tracer
from insitu.errors import CaptureError, InsituWarning, ScanError, UsageError
from insitu.settings import CONFIG

_WORDS = ("validate", "scan")
_NOTE = "Insitu: found by validate=True, on fake tensors and before the model ran."
_ABOUT_FAKES = ("FakeTensor", "fake tensor", "tensor subclass", "meta tensor", "pickle")
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep
_LAYERS = os.path.join(_TORCH, "nn", "modules") + os.sep
_WITH_LINE = 5  # frames from the warning up to the user's `with`


def wanted(settings: dict[str, Any]) -> bool:
    """Take `validate=` and the older `scan=` out of a trace's settings; whether one was true."""
    given = [settings.pop(word) for word in _WORDS if word in settings]
    return any(given)


def refuse(settings: dict[str, Any], method: str, why: str) -> None:
    """Take them out of the settings of a method that runs no block that could be checked.

    Raises:
        UsageError: one was true.
    """
    if wanted(settings):
        raise UsageError(
            f"{method}() was given validate=True.",
            f"it checks the block of a trace by a scan without values, and {why}.",
            "leave it out, or check the block on one forward: "
            "with model.trace(prompt, validate=True): …",
        )


def check(tracer: Tracer, frame: FrameType) -> None:
    """Run the block that a frame is entering on fake tensors; raise what goes wrong there."""
    if any(isinstance(mode, FakeTensorMode) for mode in _get_current_dispatch_mode_stack()):
        return None  # within a scan already: the block itself will run on fake tensors
    try:
        body = find_body(frame, "validate=True")
    except CaptureError as error:
        return _tell(error.what)
    names = Names(frame, body)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the real run gives them
            _try(tracer, frame, body, names)
    except Exception as error:
        if _is_about_fakes(error):
            return _tell(getattr(error, "what", None) or f"{type(error).__name__}: {error}")
        error.add_note(_NOTE)
        _shorten(error.__traceback__)
        raise
    finally:
        names.close()
    return None


def _try(tracer: Tracer, frame: FrameType, body: Body, names: Names) -> None:
    held = (value for value in names.given().values() if isinstance(value, nn.Module))
    scan = Scan(tracer, held)
    with ExitStack() as stack:
        names[body.target or VALUE] = given = scan.enter(frame)
        stack.push(scan)
        given.quiet = True
        apart(names)
        body.run(names)


def _shorten(traceback: TracebackType | None) -> None:
    """Leave the block's and the model's frames; torch computes fake tensors in many of its own."""
    if CONFIG.APP.DEBUG:
        return
    while traceback is not None:
        following = traceback.tb_next
        while following is not None and _is_inside(following.tb_frame.f_code.co_filename):
            following = following.tb_next
        traceback.tb_next = following
        traceback = following


def _is_inside(file: str) -> bool:
    return file.startswith(_PACKAGE) or (file.startswith(_TORCH) and not file.startswith(_LAYERS))


def _is_about_fakes(error: BaseException | None) -> bool:
    """Whether an error says that a value was needed, and not that the block is wrong."""
    if error is None:
        return False
    is_one = isinstance(error, (ScanError, NotImplementedError))
    text = str(error)
    if is_one or any(word in text for word in _ABOUT_FAKES):
        return True
    return _is_about_fakes(error.__cause__ or error.__context__)


def _tell(why: str) -> None:
    warnings.warn(
        f"this block could not be validated: {why.removesuffix('.')}. It runs as it is.",
        InsituWarning,
        stacklevel=_WITH_LINE,
    )
