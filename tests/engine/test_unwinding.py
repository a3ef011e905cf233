"""The call that stack unwinders cannot see through, on processors and systems other than this."""

import ctypes
import struct
import sys
import types

import pytest

from insitu.engine import unwinding

TARGET = 0x1122334455667788


@pytest.fixture
def machine(monkeypatch):
    """Stands for another processor, or system; what is made there is not kept."""
    monkeypatch.setattr(unwinding, "_keep", [])

    def be(name, platform="linux"):
        monkeypatch.setattr(unwinding.platform, "machine", lambda: name)
        monkeypatch.setattr(sys, "platform", platform)

    return be


@pytest.fixture
def library(monkeypatch):
    """A C library that notes what it is asked, and may refuse to make pages executable."""
    asked = []

    class Function:
        def __init__(self, name, gives):
            self.name, self.gives = name, gives

        def __call__(self, *given):
            asked.append((self.name, *given))
            return self.gives

    made = types.SimpleNamespace(mprotect=Function("mprotect", 0), asked=asked)
    setattr(made, "__clear_cache", Function("__clear_cache", None))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: made)
    return made


def test_on_64_bit_arm_the_code_loads_the_target_that_stands_behind_it(machine):
    machine("aarch64")
    code = unwinding._stub_code(TARGET)
    assert len(code) == 32
    assert struct.unpack("<Q", code[24:]) == (TARGET,)
    load, call = struct.unpack("<2I", code[4:12])
    assert load >> 24 == 0x58  # ldr (literal): a number of words from here
    assert 4 + 4 * (load >> 5 & 0x7FFFF) == 24
    assert load & 31 == call >> 5 & 31  # into the register that is then called
    machine("arm64")
    assert unwinding._stub_code(TARGET) == code


def test_on_64_bit_arm_what_was_written_is_made_visible_to_the_processor(machine, library):
    machine("aarch64")
    made = unwinding._make()
    (protected, address, size, rights), cleared = library.asked
    assert (protected, rights) == ("mprotect", 5)  # to be read and executed, no longer written
    assert size % 4096 == 0
    assert cleared == ("__clear_cache", address, address + 32)
    assert callable(made)
    assert len(unwinding._keep) == 1


@pytest.mark.parametrize(("name", "platform"), [("riscv64", "linux"), ("x86_64", "darwin")])
def test_elsewhere_the_body_is_called_as_it_is(machine, library, name, platform):
    machine(name, platform)
    called = []
    unwinding._make()(lambda: called.append(1))()
    assert called == [1]
    assert library.asked == []
    assert unwinding._keep == []


def test_a_system_that_allows_no_such_page_says_so(machine, library):
    machine("x86_64")
    library.mprotect.gives = -1
    with pytest.raises(OSError, match="the call stub's page could not be made executable"):
        unwinding._make()
