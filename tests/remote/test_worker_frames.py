"""Messages from a hostile process: whatever the bytes, a frame or a FrameError."""

import contextlib
import json
import os
import socket
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insitu.remote.protocol import Ended, Fault, Limits, Local, Log, Progress, Token
from insitu.remote.worker import frames, messages
from insitu.remote.worker.frames import Frame, FrameError, Inbox
from insitu.remote.worker.printed import Printed

LIMITS = Limits(local_bytes=1000)
FROM_JOB = messages.from_job(LIMITS)


def raw(kind, head, body=b"", *, mark=b"In", head_bytes=None, body_bytes=None):
    number = frames.KINDS.index(kind) if isinstance(kind, str) else kind
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    sizes = (
        len(text) if head_bytes is None else head_bytes,
        len(body) if body_bytes is None else body_bytes,
    )
    return struct.pack("<2sBxII", mark, number, *sizes) + text + body


def test_frames_come_out_however_the_stream_is_cut():
    stream = b"".join(
        frames.packed("local", {"number": i, "index": 0}, i) + b"x" * i for i in range(20)
    )
    for size in (1, 7, 13, len(stream)):
        inbox = Inbox(FROM_JOB)
        got = [f for at in range(0, len(stream), size) for f in inbox.feed(stream[at : at + size])]
        assert got == [Frame("local", {"number": i, "index": 0}, b"x" * i) for i in range(20)]


@pytest.mark.parametrize(
    "data",
    [
        raw("log", {}, mark=b"XX"),
        raw(200, {}),
        raw("answer", {"number": 0}),
        raw("log", {}, head_bytes=2**31),
        raw("log", {}, body_bytes=1),
        raw("local", {"number": 0, "index": 0}, body_bytes=1001),
        raw("log", b"\xff\xfe"),
        raw("log", b"[1]"),
        raw("log", b"[" * 60_000),
        raw("log", b'{"a":' * 1000 + b"1" + b"}" * 1000),
        raw("log", b"1" * 60_000),
        raw("log", b""),
    ],
)
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(FrameError):
        Inbox(FROM_JOB).feed(data)


SLOW_HEADS = {
    "empty lists": b'{"a":[' + b"[]," * 87_000 + b"1]}",
    "texts": b'{"a":[' + b"[]," * 9 + b'"",' * 87_000 + b"1]}",
    "numbers": b'{"a":[' + b"[]," * 9 + b"1," * 130_000 + b"1]}",
    "long numbers": b'{"a":[' + (b"9" * 4_000 + b",") * 63 + b"1]}",
    "brackets in a text": b'{"a":"' + b"[" * 260_000 + b'"}',
    "escapes": b'{"a":"' + b'\\"' * 60_000 + b'"}',
    "deep behind a text": b'{"a":"' + b"x" * 250_000 + b'","b":' + b"[" * 9 + b"]" * 9 + b"}",
}


@pytest.mark.parametrize("head", SLOW_HEADS.values(), ids=SLOW_HEADS)
def test_no_head_holds_the_server_up_for_long(head):
    """Each is read in the server's event loop; 100,000 are allowed to a job."""
    took = []
    for _ in range(5):
        began = time.thread_time()
        with contextlib.suppress(FrameError):
            Inbox(FROM_JOB).feed(raw("log", head))
        took.append(time.thread_time() - began)
    assert min(took) < 0.004  # 18 ms, as json alone reads the first


def test_brackets_and_quotes_in_a_text_are_text():
    text = '[{""]}' * 500
    (frame,) = Inbox(FROM_JOB).feed(frames.packed("log", {"text": text, "tags": ["\\", '"']}))
    assert messages.told(frame, LIMITS) == Log(text[:4_000], ("\\", '"'))


def test_all_heads_of_a_job_together_are_bounded(monkeypatch):
    monkeypatch.setattr(frames, "HEADS_MOST", 100_000)
    inbox, taken = Inbox(FROM_JOB), 0
    with pytest.raises(FrameError, match="more than 100,000 bytes in all"):
        while taken < 200:
            inbox.feed(frames.packed("log", {"text": "x" * 1_000, "tags": []}))
            taken += 1
    assert 80 < taken < 100


def test_lengths_are_refused_before_their_bytes_come():
    with pytest.raises(FrameError, match="4,294,967,295 bytes"):
        Inbox(FROM_JOB).feed(raw("local", b"", head_bytes=0, body_bytes=2**32 - 1))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 255), st.booleans())
