"""Source: the user's own functions, classes and modules, made again from their text."""

import functools
import importlib
import json
import linecache
import shutil
import subprocess
import sys
import sysconfig
import traceback
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import insitu
from insitu import FunctionWhitelistError, NotSendableError, UsageError, WireError
from insitu.remote.wire import origins
from insitu.remote.wire.container import pack, unpack
from insitu.remote.wire.source import Code, Loaded
from insitu.remote.wire.values import Decoder, Encoder, decode_all, encode_all

HERE = Path(__file__).parent
sysconfig.get_config_vars()  # it imports a module of its own, once


def trip(root=None, **values):
    """Send values as a request does, and read them in the same process."""
    code = Code()
    encoder = Encoder(root, code)
    told = {name: encoder.encode(name, value, "line 7") for name, value in values.items()}
    header = {"told": told, "values": encoder.table, "code": code.header()}
    header, tensors = unpack(pack(header, encoder.tensors), most=2**30)
    loaded = Loaded(header["code"])
    decoder = Decoder(header["values"], tensors, root, loaded)
    found = {name: decoder.decode(one) for name, one in header["told"].items()}
    loaded.close()
    return found


def sent_modules(**values):
    code = Code()
    encoder = Encoder(None, code)
    for name, value in values.items():
        encoder.encode(name, value)
    return sorted(code.header()["modules"])


