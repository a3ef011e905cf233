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
from insitu.remote.wire import pieces
from insitu.remote.wire.container import pack, unpack, write
from insitu.remote.wire.header import MAGIC, read_header

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


def zstd(data, level=3):
    """A piece that is compressed."""
    return piece(1, zstandard.ZstdCompressor(level=level).compress(data))


def piece(kind, data, length=None):
    return struct.pack("<BQ", kind, len(data) if length is None else length) + data


def inner_of(data):
    """What the pieces of a container hold."""
    at, found = len(MAGIC) + 1, b""
    while at < len(data):
        kind, length = struct.unpack("<BQ", data[at : at + 9])
        held = data[at + 9 : at + 9 + length]
        found += (held, zstandard.ZstdDecompressor().decompress(held) if kind == 1 else b"", b"")[
            kind
        ]
        at += 9 + length
    return found


def made(header, listed, body=b"", *, level=3):
    """A container put together by hand."""
    listed = listed if isinstance(listed, bytes) else json.dumps(listed).encode()
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    inner = struct.pack("<Q", len(header)) + header + struct.pack("<Q", len(listed)) + listed + body
    return MAGIC + b"\1" + zstd(inner, level)


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
    n = pieces.SMALL_BYTES * 3 + 5
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


def test_the_inside_is_plain_pieces_and_plain_zstd_with_plain_safetensors():
    tensor = torch.randn(300, 300)
    data = pack({"é": [1]}, {"t": tensor, "c": torch.ones(2, dtype=torch.complex64)})
    assert bytes(tensor.numpy().data) in data  # random numbers stand as they are
    inner = inner_of(data)
    (length,) = struct.unpack("<Q", inner[:8])
    assert json.loads(inner[8 : 8 + length]) == {"é": [1]}
    plain = load(inner[8 + length :])
    assert torch.equal(plain["t"], tensor)
    assert plain["c"].shape == (2, 8)


@pytest.mark.parametrize("length", range(17))
def test_large_tensors_stay_where_they_are_in_memory_that_is_given_away(length):
    """And nowhere else: not in bytes, not in a file, and not where a dtype would lie askew."""
    tensors = {"a": torch.randn(70_000, dtype=torch.float64), "b": torch.randn(300_001)}
    data = bytearray(pack({"text": "x" * length}, {**tensors, "odd": torch.rand(3).half()}))
    begin = torch.frombuffer(data, dtype=torch.uint8).data_ptr()
    for source in (data, bytes(data), io.BytesIO(data)):
        found = unpack(source, most=MOST)[1]
        for name, tensor in tensors.items():
            assert torch.equal(found[name], tensor)
            is_inside = begin <= found[name].data_ptr() < begin + len(data)
            assert is_inside == (source is data)
            assert found[name].data_ptr() % 16 == 0
            found[name].zero_()  # and can be written to
            if source is data:
                found[name].copy_(tensor)


def test_a_tensor_askew_in_memory_is_copied():
    tensor = torch.randn(100_000)
    listed = {"t": {"dtype": "F32", "shape": [100_000], "data_offsets": [0, 400_000]}}
    whole = made({}, listed)  # 7 bytes, a piece, and 9: what follows is nowhere in particular
    for count in range(4):
        data = bytearray(whole + piece(2, bytes(count)) + piece(0, bytes(tensor.numpy().data)))
        found = unpack(data, most=MOST)[1]["t"]
        assert torch.equal(found, tensor)
        assert found.data_ptr() % 16 == 0


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
    "no zstd": MAGIC + b"\1" + piece(1, bytes(100)),
    "a piece of another kind": MAGIC + b"\1" + piece(3, bytes(100)),
    "much of nothing": MAGIC + b"\1" + piece(2, bytes(5_000)),
    "less than nothing": made({}, GOOD, bytes(8)) + piece(2, b"", 9),
    "a piece longer than all": MAGIC + b"\1" + piece(0, bytes(100), 2**63),
    "a compressed piece longer than all": MAGIC + b"\1" + piece(1, zstandard.compress(b"x"), 2**63),
    "half a prefix": made({}, GOOD, bytes(8)) + b"\0\1",
    "half a piece behind the end": made({}, GOOD, bytes(8)) + piece(0, b"", 5),
    "half a compressed piece behind the end": made({}, GOOD, bytes(8))
    + piece(1, zstandard.compress(b""), 500),
    "very many pieces": MAGIC + b"\1" + piece(0, b"") * 150_000,
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
    "a length without end": MAGIC + b"\1" + zstd(b"\xff" * 8 + b"x" * 100),
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
    all = [*(packer.compress(zeros) for _ in range(size // 2**20)), packer.flush()]
    return piece(1, b"".join(all))


@pytest.mark.parametrize("claim", [2**30 - 8, 2**20])
def test_a_bomb_is_refused_with_little_memory(claim):
    inner = bomb(2**30)
    head = zstd(struct.pack("<Q", 2) + b"{}" + struct.pack("<Q", claim))
    data = MAGIC + b"\1" + head + inner
    assert len(data) < 2**17
    tracemalloc.start()
    with pytest.raises(WireError):
        unpack(data, most=2**24, header_most=2**22)
    with pytest.raises(WireError):
        unpack(io.BytesIO(data), most=2**24, header_most=2**22)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_plain_piece_takes_memory_only_as_it_comes():
    listed = {"t": {"dtype": "U8", "shape": [2**20], "data_offsets": [0, 2**20]}}
    text = json.dumps(listed).encode()
    head = struct.pack("<Q", 2**25) + b"{}"
    for data in (piece(0, head, 2**40), piece(0, struct.pack("<Q", 2) + b"{}" + text, 2**40)):
        tracemalloc.start()
        for source in (bytearray(MAGIC + b"\1" + data), io.BytesIO(MAGIC + b"\1" + data)):
            with pytest.raises(WireError):
                unpack(source, most=2**30, header_most=2**26)
        assert tracemalloc.get_traced_memory()[1] < 2**21
        tracemalloc.stop()


@pytest.mark.parametrize("cut", [1, 3, 100, 4096])
def test_pieces_may_be_cut_anywhere(cut):
    inner = inner_of(pack({"n": 1}, {"t": torch.arange(2000)}))
    parts = [inner[at : at + cut] for at in range(0, len(inner), cut)]
    data = (
        MAGIC
        + b"\1"
        + b"".join(piece(0, part) if n % 2 else zstd(part) for n, part in enumerate(parts))
    )
    for source in (data, bytearray(data), io.BytesIO(data)):
        header, found = unpack(source, most=MOST)
        assert header == {"n": 1}
        assert torch.equal(found["t"], torch.arange(2000))


def test_a_bomb_of_tensors_ends_where_its_list_says():
    listed = {"t": {"dtype": "U8", "shape": [2**20], "data_offsets": [0, 2**20]}}
    text = json.dumps(listed).encode()
    head = struct.pack("<Q", 2) + b"{}" + struct.pack("<Q", len(text)) + text
    with pytest.raises(WireError, match="goes on behind its end"):
        unpack(MAGIC + b"\1" + zstd(head) + bomb(2**30), most=2**24)


def test_a_window_that_takes_much_memory_is_refused():
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27, write_content_size=0)
    ).compressobj()
    data = MAGIC + b"\1" + piece(1, packer.compress(bytes(2**20)) + packer.flush())
    with pytest.raises(WireError, match="zstd"):
        unpack(data, most=2**24)
