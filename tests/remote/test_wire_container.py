"""The container: what goes in comes out, and nothing hostile takes memory."""

import functools
import io
import json
import pickle
import struct
import tracemalloc

import pytest
import torch
import zstandard
from safetensors.torch import load

from insitu import WireError
from insitu.remote.wire import frames
from insitu.remote.wire.container import MAGIC, pack, read_header, unpack, write

MOST = 2**26
EVERY = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32,
    torch.int64, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_pickle(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle was used")

    for name in ("loads", "load", "dumps", "dump", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor.shape


def equal(one, other):
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and bytes(bits(one).tolist()) == bytes(bits(other).tolist())
        if one.numel()
        else one.shape == other.shape
    )


def made(header, listed, body=b"", *, level=3):
    """A container put together by hand."""
    listed = listed if isinstance(listed, bytes) else json.dumps(listed).encode()
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    inner = struct.pack("<Q", len(header)) + header + struct.pack("<Q", len(listed)) + listed + body
    return MAGIC + b"\1" + zstandard.ZstdCompressor(level=level).compress(inner)


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_a_tensor_of_every_dtype_comes_back_bit_for_bit(dtype):
    raw = torch.arange(48, dtype=torch.uint8).mul(5)
    whole = raw % 2 == 0 if dtype is torch.bool else raw.view(dtype)
    given = {"flat": whole, "empty": whole[:0].reshape(0, 3), "one": whole[0], "even": whole[::2]}
    header, found = unpack(pack({"n": 1}, given), most=MOST)
    assert header == {"n": 1}
    for name, tensor in given.items():
        assert equal(found[name], tensor), name


def test_nan_and_infinity_keep_their_bits():
    given = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    found = unpack(pack({}, {"t": given}), most=MOST)[1]["t"]
    assert equal(found, given)


@pytest.mark.parametrize("fill", ["random", "zeros", "tokens"])
def test_large_tensors_come_back_whether_they_shrink_or_not(fill):
    n = frames.SMALL_BYTES * 3 + 5
    tensor = {
        "random": lambda: torch.randint(0, 255, (n,), dtype=torch.uint8),
        "zeros": lambda: torch.zeros(n),
        "tokens": lambda: torch.randint(0, 50_000, (n,)),
    }[fill]()
    data = pack({}, {"small": torch.ones(3), "t": tensor, "last": torch.ones(2)})
    assert (len(data) < tensor.nbytes / 2) == (fill != "random")
    found = unpack(data, most=2 * tensor.nbytes)[1]
    assert torch.equal(found["t"], tensor)
    assert torch.equal(found["last"], torch.ones(2))


def test_the_inside_is_plain_zstd_with_plain_safetensors():
    tensor = torch.randn(300, 300)
    data = pack({"é": [1]}, {"t": tensor, "c": torch.ones(2, dtype=torch.complex64)})
    reader = zstandard.ZstdDecompressor().stream_reader(data[7:], read_across_frames=True)
    inner = reader.read()
    (length,) = struct.unpack("<Q", inner[:8])
    assert json.loads(inner[8 : 8 + length]) == {"é": [1]}
    plain = load(inner[8 + length :])
    assert torch.equal(plain["t"], tensor)
    assert plain["c"].shape == (2, 8)


def test_writing_to_a_file_gives_the_same_bytes():
    tensors = {"a": torch.randn(400, 400), "b": torch.ones(2)}
    file = io.BytesIO()
    write(file, {"x": 1}, tensors, most=MOST)
    assert file.getvalue() == pack({"x": 1}, tensors)
    file.seek(0)
    assert torch.equal(unpack(file, most=MOST)[1]["a"], tensors["a"])


def test_writing_more_than_may_be_sent_writes_nothing():
    file = io.BytesIO()
    with pytest.raises(WireError, match="4,000") as error:
        write(file, {}, {"a": torch.ones(2000)}, most=4000)
    assert "slice" in error.value.next
    assert file.getvalue() == b""


def test_the_header_is_read_without_what_follows():
    data = pack({"model": "demo"}, {"t": torch.randn(1000)})
    assert read_header(data, header_most=100) == {"model": "demo"}
    with pytest.raises(WireError):
        read_header(data, header_most=10)


def test_half_a_surrogate_pair_survives():
    assert unpack(pack({"x": "\ud800é"}), most=MOST)[0] == {"x": "\ud800é"}


GOOD = {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
HOSTILE = {
    "nothing": b"",
    "a wrong magic": b"INSIDE\1" + bytes(100),
    "magic alone": MAGIC,
    "another version": MAGIC + b"\7" + bytes(20),
    "a pickle": b"\x80\x04.",
    "no zstd": MAGIC + b"\1" + bytes(100),
    "zstd cut short": pack({}, {"t": torch.randn(500)})[:-200],
    "more behind the end": made({}, GOOD, bytes(12)),
    "bytes behind the frame": made({}, GOOD, bytes(8)) + b"x" * 50,
    "a header that is no JSON": made(b"{", {}),
    "a header that is no object": made([], {}),
    "a header with NaN": made(b'{"a": NaN}', {}),
    "a header of other bytes": made(b"\xff\xfe{}", {}),
    "a header nested deep": made(b"[" * 100_000, {}),
    "a header of many values": made(b"[" + b"0," * 1_000_001 + b"0]", {}),
    "a header with a number without end": made(b'{"a": ' + b"1" * 100_000 + b"}", {}),
    "a long header": made({"a": "x" * 5_000_000}, {}),
    "an endless text": made(b'{"a": "' + b'\\"' * 100_000, {}),
    "a list of tensors that is none": made({}, [1]),
    "metadata that is none": made({}, {"__metadata__": 3}),
    "tensors that overlap": made({}, {**GOOD, "u": GOOD["t"]}, bytes(8)),
    "a gap": made({}, {"t": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
    "an offset below zero": made({}, {"t": {**GOOD["t"], "data_offsets": [-8, 0]}}),
    "an unknown dtype": made({}, {"t": {**GOOD["t"], "dtype": "F99"}}, bytes(8)),
    "a wrong size": made({}, {"t": {**GOOD["t"], "shape": [3]}}, bytes(8)),
    "an axis below zero": made({}, {"t": {**GOOD["t"], "shape": [-1, -2]}}, bytes(8)),
    "an axis of text": made({}, {"t": {**GOOD["t"], "shape": ["2"]}}, bytes(8)),
    "a huge axis": made({}, {"t": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}),
    "many axes": made({}, {"t": {"dtype": "U8", "shape": [1] * 100, "data_offsets": [0, 1]}}, b"x"),
    "a tensor that is not there": made({}, {"t": {**GOOD["t"], "shape": [10**6],
                                            "data_offsets": [0, 4 * 10**6]}}),
    "a tensor larger than allowed": made({}, {"t": {**GOOD["t"], "shape": [2**40],
                                              "data_offsets": [0, 2**42]}}),
    "an own dtype that is none": made({}, {"__metadata__": {"t": "code"}, **GOOD}, bytes(8)),
    "a length without end": MAGIC + b"\1" + zstandard.compress(b"\xff" * 8 + b"x" * 100),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_container_is_refused_with_a_sentence(name):
    with pytest.raises(WireError) as error:
        unpack(HOSTILE[name], most=MOST, header_most=2**22)
    assert error.value.what == "what came over the wire cannot be read."
    assert error.value.why.endswith(".")
    assert "Traceback" not in str(error.value)


@functools.lru_cache
def bomb(size):
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    zeros = bytes(2**20)
    return b"".join([*(packer.compress(zeros) for _ in range(size // 2**20)), packer.flush()])


@pytest.mark.parametrize("claim", [2**30 - 8, 2**20])
def test_a_bomb_is_refused_with_little_memory(claim):
    inner = bomb(2**30)
    head = zstandard.compress(struct.pack("<Q", 2) + b"{}" + struct.pack("<Q", claim))
    data = MAGIC + b"\1" + head + inner
    assert len(data) < 2**17
    tracemalloc.start()
    with pytest.raises(WireError):
        unpack(data, most=2**24, header_most=2**22)
    with pytest.raises(WireError):
        unpack(io.BytesIO(data), most=2**24, header_most=2**22)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_bomb_of_tensors_ends_where_its_list_says():
    listed = {"t": {"dtype": "U8", "shape": [2**20], "data_offsets": [0, 2**20]}}
    text = json.dumps(listed).encode()
    head = struct.pack("<Q", 2) + b"{}" + struct.pack("<Q", len(text)) + text
    with pytest.raises(WireError, match="goes on behind its end"):
        unpack(MAGIC + b"\1" + zstandard.compress(head) + bomb(2**30), most=2**24)


def test_a_window_that_takes_much_memory_is_refused():
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27, write_content_size=0)
    ).compressobj()
    data = MAGIC + b"\1" + packer.compress(bytes(2**20)) + packer.flush()
    with pytest.raises(WireError, match="zstd"):
        unpack(data, most=2**24)
