"""A call whose prompts the trace's invokes bring.

with model.trace(output_attentions=True) as tracer:     # settings, and no prompt yet
    with tracer.invoke("The Eiffel Tower is in"): …
    with tracer.invoke("Hello", add_special_tokens=False): …
"""

from collections.abc import Callable
from typing import Any, Protocol

from insitu.engine.batch import Call, Rows
from insitu.engine.running import active
from insitu.errors import InputError
from insitu.models.inputs import Given
from insitu.models.joining import no_input
from insitu.models.padding import Batch

Make = Callable[[Batch, dict[str, Any]], Any]
"""Makes a call of inputs and settings."""


class Encodes(Protocol):
    """What a model does with prompts before it runs."""

    _module: Any

    def _told_apart(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], generates: bool
    ) -> Given: ...

    def _inputs(self, method: str, given: Given) -> Batch: ...

    def _joined(self, batches: list[Batch]) -> tuple[Batch, tuple[Rows, ...]]: ...


class PromptsToCome:
    """A call whose prompts the trace's invokes bring; its settings are given already."""

    pending = True

    def __init__(self, model: Encodes, method: str, given: Given, make: Make) -> None:
        self._model = model
        self._method = method
        self._given = given
        self._make = make

    def join(self, calls: list[Call]) -> tuple[Any, tuple[Rows, ...]]:
        """One call made of several, and whose rows are where."""
        batches, settings = [], dict(self._given.settings)
        generates = self._method == "generate"
        said: dict[str, Any] = {}
        for number, (args, kwargs) in enumerate(calls, 1):
            given = self._model._told_apart(
                "invoke", args, {**self._given.encoding, **kwargs}, generates
            )
            if not given.is_prompted:
                raise no_input("invoke", "it was given settings alone")
            for name, value in given.settings.items():
                if name in said and not _same(said[name], value):
                    raise _unlike(number, name, said[name], value)
            said.update(given.settings)
            batches.append({**self._given.inputs, **self._model._inputs("invoke", given)})
        inputs, rows = self._model._joined(batches)
        call = self._make(inputs, {**settings, **said})
        times = max(getattr(call, "expansions", (1,)))
        if times > 1 and len(rows) > 1 and call.apart is not None:
            raise _repeated_images(times)
        return call, rows

    def alone(self) -> Any:
        """A language model needs a prompt."""
        if self._is_within_another():
            raise _no_input_within(self._method)
        raise no_input(self._method, f"{type(self._model._module).__name__} needs a prompt")

    def _is_within_another(self) -> bool:
        """Whether a pass of the same model is around this one."""
        run = active.get()
        while run is not None:
            if run.arming.root is self._model and run.arming.call is not self:
                return True
            run = run.outer
        return False


def _same(one: Any, other: Any) -> bool:
    return one is other or bool(one == other)


def _no_input_within(method: str) -> InputError:
    return InputError(
        f"{method}() was given no input, inside another pass of the same model.",
        "it is a pass of its own: the prompts of the one around it and what is changed there are "
        "not its own.",
        f"to {method} from those prompts, write `with model.{method}(…) as tracer:` around the "
        "invokes and read tracer.result; for a pass beside it, give a prompt.",
    )


def _repeated_images(times: int) -> InputError:
    return InputError(
        f"a generation from several prompts with images was to have {times} rows for each.",
        "num_beams and num_return_sequences repeat the rows of prompts, and each family of models "
        "repeats images in its own way: which is whose would not be known.",
        "generate from one prompt at a time, or leave those settings out.",
    )


def _unlike(number: int, name: str, one: Any, other: Any) -> InputError:
    return InputError(
        f"invoke {number} was given {name}={other!r:.40}, and one before it {one!r:.40}.",
        "the prompts of a trace run in one pass, and it has one such setting.",
        f"give all invokes the same {name}, or trace them one by one.",
    )
