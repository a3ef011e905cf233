"""`NNsight`: any torch module, wrapped for tracing.

model = NNsight(net)
with model.trace(x):
    h = model.layer1.output
"""

import sys
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from insitu.engine import copying, edits_file, names, validate
from insitu.engine.batch import tensors
from insitu.engine.edits import Edit, Editor
from insitu.engine.held import Run
from insitu.engine.onlookers import Onlookers
from insitu.engine.order import Order
from insitu.engine.places import Repeated
from insitu.engine.running import find, is_inside
from insitu.engine.scan import Scan
from insitu.engine.steps import Steps, Walk, all_steps
from insitu.engine.trace import Tracer, is_entered
from insitu.engine.wrapped import WrappedModule
from insitu.errors import InputTypeError, UsageError
from insitu.models import elsewhere
from insitu.models.joining import Batch, Forward, Joining, ToBeJoined
from insitu.models.session import Session


class NNsight(WrappedModule):
    """Wrap a module so that its insides can be read and changed while it runs.

        model = NNsight(torch.nn.Sequential(torch.nn.Linear(5, 10), torch.nn.Linear(10, 2)))
        with model.trace(torch.rand(1, 5)):
            hidden = model[0].output
            model[0].output = hidden * 2
            out = model.output

    Submodules are wrapped when they are first named, so wrapping costs the same whatever the size.

    Args:
        module: the model. It is not changed; several wrappers of one module may live side by side.
        rename: further names of its modules, as for `rename`.
        views: view classes of its modules, as for `add_views`.
        batch_dim: the dimension in which the rows of its inputs are, where that is not the first:
            1 for a recurrent network over `[time, batch, feature]`. Of single arguments by their
            names, `{"hx": 1}`. Invokes are joined there, and see their rows there.
        batch: a function that joins the inputs of invokes, where that takes more than to put them
            one below the other. It gets their calls, `[(args, kwargs), …]`, and gives the one to
            be made, `(args, kwargs)`; of invokes with several rows also how many each has:
            `(args, kwargs, sizes)`. What `trace` itself is given goes to the module as it is.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        rename: Mapping[str, Any] | None = None,
        views: Mapping[type[nn.Module], Any] | None = None,
        batch_dim: int | Mapping[str, int] = 0,
        batch: Batch | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise InputTypeError(
                f"NNsight() wraps a torch.nn.Module, not {type(module).__name__}.",
                "it reads the modules of a network while they run.",
                "pass the network itself, or LanguageModel(name) for a language model by name.",
            )
        super().__init__(module, None, "")
        self.__dict__.update(copying.nothing_learned(self))
        joining = Joining.of(module, batch_dim, batch)
        self.__dict__.update(_beside=frozenset(), _edits=[], _names=names.Names(), _joining=joining)
        self._name_further(rename, views)

    _orders: dict[str, Order]
    """The order of modules in each kind of run, learned from the first one."""
    _beside: frozenset[nn.Module]
    """Modules of ours that are called between or after the model's steps."""
    _batched: dict[str, Any]
    """Which values hold the batch's rows, where that had to be found out."""
    _joining: Joining
    """How the inputs of invokes become one."""
    _sizes: frozenset[int] | None
    """Every size of a parameter or buffer, once asked for."""
    _edits: list[Edit]
    """Changes that every pass of this wrapper runs."""
    _family: "WeakSet[NNsight]"
    """This wrapper and those made from it by `edit`: their modules change together."""
    _onlookers: Onlookers | None  # live views that follow every pass
    _repeated = Repeated
    _opened_as: str | None = None  # the name or folder a server may know it by

    @property
    def _model(self) -> nn.Module:
        return self._module

    @property
    def _step_node(self) -> WrappedModule:
        """Of a model that takes steps: the module whose call is one."""
        return self

    def _name_further(
        self, rename: Mapping[str, Any] | None, views: Mapping[type[nn.Module], Any] | None
    ) -> None:
        if rename is not None:
            self.rename(rename)
        if views is not None:
            self.add_views(views)

    def rename(self, wanted: Mapping[str, Any]) -> None:
        """Give modules further names, beside those they have.

            model.rename({"transformer.h": "layers", "attn": "attention"})
            model.layers[0].attention.output

        A path is one module, reached under its further name from the root; a bare name is every
        module called so. Errors keep the real names.

        Args:
            wanted: for each name or path a further name, or a list of them.

        Raises:
            UnknownModuleError: no module has that name.
            UsageError: the further name is taken.
        """
        self.__dict__["_names"] = names.renamed(self, wanted)

    def add_views(self, wanted: Mapping[type[nn.Module], Any]) -> None:
        """Give all modules of a class further named values, read and written through.

            model.add_views({GPT2Attention: Heads})     # class Heads(insitu.View)
            with model.trace(prompt):
                model.transformer.h[0].attn.heads[:, :, 3] = 0

        Args:
            wanted: for each class of modules a view class, or a list of them.

        Raises:
            UsageError: the model has no such module, or something has the name already.
        """
        self.__dict__["_names"] = names.with_views(self, wanted)

    def attach(
        self, name: str, module: nn.Module, *, at: WrappedModule | str = ""
    ) -> WrappedModule:
        """Put a module of your own beside the model's, which stays as it is.

            sae = model.attach("sae", SAE(), at="transformer.h.3")
            model.transformer.h[3].sae = SAE()         # the same, written as an assignment

        Args:
            name: what it is called there. Attaching under that name again replaces it.
            module: an SAE, a probe, a LoRA: any torch module.
            at: the wrapped module, or the path, it is to be beneath; the root by default.

        Raises:
            UsageError: something of the model's has that name.
        """
        node = at if isinstance(at, WrappedModule) else self._at_path(at) if at else self
        added: WrappedModule = names.attach(node, name, module)
        return added

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module on an input, with the block of the `with` inside it.

            with model.trace(x) as tracer:
                h = model.layer1.output
            out = model.trace(x)                    # without a `with`: run, and give the output

        Args:
            *args, **kwargs: what the module's forward takes; `validate=True` checks the block on
                fake tensors before the model runs.

        Raises:
            InputError: no input was given.
        """
        if kwargs and elsewhere.wanted(kwargs):
            return elsewhere.begin(self, "trace", args, kwargs, sys._getframe(1))
        untraced, checked = own_words(kwargs) if kwargs else (False, False)
        tracer = Tracer(self, self._forward(args, kwargs), "trace", False)
        tracer.check = validate.check if checked else None
        return tracer.alone() if untraced or not is_entered(sys._getframe(1)) else tracer

    def open(self, *args: Any, **kwargs: Any) -> Run:
        """Start a pass and hold it open, to be read, edited and stepped by later statements.

            run = model.open(x)
            h = model.layer1.output
            out = run.finish()

        Opening another pass of this model in the same thread closes the earlier one.
        """
        elsewhere.refuse("open", kwargs)
        validate.refuse(kwargs, "open", "what runs in a pass held open is not known yet")
        call = self._forward(args, kwargs)
        return Run(self, call.alone() if call.pending else call, "trace", False)

    @property
    def iter(self) -> Steps:
        """The older spelling of `tracer.iter`."""
        return Steps(find(self))

    def all(self) -> Walk:
        """The older spelling of `tracer.all()`."""
        return all_steps(find(self), sys._getframe(1))

    def scan(self, *args: Any, **kwargs: Any) -> Scan:
        """Trace on fake tensors: shapes without running, for a model of any size.

        with model.scan(x):
            width = model.layer1.output.shape[-1]
        """
        elsewhere.refuse("scan", kwargs)
        validate.wanted(kwargs)  # a scan checks its block anyway
        return Scan(self.trace(*args, **kwargs))

    def session(self, **settings: Any) -> Any:
        """Group traces that belong together: one request, where they run on a server.

            with model.session(remote=True):
                with model.trace(clean):
                    h = model.layer1.output
                with model.trace(corrupted):
                    model.layer1.output[:] = h

        Args:
            **settings: `remote=` and `blocking=` alone, as for `trace`.
        """
        if elsewhere.wanted(settings):
            return elsewhere.begin(self, "session", (), settings, sys._getframe(1))
        if settings:
            raise UsageError(
                f"session() was given {', '.join(settings)}.",
                "it groups traces and runs nothing itself; it takes remote= and blocking= alone.",
                "give it to the trace that it is meant for.",
            )
        return Session()

    def edit(self, *, inplace: bool = False) -> Editor:
        """Change the model for all later passes: the block runs in each of them, in every step
        and at each call of the module that it reads first; with a loop over steps, in those alone.

            with model.edit() as edited:
                model.layer1.output[:] = 0
            edited(x)                       # changed; model(x) is not

        Args:
            inplace: change this wrapper instead of making a second one.
        """
        return Editor(self, self if inplace else self._twin())

    def clear_edits(self) -> None:
        """Take all changes made by `edit` away from this wrapper."""
        self._edits.clear()

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The changes made by `edit`, in the order they run; printing one shows its text."""
        return tuple(self._edits)

    def save_edits(self, file: str | PathLike[str]) -> Path:
        """Write this wrapper's edits into a file: their text, and the tensors they use.

            edited.save_edits("steer.safetensors")

        Raises:
            UsageError: there are none, or one uses what no file can hold: an object that is no
                tensor, number, text, list or dict of them, and that cannot be imported by name.
            EditsFileError: the file cannot be written.
        """
        return edits_file.save(self, file)

    def load_edits(self, file: str | PathLike[str], *, inplace: bool = False) -> "NNsight":
        """A second wrapper with the edits of a file, after those this one has.

            steered = model.load_edits("steer.safetensors")
            steered.generate("The Colosseum is in")

        The file is a program, which runs in every pass: load those of people you trust.

        Args:
            file: one that `save_edits` has written.
            inplace: change this wrapper instead of making a second one, and return it.

        Raises:
            EditsFileError: the file cannot be read, or its edits do not fit this model.
        """
        target = self if inplace else self._twin()
        target._edits.extend(edits_file.load(target, file))
        return target

    def _twin(self) -> "NNsight":
        """A second wrapper of the same module, with the same changes so far."""
        twin = object.__new__(type(self))
        WrappedModule.__init__(twin, self._module, None, "")
        own = {
            name: value
            for name, value in self.__dict__.items()
            if name not in twin.__dict__ and not isinstance(value, WrappedModule)
        }
        twin.__dict__.update(own, _extras=dict(self._extras), _edits=list(self._edits))
        self._family.add(twin)
        return twin

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, with its edits; inside a block of its own, the module alone."""
        if self._edits and not is_inside(self):
            with self.trace(*args, **kwargs) as tracer:
                return tracer.result
        return self._module(*args, **kwargs)

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args and isinstance(args[0], str):
            raise InputTypeError(
                f"{type(self._module).__name__} was given text.",
                "NNsight passes its input on as it is, and this module takes tensors.",
                "pass a tensor, or wrap a language model with LanguageModel(name).",
            )
        named = not args and any(type(value) is torch.Tensor for value in kwargs.values())
        if args or named or next(tensors(kwargs), None) is not None:
            return Forward(self._module, args, kwargs)
        return ToBeJoined(self._module, kwargs, self._joining)


def own_words(settings: dict[str, Any]) -> tuple[bool, bool]:
    """Take our own words out of a call's settings: whether it is to be traced not at all, and
    whether its block is to be checked first.
    """
    if not settings:
        return False, False
    return not settings.pop("trace", True), validate.wanted(settings)
