"""Every error Insitu raises: what happened, why, and what to do next.

try:
    with model.trace("Hello"):
        late = model.lm_head.output
        early = model.transformer.h[0].output
except insitu.OutOfOrderError as error:
    print(error.what, error.why, error.next, sep="\\n")

InsituError
├── AdapterError (ValueError)  an adapter does not fit the model, or there is none of that name
├── TraceError (RuntimeError)
│   ├── OutOfOrderError        the site has passed
│   ├── NeverRanError          the module is not called in this pass
│   ├── NoTraceError           a value was asked for while nothing runs
│   ├── PassClosedError        the pass is over, or belongs to another thread
│   ├── StepError              the run has no such step
│   ├── GradientError          no gradient comes to a tensor, or it has passed
│   ├── CaptureError           a body that runs later, or elsewhere, cannot be taken along
│   └── ScanError              a scan needs values, and has shapes only
├── InputError (ValueError)    no input, an empty one, or one of the wrong kind
│   └── InputTypeError (TypeError)
├── DeviceError (RuntimeError)
├── WriteError (ValueError)    the new value does not fit the site
├── UnknownModuleError (AttributeError)
├── UnknownOperationError (AttributeError)
├── SourceError (OSError)      a forward's operations cannot be named, or not be reached
├── MissingActivation (KeyError, AttributeError)    a cache has no such value
├── CacheBudgetError (MemoryError)    a cache outgrows its budget
├── CacheFileError (OSError)   a cache cannot be written there, or not be read
├── EditsFileError (OSError)   edits cannot be written there, not be read, or do not fit the model
├── MetricError (ValueError)    a metric gives no number for each row
├── MissingPackageError (ImportError)    a part needs a package that is not installed
├── ModelMemoryError (MemoryError)    a model's weights do not fit into memory
├── ModelNotFoundError (OSError)
├── ServerError (RuntimeError)    a server does what it should not, or a job there failed
│   ├── ServerUnreachableError (ConnectionError)    it does not answer
│   ├── ServerRefusedError     it says no: to the key, the model, the request
│   │   └── QueueFullError     it has too much to do
│   ├── JobLostError           a job ended without a result
│   ├── JobTimeoutError (TimeoutError)    a job took too long, or is not over yet
│   └── RemoteError            a block raised there what is not known here
├── FunctionWhitelistError (PermissionError)    a block names what may not run on a server
├── NotSendableError (TypeError)    a value cannot be sent to a server
├── WireError (ValueError)    what came over the wire cannot be read, or is too large
└── UsageError (ValueError)    a magic or a method was given words it does not know
    └── UnknownSettingError (AttributeError)
"""

from typing import Any


class InsituError(Exception):
    """The root: three lines, of which the first stands alone."""

    def __init__(self, what: str, why: str, next: str) -> None:
        super().__init__(f"{what}\nWhy: {why}\nNext: {next}")
        self.what = what
        self.why = why
        self.next = next

    def __reduce__(self) -> tuple[type["InsituError"], tuple[str, str, str], dict[str, Any]]:
        return type(self), (self.what, self.why, self.next), self.__dict__


class AdapterError(InsituError, ValueError):
    """An adapter cannot be read, does not fit the model, or has a name that none has."""


class TraceError(InsituError, RuntimeError):
    """A block and its forward pass could not be brought together."""


class OutOfOrderError(TraceError):
    """A site was asked for after the model had passed it."""


class NeverRanError(TraceError):
    """A site was asked for whose module the pass does not call."""


class NoTraceError(TraceError):
    """A value was asked for while no pass of this model is running."""


class PassClosedError(TraceError):
    """The pass has ended, was closed, or belongs to another thread."""


class StepError(TraceError, IndexError):
    """The run has no such step, or it has passed."""


class GradientError(TraceError):
    """A backward brings no gradient to a tensor, or has passed it."""


class CaptureError(TraceError):
    """A body that is to run later, or elsewhere, cannot be taken along."""


class ScanError(TraceError):
    """A scan came to an operation whose result depends on values."""


class InputError(InsituError, ValueError):
    """A trace was given no input, or one that has nothing in it."""


class InputTypeError(InputError, TypeError):
    """A trace was given an input of a kind the model cannot take."""


class DeviceError(InsituError, RuntimeError):
    """Tensors on two devices met."""


class WriteError(InsituError, ValueError):
    """A value written to a site does not fit what the module produced."""


class UnknownModuleError(InsituError, AttributeError):
    """A path names no module."""


class UnknownOperationError(InsituError, AttributeError):
    """A name stands for no operation of a forward, or no longer for the one it stood for."""


class SourceError(InsituError, OSError):
    """The operations of a function cannot be named, or not be reached."""


class MissingActivation(InsituError, KeyError, AttributeError):
    """A cache holds no such value: not asked for, not run, or changed in place."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError's shows the three lines as one


class CacheBudgetError(InsituError, MemoryError):
    """A cache would take more bytes than it may."""


class CacheFileError(InsituError, OSError):
    """A cache cannot be written to a file or folder, or not be read from it."""


class EditsFileError(InsituError, OSError):
    """Edits cannot be written to a file, not be read from it, or do not fit the model."""


class MetricError(InsituError, ValueError):
    """A metric gave something else than one number for each row."""


class MissingPackageError(InsituError, ImportError):
    """A part of Insitu needs a package that is not installed."""


class ModelMemoryError(InsituError, MemoryError):
    """There is not enough memory for a model's weights; nothing of them has been kept."""


class ModelNotFoundError(InsituError, OSError):
    """A model's name or folder could not be opened."""


class FunctionWhitelistError(InsituError, PermissionError):
    """A block that is to run on a server names what may not run there."""


class NotSendableError(InsituError, TypeError):
    """A value that a block needs, or gives back, cannot be sent."""


class WireError(InsituError, ValueError):
    """What came over the wire cannot be read, or is more than may be sent."""


class ServerError(InsituError, RuntimeError):
    """A server does what it should not, or a job there failed."""


class ServerUnreachableError(ServerError, ConnectionError):
    """Nothing answers at a server's address, or not any more."""


class ServerRefusedError(ServerError):
    """A server says no; its own three lines."""

    status = 0
    """Of the HTTP answer."""


class QueueFullError(ServerRefusedError):
    """A server takes no more jobs for now."""

    retry_after = 1.0
    """Seconds until it asks to be tried again."""


class JobLostError(ServerError):
    """A job ended without a result: cancelled, forgotten, or lost with its worker."""


class JobTimeoutError(ServerError, TimeoutError):
    """A job took longer than it may, or is not over yet."""


class RemoteError(ServerError):
    """A block raised an error on a server whose class is not known here."""

    job = ""
    kind = ""
    """The name of that class."""


class UsageError(InsituError, ValueError):
    """A magic or a method was given words it does not know."""


class UnknownSettingError(UsageError, AttributeError):
    """`insitu.CONFIG` has no setting of that name."""


class InsituWarning(UserWarning):
    """Something that works, but probably not as meant."""
