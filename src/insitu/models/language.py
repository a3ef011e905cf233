"""`LanguageModel`: a transformers model with its tokenizer, wrapped for tracing.

model = LanguageModel("demo")
with model.trace("The Eiffel Tower is in the city of"):
    logits = model.lm_head.output
print(model.tokenizer.decode(logits[0, -1].argmax()))
"""

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from insitu.engine import attributes, validate
from insitu.engine.batch import Rows
from insitu.engine.held import Run
from insitu.engine.running import around_here, is_inside
from insitu.engine.scan import Scan
from insitu.engine.trace import Tracer, is_entered
from insitu.engine.wrapped import WrappedModule
from insitu.errors import InputError, UsageError
from insitu.models import (
    elsewhere,
    generation,
    inputs,
    kinds,
    limits,
    loading,
    meta,
    padding,
    words,
)
from insitu.models.adapted import TakesAdapters
from insitu.models.base import NNsight, own_words
from insitu.models.generation import Generation, Generator
from insitu.models.inputs import Given
from insitu.models.joining import Forward
from insitu.models.padding import Batch
from insitu.models.prompts import Make, PromptsToCome
from insitu.models.standard.offer import StandardNames


class LanguageModel(TakesAdapters, NNsight):
    """Wrap a language model; text goes in, and every module in between can be read and changed.

        model = LanguageModel("demo")                       # ships with insitu, no download
        model = LanguageModel("path/to/folder", dtype=torch.bfloat16)
        model = LanguageModel("openai-community/gpt2", device_map="auto")
        model = LanguageModel(hf_model, tokenizer=tokenizer)

        with model.generate("Once upon a time", max_new_tokens=5) as tracer:
            for step in tracer.iter[:]:
                model.transformer.h[2].output[:] += direction
            ids = model.generator.output

    Args:
        model: `"demo"`, a folder, a hub name, or a loaded transformers model. A folder or a name
            that is cached touches no network.
        tokenizer: for a loaded model; a name brings its own.
        dispatch: read the weights now. With False the modules are on `meta` and take no memory;
            the weights come with the first trace, generation or call, or with `dispatch()`.
        rename: further names of its modules, as for the method `rename`.
        views: view classes of its modules, as for `add_views`.
        **settings: for `from_pretrained`: `device_map`, `dtype`, `attn_implementation`,
            `quantization_config`, `revision`, `trust_remote_code`, …

    Raises:
        ModelNotFoundError: no such folder, and no such name in the cache or on the hub.
        ModelMemoryError: the weights do not fit into memory.
    """

    tokenizer: Any
    _weights: loading.Checkpoint | None
    """Where the weights are to come from; None once they are there."""

    # Seams for models that take more than text -------------------------------------------------
    _WORDS = inputs.FOR_TEXT | inputs.FOR_CHAT
    """Settings of whatever encodes prompts, which stand beside the model's own."""
    _choose = staticmethod(loading.language_class)
    """Gives the model class for a config: `_choose(transformers, config)`."""
    _more_names = StandardNames()
    """Looks the standard names up (`model.layers[0].attention.pattern`) when one is asked for."""

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        tokenizer: Any = None,
        dispatch: bool = True,
        rename: Mapping[str, Any] | None = None,
        views: Mapping[type[nn.Module], Any] | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(model, nn.Module):
            checkpoint, loaded = None, model
        else:
            checkpoint = loading.find(str(model), settings, self._choose)
            loaded = checkpoint.load() if dispatch else meta.empty(checkpoint)
        super().__init__(loaded)
        self.__dict__.update(_weights=None if dispatch else checkpoint, _told=set())
        self.__dict__["_opened_as"] = None if checkpoint is None else checkpoint.name
        self._take_tokenizer(tokenizer, checkpoint)
        self._extras["generator"] = generator = Generator()
        self.__dict__["_beside"] = frozenset(generator.modules())
        self._name_further(rename, views)

    def _take_tokenizer(self, tokenizer: Any, checkpoint: loading.Checkpoint | None) -> None:
        """Hold the tokenizer that was given, or the one beside the weights."""
        if tokenizer is None:
            tokenizer = (
                loading.tokenizer_of(self._module)
                if checkpoint is None
                else checkpoint.companion("AutoTokenizer")
            )
        self.__dict__["tokenizer"] = loading.with_padding(tokenizer, self._kind.padding_side)

    @functools.cached_property
    def _kind(self) -> kinds.Kind:
        return kinds.kind_of(self._module)

    @functools.cached_property
    def _positions(self) -> int | None:
        return limits.positions_of(self._module)

    @property
    def _transformer(self) -> Any:
        """The transformers model: its config, its generation config."""
        return kinds.unwrapped(self._module)

    @property
    def _step_node(self) -> WrappedModule:
        """What a generation calls: the transformers model, not what is put around it."""
        node: WrappedModule = attributes.seen(self, self._transformer)
        return node

    def dispatch(self) -> None:
        """Read the weights of a model that was opened with `dispatch=False`, now.

            model = LanguageModel("path/to/folder", dispatch=False)
            model.dispatch()

        Edits, further names, views and attached modules stay. When it fails, all is as before.

        Raises:
            ModelNotFoundError: the weights are not there, or cannot be read.
            ModelMemoryError: there is not enough memory for them.
        """
        if self._weights is None:
            return
        self._require_no_pass("dispatch")
        module = self._weights.load()
        for wrapper in tuple(self._family):
            meta.lead_to(wrapper, module)
            wrapper.__dict__["_weights"] = None

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model once on a prompt, with the block of the `with` inside it.

            with model.trace("The Eiffel Tower is in the city of") as tracer:
                h = model.transformer.h[2].output       # [batch, pos, d_model]
                logits = model.lm_head.output           # [batch, pos, d_vocab]

        Args:
            *args: text, a list of texts, token ids (list, nested list or tensor), a tokenizer's
                output, or chat messages. Prompts of unequal length are padded, with mask and
                positions: on the left, and an encoder's on the right.
            **kwargs: what the model's forward takes (`input_ids=…`, `output_attentions=True`) and
                what its tokenizer takes (`truncation=True, max_length=8`); `validate=True` checks
                the block on fake tensors before the model runs.

        Raises:
            InputError: no prompt, or one without tokens.
            UsageError: a setting of `generate()`, or one the model does not know.
        """
        if elsewhere.wanted(kwargs):
            return elsewhere.begin(self, "trace", args, kwargs, sys._getframe(1))
        untraced, checked = own_words(kwargs)
        self.dispatch()
        call = self._request("trace", args, kwargs, self._forward_of)
        tracer = Tracer(self, call, "trace", False)
        tracer.check = validate.check if checked else None
        return tracer.alone() if untraced or not is_entered(sys._getframe(1)) else tracer

    def scan(self, *args: Any, **kwargs: Any) -> Scan:
        """Trace on fake tensors: shapes without running, and without the weights.

        with model.scan("The Eiffel Tower is in the city of"):
            width = model.transformer.h[2].output.shape[-1]
        """
        elsewhere.refuse("scan", kwargs)
        own_words(kwargs)  # a scan checks its block anyway
        call = self._request("scan", args, kwargs, self._forward_of)
        return Scan(Tracer(self, call, "trace", False))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate from a prompt, with the block inside every step.

            with model.generate("Once upon a time", max_new_tokens=5) as tracer:
                for step in tracer.iter[:]:
                    if step == 2:
                        model.transformer.h[0].output[:] = 0
                ids = model.generator.output            # [batch, prompt and new tokens]

        Args:
            *args: as for `trace`.
            **kwargs: generation settings: `max_new_tokens`, `do_sample`, …; `grad=True` lets
                gradients flow from each step back through the cache to those before it.
        """
        if elsewhere.wanted(kwargs):
            return elsewhere.begin(self, "generate", args, kwargs, sys._getframe(1))
        validate.refuse(kwargs, "generate", "a generation goes on from the tokens it has chosen")
        untraced, _ = own_words(kwargs)
        self.dispatch()
        call = self._request("generate", args, kwargs, self._generation_of)
        tracer = Tracer(self, call, "generate", True)
        return tracer.alone() if untraced or not is_entered(sys._getframe(1)) else tracer

    def open(self, *args: Any, generate: int | None = None, **kwargs: Any) -> Run:
        """Start a pass and hold it open, to be read, edited and stepped by later statements.

            run = model.open("The Eiffel Tower is in the city of")
            model.transformer.h[2].output[:] = 0
            out = run.finish()

        Args:
            *args, **kwargs: as for `trace`.
            generate: hold a generation of that many tokens open instead of one forward.
        """
        elsewhere.refuse("open", kwargs)
        validate.refuse(kwargs, "open", "what runs in a pass held open is not known yet")
        self.dispatch()
        steps = generate is not None
        if steps:
            kwargs = {"max_new_tokens": generate, **kwargs}
        make = self._generation_of if steps else self._forward_of
        call = self._request("generate" if steps else "open", args, kwargs, make)
        call = call.alone() if call.pending else call
        return Run(self, call, "generate" if steps else "trace", steps)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model on a prompt, with its edits; inside a block of its own, without them.

        logits = model("The Eiffel Tower is in the city of").logits
        """
        inside = is_inside(self)
        if inside and (not args or isinstance(args[0], Tensor)):
            return self._module(*args, **kwargs)
        if not inside:
            self.dispatch()
            if self._edits:
                return super().__call__(*args, **kwargs)
        call = self._request("__call__", args, kwargs, self._forward_of)
        call = call.alone() if call.pending else call
        return self._module(*call.args, **call.kwargs)

    @property
    def generation_settings(self) -> dict[str, Any]:
        """What the checkpoint sets for `generate`, where it changes the tokens that are chosen.

        model.generation_settings           # {"do_sample": True, "temperature": 0.6}
        """
        return generation.from_checkpoint(getattr(self._transformer, "generation_config", None))

    def _more_lines(self) -> str:
        set_there = generation.told(self.generation_settings)
        return f"\nGeneration: {set_there}" if set_there else ""

    def _require_no_pass(self, method: str) -> None:
        if any(run.root in self._family for run in around_here()):
            raise UsageError(
                f"{method}() was called while a pass of this model is open.",
                "it replaces modules that the pass is to come to.",
                "call it before the trace, or after; end a held pass with run.finish().",
            )

    # From what was given to a call -------------------------------------------------------------

    def _request(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], make: Make
    ) -> Any:
        """The call to be made; without an input, what the trace's invokes make of it."""
        given = self._told_apart(method, args, kwargs, generates=method == "generate")
        if not given.is_prompted:
            return PromptsToCome(self, method, given, make)
        return make(self._inputs(method, given), given.settings)

    def _told_apart(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], generates: bool
    ) -> Given:
        """What was given, by what it is for; refuses what the forward would ignore."""
        given = inputs.told_apart(method, args, kwargs, self._WORDS, generates=generates)
        if given.settings and not generates:
            words.require_known(method, given.settings, self._transformer, self._kind, self._WORDS)
        return given

    def _inputs(self, method: str, given: Given) -> Batch:
        """What the model takes, of one prompt or several given together."""
        batch: Batch = {}
        if given.prompt is not None:
            batch = self._encode(method, given.prompt, given.encoding)
        batch.update(inputs.tensors_of(given.inputs, self.tokenizer))
        ids = next((batch[name] for name in padding.IDS if name in batch), None)
        if ids is not None and ids.shape[1] == 0:
            raise InputError(
                "the prompt has no tokens.",
                f"{given.prompt!r} becomes an empty sequence, and a model cannot run on nothing.",
                "give a prompt with at least one token.",
            )
        return batch

    def _encode(self, method: str, prompt: Any, settings: dict[str, Any]) -> Batch:
        """A prompt as the model's inputs; `settings` are those among `_WORDS`."""
        if settings.get("truncation") and self._positions is not None:
            settings = {"max_length": self._positions, **settings}
        return inputs.encode(method, prompt, self.tokenizer, settings)

    def _joined(self, batches: list[Batch]) -> tuple[Batch, tuple[Rows, ...]]:
        """Several encoded prompts as one batch, padded to the longest."""
        pad = self.tokenizer.pad_token_id if self.tokenizer is not None else None
        return padding.padded(
            batches, pad, self._kind.padding_side, has_decoder=self._kind.has_decoder
        )

    def _forward_of(self, batch: Batch, settings: dict[str, Any]) -> Forward:
        limits.require_fit(self._transformer, batch, self._positions)
        return Forward(self._module, (), {**self._placed(self._completed(batch)), **settings})

    def _generation_of(self, batch: Batch, settings: dict[str, Any]) -> Generation:
        generation.require_generate(self._module)
        settings = dict(settings)
        generation.notice(self.generation_settings, settings, self.__dict__["_told"])
        config = self._transformer.generation_config
        if self.tokenizer is not None and config.pad_token_id is None:
            settings.setdefault("pad_token_id", self.tokenizer.pad_token_id)
        if not self._kind.has_decoder:
            to_come = generation.tokens_to_come(batch, settings, config)
            limits.require_fit(self._transformer, batch, self._positions, to_come)
        return Generation(self._module, self._extras["generator"], self._placed(batch), settings)

    def _completed(self, batch: Batch) -> Batch:
        """The inputs with what the forward would have to guess."""
        return inputs.completed(batch, self._kind, self._transformer)

    def _placed(self, batch: Batch) -> Batch:
        """The same inputs on the device of the embedding, where token ids are needed."""
        return inputs.placed(batch, kinds.device_of(self._transformer))
