"""What a block may name on a server: refused before it is sent, with the line and the ways out."""

import functools
import math
import os
import pathlib
import subprocess
import sys
from os import system
from threading import Thread

import numpy as np
import pytest
import torch
from torch import load as ld
from torch.nn import functional as F

import insitu
from insitu import FunctionWhitelistError
from insitu.remote.allowed import check

NAMES = {
    "functools": functools,
    "math": math,
    "os": os,
    "pathlib": pathlib,
    "sys": sys,
    "np": np,
    "subprocess": subprocess,
    "system": system,
    "Thread": Thread,
    "torch": torch,
    "ld": ld,
    "F": F,
    "insitu": insitu,
    "x": 1,
    "h": torch.ones(2),
}


@insitu.trace
def marked(value):
    return value


def mine(value):
    return value


NAMES |= {"marked": marked, "mine": mine}

REFUSED = {
    'os.system("true")': "os.system",
    'system("true")': "os.system",
    'open("x")': "open",
    'exec("1")': "exec",
    'eval("1")': "eval",
    '__import__("os")': "__import__",
    "subprocess.run([])": "subprocess.run",
    'torch.load("x")': "torch.load",
    'ld("x")': "torch.load",
    'torch.hub.load("x")': "torch.hub",
    'torch.utils.cpp_extension.load("x")': "torch.utils.cpp_extension",
    'np.fromfile("x")': "numpy.fromfile",
    "np.ndarray.tofile": "numpy.ndarray.tofile",
    "import os": "import os",
    "import os.path as p": "import os.path",
    "from os import path": "import os",
    "from torch import load": "torch.load",
    "import socket, math": "import socket",
    'os.environ["a"] = "b"': "os.environ",
    'pathlib.Path("x")': "pathlib.Path",
    "Thread()": "threading.Thread",
    "f(os)": "os",
    "sys.exit()": "sys.exit",
    "def f():\n    return os.getcwd()": "os.getcwd",
    "[os.getpid() for _ in range(3)]": "os.getpid",
}
FINE = [
    "torch.softmax(h, -1)", "F.softmax(h)", "math.sqrt(2)", "np.mean(h)", "mine(2)", "import math",
    "from torch.nn import functional", "print(len([1]))", "h.load()", "functools.partial(mine, 2)",
    "open = 3\nopen + 1", "torch.nn.Linear(2, 3)", "insitu.save(h)", "torch.Tensor.argmax",
    "np.random.rand(2)", "torch.linalg.svd(h)", "sorted([1], key=lambda v: -v)", "np.add(1, 2)",
    "@torch.no_grad()\ndef f(): pass", "from __future__ import annotations", "insitu.list()",
    "raise ValueError('x')", "def f(os): return os.x", "unknown.system()", "torch.float16",
    "class A:\n    pass", "int('3')", "isinstance(h, torch.Tensor)", "h[:, 0] += 1",
]  # fmt: skip


@pytest.mark.parametrize("block", REFUSED)
def test_what_may_not_run_there_is_named(block):
    with pytest.raises(FunctionWhitelistError) as error:
        check(f"h = 1\n{block}", NAMES)
    line = 3 if block.startswith("def") else 2
    assert error.value.what == f"{REFUSED[block]} on line {line} may not run on a server."
    assert "insitu.local()" in error.value.next
    assert "insitu.register" in error.value.next


@pytest.mark.parametrize("block", FINE)
def test_what_is_harmless_passes(block):
    check(block, NAMES)


def test_a_marked_function_belongs_into_local_parts():
    with pytest.raises(FunctionWhitelistError) as error:
        check("marked(3)", NAMES, where="cell 9, line {}".format)
    assert error.value.what == "marked on cell 9, line 1 is for local() parts alone."
    assert "insitu.local()" in error.value.next


def test_nothing_is_evaluated_while_a_block_is_checked():
    class Trap:
        def __getattr__(self, name):
            raise AssertionError(name)

    check("trap.x.y(1)", {"trap": Trap()})
