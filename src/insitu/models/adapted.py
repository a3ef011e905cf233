"""The methods of a model that takes PEFT adapters, in place.

model.add_adapter("path/to/french-lora")
model.set_adapter(None)                     # the base model alone
model.remove_adapter("french-lora")
"""

from typing import Any

from insitu.models import adapters, meta


class TakesAdapters:
    """Adapters added, swapped and removed. Abstract: a language model is one."""

    _module: Any
    _transformer: Any
    _family: Any

    def dispatch(self) -> None:
        """Read the weights."""
        raise NotImplementedError

    def _require_no_pass(self, method: str) -> None:
        raise NotImplementedError

    def add_adapter(self, source: Any, *, name: str | None = None) -> str:
        """Put a PEFT adapter into the model, in place, and make it the active one.

            model.add_adapter("path/to/french-lora")        # the name is then "french-lora"
            model.add_adapter(peft.LoraConfig(r=8, target_modules=["c_attn"]), name="fresh")

        Every path stays what it was: the module an adapter changes is replaced by one that calls
        it, under the same name, and is its `base_layer`.

        Args:
            source: a folder or a hub name; or a peft config, for a fresh adapter to be trained.
                peft then freezes all other weights.
            name: what it is called here; a folder's own name by default.

        Returns:
            Its name.

        Raises:
            AdapterError: it cannot be read, or does not fit; the model is then as it was.
            MissingPackageError: peft is not installed.
        """
        self._require_no_pass("add_adapter")
        self.dispatch()
        try:
            return adapters.add(self._transformer, source, name)
        finally:
            self._look_again()

    def set_adapter(self, name: str | None) -> None:
        """Make one adapter the active one; with None the base model runs without any.

            model.set_adapter("french-lora")

        Raises:
            AdapterError: there is none of that name.
        """
        self._require_no_pass("set_adapter")
        adapters.activate(self._transformer, name)
        self._look_again()

    def remove_adapter(self, name: str) -> None:
        """Take an adapter out; after the last one the model's own modules are in their places.

            model.remove_adapter("french-lora")

        Raises:
            AdapterError: there is none of that name.
        """
        self._require_no_pass("remove_adapter")
        adapters.remove(self._transformer, name)
        self._look_again()

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters in the model, in the order they were added."""
        return adapters.names(self._transformer)

    @property
    def active_adapters(self) -> tuple[str, ...]:
        """The names of those that are at work."""
        return adapters.active(self._transformer)

    def _look_again(self) -> None:
        """Modules of the model have been replaced: lead what is wrapped to those of now."""
        for wrapper in tuple(self._family):
            meta.lead_to(wrapper, self._module)
