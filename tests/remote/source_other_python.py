"""Run by another Python, without torch: `write FILE` or `read FILE` the source examples.

The package's `__init__` imports torch, so only what source needs is imported, from the folders.
"""

import json
import sys
import types
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"


def package(name):
    module = types.ModuleType(name)
    module.__path__ = [str(SOURCE / name.replace(".", "/"))]
    sys.modules[name] = module


for name in ("insitu", "insitu.engine", "insitu.remote", "insitu.remote.wire"):
    package(name)
try:
    import zstandard  # noqa: F401
except ImportError:
    sys.modules["zstandard"] = types.ModuleType("zstandard")
    sys.modules["zstandard"].ZstdError = OSError

import source_examples as examples  # noqa: E402

from insitu.remote.wire.loaded import Loaded  # noqa: E402
from insitu.remote.wire.source import Code  # noqa: E402


class Plain:
    """An encoder for what the examples need."""

    at = ""

    def __init__(self, code):
        self.code = code

    def part(self, said, value):
        found = self.code.take(self, said, value)
        if found is not None:
            return found
        if isinstance(value, (tuple, list)):
            return {type(value).__name__: [self.part(said, one) for one in value]}
        if isinstance(value, dict):
            return {"dict": [[k, self.part(said, one)] for k, one in value.items()]}
        return value


class Read:
    """Its decoder."""

    def __init__(self, code):
        self.code = code
        code.decoder = self

    def part(self, told):
        if not isinstance(told, dict):
            return told
        if self.code.knows(told):
            return self.code.give(told)
        ((kind, parts),) = told.items()
        if kind == "dict":
            return {k: self.part(one) for k, one in parts}
        return {"tuple": tuple, "list": list}[kind](self.part(one) for one in parts)


def write():
    names = vars(sys.modules["__main__"])
    names["__file__"] = examples.__file__  # the examples as a script
    exec(compile(Path(examples.__file__).read_text(), examples.__file__, "exec"), names)
    code = Code()
    encoder = Plain(code)
    told = {}
    for name in examples.CALLS:
        told[name] = encoder.part(name, names[name])
        code.settle(encoder)
    return {"told": told, "code": code.header()}


def read(sent):
    code = Loaded(sent["code"])
    decoder = Read(code)
    for name, (call, wanted) in examples.CALLS.items():
        found = decoder.part(sent["told"][name])
        code.settle()
        assert found is not getattr(examples, name)
        assert call(found) == wanted, name
    assert examples.STATE == {"n": 0}
    code.close()


if __name__ == "__main__":
    task, file = sys.argv[1:]
    if task == "write":
        Path(file).write_text(json.dumps(write()))
    else:
        read(json.loads(Path(file).read_text()))
