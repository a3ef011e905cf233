"""A block as it travels: its text, the values it uses, and what it is the block of.

header, tensors = sent(block, root)         # by the client
block = received(header, tensors, root)     # where it runs
"""

import ast
import builtins
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

import insitu
from insitu.engine.capture.parsing import parse
from insitu.engine.views import View
from insitu.errors import WireError
from insitu.remote.protocol import VERSION
from insitu.remote.wire.bounds import refusal
from insitu.remote.wire.found import text_of_class
from insitu.remote.wire.places import place_of
from insitu.remote.wire.source import Code, Loaded
from insitu.remote.wire.values import Decoder, Encoder

KINDS = ("trace", "generate", "session")


@dataclass
class Text:
    """A piece of program with the names it needs: a block, or an edit that comes before it."""

    text: str
    file: str
    line: int
    futures: tuple[str, ...]
    target: str | None
    """The name after `as`."""
    names: dict[str, Any]


@dataclass
class Block:
    """One request: a block of a model's method, and everything it is run with."""

    kind: str
    args: tuple[Any, ...]
    settings: dict[str, Any]
    body: Text | None
    """None for a call without a `with`: what it returns is sent back."""
    wanted: list[tuple[str, ...]] = field(default_factory=list)
    """For each `local()` part, the names it is to be given."""
    sites: list[tuple[str, ...]] = field(default_factory=list)
    """For each, under which names it is given the sites it reads."""
    edits: list[Text] = field(default_factory=list)
    renamed: Mapping[str, Any] = field(default_factory=dict)
    """Further names of the model's modules."""
    views: list[tuple[str, type[View]]] = field(default_factory=list)
    """The user's own, each with the name of the class of modules that it is of."""
    code: Loaded | None = None
    """The functions and modules that came along; to be closed when the block has run."""

    @property
    def builtins(self) -> Any:
        """What the block has as builtins: its imports find the modules that came along."""
        return builtins if self.code is None else self.code.builtins

    def close(self) -> None:
        """Forget the code that came along."""
        if self.code is not None:
            self.code.close()


def sent(block: Block, root: Any, model: str, python: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A block as a container's header and tensors.

    Raises:
        NotSendableError: a value that it uses cannot be sent.
    """
    code = Code()
    encoder = Encoder(root, code)
    header = {
        "kind": "request",
        "protocol": VERSION,
        "insitu": insitu.__version__,
        "python": python,
        "model": model,
        "method": block.kind,
        "args": [encoder.encode(f"input {n + 1}", it) for n, it in enumerate(block.args)],
        "settings": {name: encoder.encode(name, it) for name, it in block.settings.items()},
        "body": None if block.body is None else _text_sent(block.body, encoder, code),
        "local": [
            {"names": list(names), "sites": list(sites)}
            for names, sites in zip(block.wanted, block.sites, strict=True)
        ],
        "edits": [_text_sent(edit, encoder, code) for edit in block.edits],
        "renamed": block.renamed,
        "views": [[name, _view_sent(view, encoder)] for name, view in block.views],
    }
    header["values"] = encoder.table
    header["code"] = code.header()
    return header, encoder.tensors


def _view_sent(view: type[View], encoder: Encoder) -> Any:
    found = text_of_class(view)
    at = "views=" if found is None else place_of(found.file, found.line)
    return encoder.encode(f"the view {view.__name__}", view, at)


def class_name(kind: type) -> str:
    """What a class of modules is called in a request; nothing is imported for it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _text_sent(text: Text, encoder: Encoder, code: Code) -> dict[str, Any]:
    tree = parse(text.text)
    code.take_imports(encoder, tree)
    used: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            used.setdefault(node.id, node.lineno + text.line - 1)
    at = {name: place_of(text.file, used.get(name, text.line)) for name in text.names}
    return {
        "text": text.text,
        "file": text.file,
        "line": text.line,
        "futures": list(text.futures),
        "target": text.target,
        "names": {name: encoder.encode(name, it, at[name]) for name, it in text.names.items()},
    }


def received(header: Mapping[str, Any], tensors: Mapping[str, Any], root: Any) -> Block:
    """A block, from a container.

    Raises:
        WireError: the container is no request.
    """
    if header.get("kind") != "request" or header.get("protocol") != VERSION:
        raise refusal("it is no request of this protocol")
    if header.get("method") not in KINDS:
        raise refusal("it names no method")
    try:
        code = Loaded(header["code"])
        decoder = Decoder(header["values"], _beside(root, tensors), root, code)
        return Block(
            kind=header["method"],
            args=tuple(decoder.decode(it) for it in header["args"]),
            settings={str(k): decoder.decode(it) for k, it in header["settings"].items()},
            body=None if header["body"] is None else _text_received(header["body"], decoder),
            wanted=[tuple(map(str, part["names"])) for part in header["local"]],
            sites=[tuple(map(str, part["sites"])) for part in header["local"]],
            edits=[_text_received(edit, decoder) for edit in header["edits"]],
            renamed=header["renamed"],
            views=[(str(name), _view(decoder.decode(it))) for name, it in header["views"]],
            code=code,
        )
    except WireError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise refusal(f"a part of it is missing, or of another kind ({error!r})") from error


def _view(told: Any) -> type[View]:
    if isinstance(told, type) and issubclass(told, View):
        return told
    raise refusal("a view in it is no class of views")


def _beside(root: Any, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tensors where the model is, when it is in one place: the sender need not know its devices."""
    devices = {weight.device for weight in root._module.parameters()}
    if len(devices) != 1 or devices == {torch.device("cpu")}:
        return tensors
    (device,) = devices
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _text_received(told: Mapping[str, Any], decoder: Decoder) -> Text:
    return Text(
        str(told["text"]),
        str(told["file"]),
        int(told["line"]),
        tuple(map(str, told["futures"])),
        None if told["target"] is None else str(told["target"]),
        {str(name): decoder.decode(it) for name, it in told["names"].items()},
    )