def test_any_bytes_are_frames_or_refused(data, kind, framed):
    stream = raw(kind, data) if framed else data
    try:
        for frame in Inbox(FROM_JOB).feed(stream):
            messages.told(frame, LIMITS)
    except FrameError:
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda it: st.lists(it, max_size=3) | st.dictionaries(st.text(max_size=5), it, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(messages._FIELDS)), st.data())
def test_fields_of_any_kind_are_told_or_refused(kind, data):
    head = {name: data.draw(JSON) for name in messages._FIELDS[kind]}
    try:
        said = messages.told(Frame(kind, head), LIMITS)
    except FrameError:
        return
    assert isinstance(said, (Log, Progress, Token, Local, Ended))


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("log", {"text": "x" * 5000, "tags": []}),
        ("log", {"text": "x", "tags": ["t"] * 17}),
        ("log", {"text": "x", "tags": [], "more": 1}),
        ("progress", {"text": "", "done": float("nan"), "of": None, "unit": ""}),
        ("progress", {"text": "", "done": 10**400, "of": None, "unit": ""}),
        ("progress", {"text": "", "done": True, "of": None, "unit": ""}),
        ("token", {"step": 0, "ids": [2**70]}),
        ("token", {"step": 0, "ids": [0] * 5000}),
        ("local", {"number": "0", "index": 0}),
        ("ended", {"phase": "CANCELLED", "fault": None}),
        ("ended", {"phase": "ERROR", "fault": None}),
        ("ended", {"phase": "ERROR", "fault": {"kind": "E", "text": "x" * 10_000, "place": []}}),
    ],
)
def test_fields_out_of_bounds_are_refused(kind, head):
    with pytest.raises(FrameError):
        messages.told(Frame(kind, head), LIMITS)


def test_text_that_cannot_be_stored_is_made_storable():
    (frame,) = Inbox(FROM_JOB).feed(frames.packed("log", {"text": "a\ud800b", "tags": []}))
    said = messages.told(frame, LIMITS)
    assert said.text.encode().decode() == said.text
    assert said.text.startswith("a")


def test_a_fault_of_any_size_is_shortened_to_what_is_accepted():
    place = tuple(("f" * 1000, i, "g" * 1000) for i in range(200))
    fault = Fault("K" * 1000, "😀" * 100_000, place)
    (frame,) = Inbox(FROM_JOB).feed(
        frames.packed("ended", messages.ended_head(Ended("ERROR", fault)))
    )
    said = messages.told(frame, LIMITS).fault
    assert said.text.endswith("(92,000 characters more)")
    assert said.place[-1][1] == 199


def test_files_cross_a_control_socket(tmp_path):
    one, other = frames.control_pair()
    with one, other, (tmp_path / "a").open("w") as a:
        frames.send_control(one, {"ask": "submit"}, (a.fileno(),))
        message, (fd,) = frames.receive_control(other, 3)
        assert message == {"ask": "submit"}
        os.write(fd, b"by the other")
        os.close(fd)
        one.close()
        assert frames.receive_control(other, 3) is None
    assert (tmp_path / "a").read_text() == "by the other"


def test_a_reader_waits_for_a_whole_frame():
    one, other = socket.socketpair()
    with one, other:
        frames.send(one.fileno(), "answer", {"number": 3}, b"x" * 1000)
        got = frames.receive(other.fileno(), messages.to_job(LIMITS))
        assert got == Frame("answer", {"number": 3}, b"x" * 1000)
        one.close()
        assert frames.receive(other.fileno(), messages.to_job(LIMITS)) is None


def test_prints_become_lines():
    lines = []
    out = Printed(lines.append, line_chars=100)
    print("a", 1, file=out)
    print("b\nc", end="", file=out)
    print("d\r50%\r", end="", file=out)
    print("end", end="", file=out)
    out.close()
    assert lines == ["a 1", "b", "cd", "50%", "end"]


def test_a_line_without_end_is_cut_and_its_length_told():
    lines = []
    out = Printed(lines.append, line_chars=100)
    for _ in range(1000):
        out.write("x" * 10)
    out.write("\nnext\n")
    assert lines == ["x" * 60 + " … (9,940 characters more)", "next"]
    assert len(out._begun) <= 101
    out.close()
