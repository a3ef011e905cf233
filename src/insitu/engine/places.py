"""The places of a module in a list that holds it several times, as a block sees them.

model.layers[1].output          # what the list's one block returned in its second call
"""

from typing import Any

from insitu.engine import blame, reading, repeated
from insitu.engine.order import INPUT
from insitu.engine.running import find
from insitu.engine.wrapped import WrappedModule


class Repeated(WrappedModule):
    """A module that stands several times in a list, or one below it; `repeated` says how it is met.

    Of its own, beside `WrappedModule`, so that no other read asks which call is meant.
    """

    @property
    def output(self) -> Any:
        """What the module returned in the call that this place is."""
        try:
            return repeated.read_output(self)
        except AttributeError as error:
            self.__dict__["_raised"] = error
            raise

    def _given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            return repeated.read_inputs(self)
        except AttributeError as error:
            self.__dict__["_raised"] = error
            raise

    def skip(self, value: Any) -> None:
        """Replace that call: it computes nothing and returns `value`."""
        run = find(self)
        repeated.come(run, self, INPUT)
        run.skip(self, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "output":
            run = find(self)
            reading.require_to_come(run, self, name)
            old = repeated.read_output(self)
            run.value = blame.written(run, value, old, self, name)
            return
        if name in ("input", "inputs"):
            repeated.come(find(self), self, INPUT)
        super().__setattr__(name, value)
