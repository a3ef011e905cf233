"""Ten thousand damaged containers: each is a value or a sentence, in bounded memory."""

import pickle
import random
import tracemalloc

import pytest
import torch
import zstandard

from insitu import WireError
from insitu.remote.wire.container import pack, unpack
from insitu.remote.wire.header import MAGIC, read_header
from insitu.remote.wire.pieces import NOTHING, PACKED, PLAIN, PREFIX
from insitu.remote.wire.values import decode_all, encode_all

MOST, HEADER_MOST = 2**22, 2**18
TEXTS = [
    b"9" * 30, b"-1", b"null", b"[]", b"{}", b'""', b"1e999", b"true", b'{"at":0}', b'{"at":1}',
    b'"list"', b'"dict"', b'"tensor"', b'"F64"', b'"os:system"', b"[[[[[[", b"NaN", b'"\\ud800"',
    b'{"int":"0xffffffffffffffffffff"}', b'{"bytes":"!"}', b"0.5", b"18446744073709551615",
]  # fmt: skip


def inner(data):
    """What the one piece of a small container holds."""
    kind, length = PREFIX.unpack(data[7:16])
    assert (kind, length) == (PACKED, len(data) - 16)
    return zstandard.ZstdDecompressor().decompress(data[16:])


def samples():
    tensor = torch.randn(4, 5)
    for values in (
        {"h": tensor, "again": [tensor, tensor.bfloat16(), tensor.to(torch.complex64)]},
        {"n": 3, "text": "é" * 9, "big": 2**90, "f": float("inf"), "s": slice(1, None), "e": ...},
        {"deep": [[[[{"a": (1, {2, 3}, frozenset("ab"), range(3))}]]]], "b": b"bytes"},
        {"max": tensor.max(0), "size": tensor.shape, "dtype": torch.bool, "p": torch.device("cpu")},
    ):
        yield pack(*encode_all(values))


def damaged(data, chance):
    """A container with something wrong: in its bytes, or in what its pieces hold."""
    if chance.random() < 0.3:
        return mutated(data, chance)
    held = mutated(inner(data), chance)
    cut = chance.randrange(len(held) + 1)
    packed = zstandard.compress(held[:cut], 1)
    rest = PREFIX.pack(PLAIN, len(held) - cut) + held[cut:]
    nothing = PREFIX.pack(NOTHING, 3) + b"xyz"
    return MAGIC + b"\1" + PREFIX.pack(PACKED, len(packed)) + packed + nothing + rest


def mutated(data, chance):
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at : at + chance.randrange(20)] = b""
        elif kind == 2:
            data[at:at] = chance.randbytes(chance.randrange(20))
        elif kind == 3:
            data[at : at + chance.choice((0, 1, 8))] = chance.choice(TEXTS)
        elif kind == 4:
            data[at:at] = data[at : at + chance.randrange(200)]
        else:
            data[: 8 if chance.random() < 0.5 else 1] = chance.randbytes(chance.choice((1, 8)))
    return bytes(data)


def outcome(data):
    """What comes of reading; anything but a value or a WireError is raised."""
    try:
        read_header(data, header_most=HEADER_MOST)
        decode_all(*unpack(data, most=MOST, header_most=HEADER_MOST))
    except WireError as error:
        return "a sentence" if error.why.endswith(".") and len(str(error)) < 1000 else str(error)
    return "a value"


def run(count, seed, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle was used")

    for name in ("loads", "load", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    chance, found = random.Random(seed), {"a sentence": 0, "a value": 0}
    bases = list(samples())
    assert [outcome(base) for base in bases] == ["a value"] * len(bases)
    tracemalloc.start()
    for _ in range(count):
        found[outcome(damaged(chance.choice(bases), chance))] += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MOST
    assert found["a sentence"] > count / 2
    assert found["a value"] > 0


def test_three_hundred_damaged_containers_give_a_value_or_a_sentence(monkeypatch):
    run(300, 6, monkeypatch)


@pytest.mark.slow
def test_ten_thousand_damaged_containers_give_a_value_or_a_sentence(monkeypatch):
    run(10_000, 2026, monkeypatch)
