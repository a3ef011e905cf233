"""Values as JSON with tensors beside it, and back: exactly, and without running anything.

    header, tensors = encode_all({"logits": logits, "n": 3})
    values = decode_all(header, tensors)

    encoder = Encoder(root, Code())         # of a request: parts of the model and functions too
    there = encoder.encode("h", h, "cell 4, line 7")
    Decoder(encoder.table, encoder.tensors, root, Loaded(code)).decode(there)

A number, a text and the like stand where they are used. Everything else has one row of a table, and
`{"at": 3}` stands for it wherever it is met: what was one object here is one object there. Without
`code`, reading makes data only: nothing is imported, and no class is called that is not ours,
torch's or transformers'.
"""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from insitu.engine.cache.values import identity
from insitu.engine.wrapped import WrappedModule
from insitu.errors import NotSendableError, UnknownModuleError, WireError
from insitu.remote.wire import arrays, objects
from insitu.remote.wire.bounds import refusal
from insitu.remote.wire.leaves import NO_LEAF, leaf, read_leaf
from insitu.remote.wire.unsendable import circular, too_deep, unsendable

DEPTH = 100
"""How deep values may be nested."""

_OF_MODEL = ("tokenizer", "processor", "config", "generation_config")
_FACTORIES: dict[str, Any] = {
    kind.__name__: kind for kind in (bool, dict, float, int, list, set, str, tuple)
}
_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def encode_all(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Values by name, as a part of a header and the tensors beside it.

    Raises:
        NotSendableError: one is no data.
    """
    encoder = Encoder()
    names = {name: encoder.encode(name, value) for name, value in values.items()}
    return {"names": names, "values": encoder.table}, encoder.tensors


def decode_all(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The values of `encode_all`.

    Raises:
        WireError: the header was written by something else.
    """
    names = header.get("names")
    if not isinstance(names, dict):
        raise refusal("it names no values")
    decoder = Decoder(header.get("values"), tensors)
    return {name: decoder.decode(value) for name, value in names.items()}


class Encoder:
    """Makes JSON of values, and collects their tensors."""

    def __init__(self, root: Any = None, code: Any = None) -> None:
        self.root = root
        """The wrapped model, whose modules and tokenizer go by name."""
        self.code = code
        """Takes functions, classes and modules; without it, they are refused."""
        self.table: list[Any] = []
        self.tensors: dict[str, Tensor] = {}
        self.at = ""
        """Where what is being encoded is used: `cell 4, line 7`."""
        self._places: dict[int, tuple[int, Any]] = {}
        self._memory: dict[Any, tuple[int, Tensor]] = {}
        self._open: set[int] = set()
        self._weights: dict[int, str] | None = None

    def encode(self, said: str, value: Any, at: str | None = None) -> Any:
        """A value as JSON.

        Args:
            said: what the user calls it.
            value: the value.
            at: where they use it.

        Raises:
            NotSendableError: it cannot be sent, and what to do.
        """
        if at is not None:
            self.at = at
        found = self.part(said, value)
        if self.code is not None:
            self.code.settle(self)
        return found

    def part(self, said: str, value: Any) -> Any:
        """A part of a value; `said` is how it is reached: `state['opt']`."""
        found = leaf(value)
        if found is not NO_LEAF:
            return found
        known = self._places.get(id(value))
        if known is not None:
            if known[0] in self._open:
                raise circular(said, value, self.at)
            return {"at": known[0]}
        by_name = self._by_name(said, value)
        if by_name is None and isinstance(value, Tensor):
            same = (identity(value), type(value), value.requires_grad)
            known = self._memory.setdefault(same, (len(self.table), value))
            if known[1] is not value:  # another view of the same numbers, as caches hold them
                return {"at": known[0]}
        return self._row(said, value) if by_name is None else by_name

    def add(self, tensor: Tensor) -> str:
        """Take a tensor along; gives the name it goes by."""
        name = f"t{len(self.tensors)}"
        self.tensors[name] = tensor
        return name

    def refuse(self, said: str, value: Any) -> NotSendableError:
        """The error for a value that cannot be sent."""
        return unsendable(said, value, self.at)

    def _row(self, said: str, value: Any) -> Any:
        if len(self._open) >= DEPTH:
            raise too_deep(said, value, self.at, DEPTH)
        number = len(self.table)
        self.table.append(None)
        self._places[id(value)] = number, value  # held, so that no other value gets its id
        self._open.add(number)
        try:
            self.table[number] = self._node(said, value)
        except BaseException:
            del self._places[id(value)]
            raise
        finally:
            self._open.discard(number)
        return {"at": number}

    def _by_name(self, said: str, value: Any) -> Any:
        """What the other side has already: parts of the model, and what a library offers."""
        if self.root is not None and (found := self._of_model(value)) is not None:
            return found
        if self.code is not None:
            return self.code.take(self, said, value)
        return None

    def _of_model(self, value: Any) -> Any:
        whole = self.root._whole
        if isinstance(value, WrappedModule):
            if value._whole is not whole:
                return None
            return {"module": "" if value._parent is None else value._path}
        if isinstance(value, nn.Module):
            if value is whole:
                return {"module": "", "bare": True}
            path = next((path for path, one in whole.named_modules() if one is value), None)
            return None if path is None else {"module": path, "bare": True}
        if isinstance(value, Tensor):
            if self._weights is None:
                named = (*whole.named_parameters(), *whole.named_buffers())
                self._weights = {id(one): path for path, one in named}
            path = self._weights.get(id(value))
            return None if path is None else {"weight": path}
        if type(value).__module__.partition(".")[0] in ("tokenizers", "transformers"):
            for name in _OF_MODEL:
                if self.root.__dict__.get(name, getattr(whole, name, None)) is value:
                    return {"of_model": name}
        return None

    def _node(self, said: str, value: Any) -> Any:
        kind = type(value)
        if kind in (list, tuple, set, frozenset):
            return {kind.__name__: self.parts(said, value)}
        if kind in (dict, OrderedDict, Counter, defaultdict):
            return self._dict(said, value)
        if kind is deque:
            return {"deque": self.parts(said, value), "most": value.maxlen}
        if kind is slice:
            parts = (value.start, value.stop, value.step)
            return {"slice": [self.part(said, part) for part in parts]}
        if kind is SimpleNamespace:
            return {"namespace": objects.fields(self, said, vars(value))}
        if isinstance(value, Tensor):
            return arrays.tensor_node(self, said, value)
        if arrays.is_array(value):
            return arrays.node(self, said, value)
        if objects.is_one(value):
            return objects.node(self, said, value)
        raise self.refuse(said, value)

    def _dict(self, said: str, value: dict[Any, Any]) -> Any:
        node: dict[str, Any] = {"dict": self.items(said, value)}
        if type(value) is not dict:
            node["kind"] = type(value).__name__
        if isinstance(value, defaultdict):
            made = value.default_factory
            node["of"] = name = getattr(made, "__name__", None)
            if made is not None and _FACTORIES.get(name or "") is not made:
                why = "what it makes of a missing key is a function"
                raise unsendable(said, value, self.at, why, "send dict(…) of it")
        return node

    def parts(self, said: str, values: Any) -> list[Any]:
        """The parts of a sequence."""
        return [self.part(f"{said}[{n}]", value) for n, value in enumerate(values)]

    def items(self, said: str, values: Mapping[Any, Any]) -> list[Any]:
        """The keys of a mapping, each with its value."""
        return [
            [self.part(f"a key of {said}", key), self.part(f"{said}[{_short(key)}]", value)]
            for key, value in values.items()
        ]


class Decoder:
    """Makes values of the JSON of an `Encoder`, which need not have been written by one."""

    def __init__(
        self, table: Any, tensors: Mapping[str, Tensor], root: Any = None, code: Any = None
    ) -> None:
        if not isinstance(table, list):
            raise refusal("it has no table of values")
        self.root = root
        self.code = code
        self._table: list[Any] = table
        self._tensors = dict(tensors)
        self._made: dict[int, Any] = {}
        self._open: set[int] = set()
        if code is not None:
            code.decoder = self

    def decode(self, told: Any) -> Any:
        """A value.

        Raises:
            WireError: it is nothing that an encoder writes.
        """
        try:
            found = self.part(told)
            if self.code is not None:
                self.code.settle()
            return found
        except WireError:
            raise
        except (
            ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError,
            RuntimeError, TypeError, ValueError,
        ) as error:  # fmt: skip
            if self.code is not None and self.code.raised is error:
                raise
            text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise refusal(f"a value in it makes no sense ({text})") from None

    def part(self, told: Any) -> Any:
        """A part of a value."""
        if not isinstance(told, dict):
            return read_leaf(told)
        if "at" in told:
            return self._at(told["at"])
        for tag, read in _NAMED.items():
            if tag in told:
                return read(self, told)
        if self.code is not None and self.code.knows(told):
            return self.code.give(told)
        return read_leaf(told)

    def take(self, name: Any) -> Tensor:
        """The tensor of a name; each is used once."""
        found = self._tensors.pop(name, None) if isinstance(name, str) else None
        if found is None:
            raise refusal(f"tensor {str(name)[:80]!r} is not there, or used twice")
        return found

    def _at(self, number: Any) -> Any:
        if type(number) is not int or not 0 <= number < len(self._table):
            raise refusal("it points behind the end of its table")
        if number in self._made:
            return self._made[number]
        if number in self._open:
            raise refusal("a value in it contains itself")
        if len(self._open) > DEPTH:
            raise refusal(f"its values are nested more than {DEPTH} deep")
        self._open.add(number)
        try:
            found = self._made[number] = self._node(self._table[number])
        finally:
            self._open.discard(number)
        return found

    def _node(self, told: Any) -> Any:
        if not isinstance(told, dict):
            raise refusal("a row of its table is no JSON object")
        for tag, kind in _SEQUENCES.items():
            if tag in told:
                return kind(self.parts(told[tag]))
        for tag, read in _ROWS.items():
            if tag in told:
                return read(self, told)
        raise refusal(f"it has values of a kind that is not known ({', '.join(told)[:80]})")

    def parts(self, told: Any) -> list[Any]:
        """The parts of a sequence."""
        if not isinstance(told, list):
            raise refusal("a sequence in it is no JSON array")
        return [self.part(one) for one in told]

    def items(self, told: Any) -> list[tuple[Any, Any]]:
        """Pairs of a key and a value."""
        return [(self.part(key), self.part(value)) for key, value in told]


def _dict(decoder: Decoder, told: dict[str, Any]) -> Any:
    found = dict(decoder.items(told["dict"]))
    kind = told.get("kind")
    if kind == "defaultdict":
        return defaultdict(None if told["of"] is None else _FACTORIES[told["of"]], found)
    return {None: dict, "OrderedDict": OrderedDict, "Counter": Counter}[kind](found)


def _deque(decoder: Decoder, told: dict[str, Any]) -> Any:
    return deque(decoder.parts(told["deque"]), told["most"])


def _slice(decoder: Decoder, told: dict[str, Any]) -> Any:
    return slice(*decoder.parts(told["slice"]))


def _namespace(decoder: Decoder, told: dict[str, Any]) -> Any:
    return SimpleNamespace(**objects.read_fields(decoder, told["namespace"]))


def _model_of(decoder: Decoder) -> Any:
    if decoder.root is None:
        raise refusal("it names parts of a model, and holds data only")
    return decoder.root


def _module(decoder: Decoder, told: dict[str, Any]) -> Any:
    root, path = _model_of(decoder), str(told["module"])
    try:
        found = root._at_path(path) if path else root
    except UnknownModuleError:
        raise refusal(f"the model has no module {path[:80]!r}") from None
    return found._module if told.get("bare") else found


def _weight(decoder: Decoder, told: dict[str, Any]) -> Any:
    whole, path = _model_of(decoder)._whole, str(told["weight"])
    for named in (whole.get_parameter, whole.get_buffer):
        try:
            return named(path)
        except AttributeError:
            continue
    raise refusal(f"the model has no weight {path[:80]!r}")


def _part_of_model(decoder: Decoder, told: dict[str, Any]) -> Any:
    root, name = _model_of(decoder), told["of_model"]
    if name not in _OF_MODEL:
        raise refusal(f"a model has no {str(name)[:80]!r} that could be sent")
    return root.__dict__[name] if name in root.__dict__ else getattr(root._whole, name)


_NAMED = {"module": _module, "weight": _weight, "of_model": _part_of_model}
_ROWS = {
    "dict": _dict,
    "deque": _deque,
    "namespace": _namespace,
    "slice": _slice,
    **arrays.READERS,
    **objects.READERS,
}


def _short(key: Any) -> str:
    text = repr(key) if isinstance(key, (str, int, float, bool)) else type(key).__name__
    return text if len(text) <= 40 else f"{text[:37]}…"