@pytest.fixture
def script(tmp_path):
    """Names of a program that was run as a script is: `__main__`'s, from a file."""
    kept = dict(vars(sys.modules["__main__"]))

    def run(text):
        file = tmp_path / "script.py"
        file.write_text(text)
        linecache.checkcache(str(file))
        names = vars(sys.modules["__main__"])
        names["__file__"] = str(file)
        exec(compile(text, str(file), "exec"), names)
        return names

    yield run
    names = vars(sys.modules["__main__"])
    names.clear()
    names.update(kept)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A package of the user's own."""
    folder = tmp_path / "mylab"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from .stats import mean\nimport logging\nlog = logging.getLogger('mylab')\n"
        "def centre(h):\n    return h - mean(h)\n"
    )
    (folder / "stats.py").write_text(
        "from __future__ import annotations\nimport typing as t\n"
        "from dataclasses import dataclass\n@dataclass\nclass Score:\n    loss: float\n"
        "    kind: t.ClassVar[int] = 3\n"
        "def mean(h):\n    import mylab.extra\n"
        "    return h.mean(-1, keepdim=True) + mylab.extra.ZERO\n"
        "def fails(h):\n    raise ValueError(h)\n"
    )
    (folder / "extra.py").write_text("ZERO = 0\n")
    (folder / "unused.py").write_text("raise AssertionError('it is used by nobody')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield importlib.import_module("mylab")
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "mylab":
            del sys.modules[name]


EXAMPLES = (HERE / "source_examples.py").read_text()


def test_functions_and_classes_of_a_script_are_made_again(script):
    names = script(EXAMPLES)
    calls = names["CALLS"]
    found = trip(**{name: names[name] for name in calls})
    for name, (call, wanted) in calls.items():
        assert found[name] is not names[name]
        assert call(found[name]) == wanted, name
    assert names["STATE"] == {"n": 0}


def pythons():
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = {here: sys.executable}
    for version in ("3.11", "3.12", "3.13"):
        places = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        one = str(places[-1]) if places else shutil.which(f"python{version}")
        if version not in found and one is not None:
            works = subprocess.run([one, "-c", ""], capture_output=True, check=False)
            if works.returncode == 0:
                found[version] = one
    return found


PYTHONS = pythons()
VERSIONS = sorted({"3.11", "3.12", "3.13", *PYTHONS})


@pytest.mark.parametrize("there", VERSIONS)
@pytest.mark.parametrize("here", VERSIONS)
def test_source_of_one_python_is_made_again_by_another(here, there, tmp_path):
    missing = sorted({here, there} - set(PYTHONS))
    if missing:
        pytest.skip(f"no Python {' and no '.join(missing)} in ~/.pyenv or on the PATH")
    program, file = str(HERE / "source_other_python.py"), str(tmp_path / "sent.json")
    for python, task in ((here, "write"), (there, "read")):
        done = subprocess.run(
            [PYTHONS[python], "-B", program, task, file], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()


def test_modules_travel_whole_and_nothing_of_theirs_stays(project):
    stats = sys.modules["mylab.stats"]
    before = dict(sys.modules)
    found = trip(mylab=project, centre=project.centre, kind=stats.Score, one=stats.Score(1.5))
    assert dict(sys.modules) == before
    assert found["mylab"] is not project
    assert found["mylab"].centre is found["centre"]
    h = torch.randn(2, 3)
    assert torch.equal(found["centre"](h), project.centre(h))
    assert type(found["one"]) is found["kind"]
    assert found["kind"] is not stats.Score
    assert found["one"].loss == 1.5
    assert found["kind"].kind == 3


def test_only_the_modules_that_are_imported_travel(project):
    assert sent_modules(mylab=project) == ["mylab", "mylab.extra", "mylab.stats"]


def test_tracebacks_of_modules_show_their_own_lines(project, tmp_path):
    fails = trip(stats=sys.modules["mylab.stats"])["stats"].fails
    with pytest.raises(ValueError, match="x") as error:
        fails("x")
    last = traceback.extract_tb(error.value.__traceback__)[-1]
    assert (last.filename, last.lineno) == (str(tmp_path / "mylab" / "stats.py"), 12)
    assert last.line == "raise ValueError(h)"


def test_a_registered_package_of_site_packages_travels(project, monkeypatch):
    monkeypatch.setattr(origins, "is_installed", lambda file: True)
    with pytest.raises(FunctionWhitelistError, match="mylab"):
        sent_modules(mylab=project)
    origins.register("mylab")
    try:
        assert "mylab.stats" in sent_modules(mylab=project)
    finally:
        origins.forget("mylab")


@pytest.mark.parametrize("name", ["no_such_package", "insitu", "math", "sys"])
def test_what_has_no_python_files_cannot_be_registered(name):
    with pytest.raises(UsageError, match=f"{name} cannot be registered"):
        origins.register(name)


def test_what_a_server_has_goes_by_name():
    given = {
        "softmax": F.softmax, "gelu": F.gelu, "argmax": torch.argmax, "method": torch.Tensor.argmax,
        "length": len, "kind": dict, "torch": torch, "F": F, "linear": torch.nn.Linear,
        "relu": torch.relu,
    }  # fmt: skip
    assert sent_modules(**given) == []
    assert trip(**given) == given


def test_partials_and_methods_are_made_again(script):
    names = script("def f(a, b):\n    return a - b\nclass A:\n    def m(self):\n        return 3\n")
    found = trip(p=functools.partial(names["f"], b=1), m="a b".split, joined=", ".join)
    assert found["p"](3) == 2
    assert found["m"]() == ["a", "b"]
    assert found["joined"]("ab") == "a, b"


def test_two_functions_share_their_globals_and_closures(script):
    names = script(
        "n = 0\ndef add():\n    global n\n    n += 1\ndef get():\n    return n\n"
        "def pair():\n    k = 0\n    def up():\n        nonlocal k\n        k += 1\n"
        "    return up, lambda: k\nup, down = pair()\n"
    )
    found = trip(**{name: names[name] for name in ("add", "get", "up", "down")})
    found["add"]()
    found["up"]()
    assert found["get"]() == found["down"]() == 1
    assert names["get"]() == names["down"]() == 0


def test_a_list_of_functions_may_be_used_by_one_of_them(script):
    names = script("tools = []\ndef f():\n    return tools\ntools.append(f)\n")
    found = trip(tools=names["tools"])["tools"]
    assert found[0]() is found


def test_a_function_reaches_the_model_through_its_globals(script):
    model = insitu.LanguageModel("demo")
    names = script("def unembed(h):\n    return model.lm_head, model.tokenizer, h\n")
    names["model"] = model
    found = trip(root=model, unembed=names["unembed"])["unembed"](1)
    assert found[0] is model.lm_head
    assert found[1] is model.tokenizer


def test_an_edited_file_is_not_taken_for_what_runs(script, tmp_path):
    f = script("def f():\n    return 1\n")["f"]
    (tmp_path / "script.py").write_text("def f():\n    return 1 + 2 * 3 - f\n\n\n")
    with pytest.raises(NotSendableError, match="its text, which was not found"):
        sent_modules(f=f)


def test_a_function_without_text_is_refused():
    names = {"__name__": "__main__"}
    exec("f = lambda: 1\ndef g(): pass", names)
    for name, next in (("f", "write a `def`"), ("g", "write it in a file or a cell")):
        with pytest.raises(NotSendableError) as error:
            sent_modules(**{name: names[name]})
        assert error.value.next.startswith(next)


REFUSED = {
    "import os\ndef f():\n    return os.getcwd()": "os.getcwd on script.py, line 3",
    "def f():\n    return open('x')": "open on script.py, line 2",
    "import insitu\n@insitu.trace\ndef g(): pass\ndef f():\n    return g()": (
        "g on script.py, line 5"
    ),
    "import insitu\n@insitu.trace\ndef f(): pass": "f on line 7",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_a_function_uses_is_checked_too(script, text):
    with pytest.raises(FunctionWhitelistError) as error:
        sent_modules_at(f=script(text)["f"])
    assert error.value.what.startswith(REFUSED[text])


def sent_modules_at(**values):
    encoder = Encoder(None, Code())
    for name, value in values.items():
        encoder.encode(name, value, "line 7")


def test_what_a_function_uses_is_refused_where_it_is_used(script):
    text = "import torch\nopt = torch.optim.SGD([torch.ones(1)])\ndef f():\n\n    opt.step()\n"
    with pytest.raises(NotSendableError) as error:
        sent_modules(f=script(text)["f"])
    assert error.value.what == "cannot send 'opt' (torch.optim.SGD) used at script.py, line 5."


def test_an_error_while_a_module_is_run_is_its_own(project, tmp_path):
    code = Code()
    encoder = Encoder(None, code)
    told = encoder.encode("mylab", project)
    sent = json.loads(json.dumps(code.header()))
    sent["modules"]["mylab.stats"]["text"] = "raise ValueError('mine')"
    with pytest.raises(ValueError, match=r"^mine$"):
        Decoder(encoder.table, {}, None, Loaded(sent)).decode(told)


HOSTILE = [
    ({"piece": 0}, {}),
    ({"piece": "x"}, {}),
    ({"source": "nothing"}, {}),
    ({"partial": [1]}, {}),
    ({"piece": 0}, {"pieces": [{}]}),
    ({"piece": 0}, {"pieces": [{"space": 9, "cells": {}, "text": "", "kind": "function"}]}),
]


@pytest.mark.parametrize(("told", "more"), HOSTILE, ids=str)
def test_code_that_no_client_writes_is_refused(told, more):
    header = {"modules": {}, "pieces": [], "spaces": [], "cells": [], **more}
    with pytest.raises((WireError, ImportError)):
        Decoder([], {}, None, Loaded(header)).decode(told)


def test_an_object_of_a_class_without_methods_comes_back_as_one(script):
    names = script("from dataclasses import dataclass\n@dataclass\nclass Score:\n    loss: float\n")
    kind = trip(Score=names["Score"])["Score"]
    assert (kind.__module__, kind.__qualname__) == ("__main__", "Score")
    told, tensors = encode_all({"one": kind(1.5)})
    one = decode_all(told, tensors)["one"]
    assert type(one) is names["Score"]
    assert one.loss == 1.5
