"""What a job may send to the process of its model, and what ends the conversation."""

import copy
import fcntl
import json
import os
import random
import select

import pytest
import torch
from apart_runs import started

from insitu import LanguageModel
from insitu.remote.worker.apart.channel import Channel, ChannelError
from insitu.remote.worker.apart.shared import Segment, SegmentError

SHRINK = 0x2


class Job:
    """A job that says what it likes."""

    def __init__(self, model):
        self.there, self.fd, self.up, down = started(model)
        self.channel = Channel(self.fd, Segment(self.up), Segment(down))

    def say(self, *message):
        """Send it, and give the answer; None when it hung up."""
        return self.raw(json.dumps(message).encode())

    def raw(self, data):
        try:
            os.write(self.fd, data)
        except BrokenPipeError:
            return None
        return self.channel.receive()

    def call(self, number=0, rows=2, tail=()):
        """Call a module with 4 columns of tokens."""
        self.channel.begin()
        at = self.channel.mine.put(torch.ones(rows, 4, dtype=torch.int64))
        ids = ["n", "int64", [rows, 4], at, None]
        return self.say("call", list(tail), number, ["("], ["{", ["input_ids", ids]], True, False)

    def end(self):
        self.channel.close()
        self.there.wait()
        return self.there.refusal, self.there.pristine


@pytest.fixture
def job(tiny_gpt2):
    model, tokenizer = tiny_gpt2
    return Job(LanguageModel(copy.deepcopy(model), tokenizer=tokenizer))


nothing = ["{"]
DEEP = "[" * 3000 + "]" * 3000


def called(number, args=("(",), kwargs=("{",)):
    return ["call", [], number, args, kwargs, True, False]


def given(told):
    """A call with one argument."""
    return called(0, ["(", told])


WRONG = {
    "no JSON": (b"{", "bytes that are no message"),
    "no list": (b"{}", "a message without a kind"),
    "an empty list": (b"[]", "a message without a kind"),
    "a kind that is none": (b'[["call"], []]', "a message without a kind"),
    "only a kind": (b'["call"]', "a message without its second part"),
    "an unknown kind": (["exec", [], "import os"], "'exec' out of its turn"),
    "an answer without a question": (["go", []], "'go' out of its turn"),
    "a return without a question": (["return", [], None], "'return' out of its turn"),
    "too few parts": (["call", [], 0], "'call' with 1 parts"),
    "a module that is none": (called(10**6), "a module that the model"),
    "a module below none": (called(-1), "a module that the model"),
    "a module by its name": (called("lm_head"), "a module that the"),
    "a number that is true": (called(True), "a module that the model"),
    "arguments that are a list": (called(0, ["["]), "arguments that are none"),
    "names that are numbers": (called(0, ["("], ["{", [1, 2]]), "arguments that are"),
    "a number for nothing": (given(["t", 99]), "stands for nothing"),
    "a number that is text": (given(["t", "1"]), "stands for noth"),
    "an unknown tag": (given(["pickle", "x"]), "is not known"),
    "an unknown leaf": (given({"code": "x"}), "a value that is none"),
    "a dtype that is none": (
        given(["n", "object", [1], 0, -9]), "a value that is none"),
    "a negative shape": (given(["n", "uint8", [-1], 0, -9]), "a shape"),
    "a shape of halves": (given(["n", "uint8", [1.5], 0, -9]), "a shape"),
    "an enormous shape": (
        given(["n", "float32", [2**30, 2**30], 0, -9]), "does not lie"),
    "many axes": (
        given(["n", "uint8", [1] * 99, 0, -9]), "does not lie"),
    "a place behind the end": (
        given(["n", "uint8", [64], 256 * 2**20, -9]), "does not lie"),
    "a place before the beginning": (
        given(["n", "uint8", [64], -64, -9]), "does not lie"),
    "a place between two": (given(["n", "float32", [4], 3, -9]), "lie"),
    "a place that is none": (given(["n", "uint8", [4], None, -9]), "lie"),
    "a class of another kind": (
        given(["m", "subprocess:Popen", ["args", 1]]), "a class"),
    "a class of the model's": (
        given(["m", "transformers:GPT2Model"]), "of a class that"),
    "a text far away": (b"@999999999,10", "bytes that do not lie"),
    "an enormous text": (b"@0,999999999", "a message of 999,999,999 bytes"),
    "a text at no place": (b"@x", "bytes that are no message"),
    "deep nesting": (DEEP.encode(), "bytes that are no message"),
    "an edit of nothing": (["fetch", [[[5, 0]], [], None, []], []], "stands for nothing"),
    "an edit that is none": (["fetch", [[5], [], None, []], []], "a part of a message"),
    "forgetting nothing": (["fetch", [[], [7], None, []], []], "stands for nothing"),
    "listening to text": (["fetch", [[], [], [["a"], [], []], []], []], "a list of modules"),
    "listening to one list": (["fetch", [[], [], [[1]], []], []], "lists of modules"),
    "a second part of three": (["fetch", [[], [], None], []], "without its second part"),
    "fetching nothing": (["fetch", [], [1]], "stands for nothing"),
    "fetching no list": (["fetch", [], 5], "no list of numbers"),
    "a weight of nothing": (["fetch", [[], [], None, [[0, "evil", 1]]], []], "a weight that is"),
    "a weight of another shape": (
        ["fetch", [[], [], None, [[2, "weight", ["n", "uint8", [1], 0, -9]]]], []], "another sh"),
    "a gradient of nothing": (["pull", [], 3, ["n", "uint8", [1], 0, -9], []], "stands for noth"),
    "asking nothing": (["ask", [], 3, "update", ["("], nothing], "stands for nothing"),
    "asking a cache of its own for more": (
        ["ask", [], -1, "__reduce__", ["("], nothing], "stands for nothing"),
    "a cache whose number is not its": (
        given(["c", 1, {"cache": "DynamicCache", "layers": []}]),
        "not its to give"),
    "a cache of another class": (
        given(["c", -1, {"cache": "OffloadedCache", "layers": []}]),
        "a value that is none"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_a_job_may_not_send_ends_it_with_a_reason(job, name):
    message, reason = WRONG[name]
    assert (job.raw(message) if isinstance(message, bytes) else job.say(*message)) is None
    refusal, pristine = job.end()
    assert reason in refusal
    assert pristine


def test_a_right_call_is_answered(job):
    kind, told = job.call()
    assert (kind, told[0]) == ("result", "m")
    assert job.end() == ("", True)


def test_a_forward_that_fails_is_told_and_the_next_call_is_answered(job):
    kind, name, text = job.say("call", [], 0, ["("], ["{"], True, False)
    assert (kind, name) == ("failed", "ValueError")
    assert "input_ids" in text
    assert job.call()[0] == "result"
    assert job.end() == ("", True)


def test_an_answer_of_the_wrong_kind_amid_a_pass_ends_it(job):
    kind, number, *_ = job.call(tail=([], [], [[1], [], []], []))
    assert (kind, number) == ("enter", 1)
    assert job.say("result", [], 1) is None
    refusal, pristine = job.end()
    assert refusal == "'result' out of its turn"
    assert pristine


def test_calls_within_calls_are_bounded(job):
    answer = job.call(tail=([], [], [[1], [], []], []))
    for _ in range(80):
        if answer is None:
            break
        assert answer[0] == "enter"
        answer = job.call()
    refusal, pristine = job.end()
    assert refusal == "more than 64 calls within calls"
    assert pristine


def test_a_job_that_is_gone_amid_a_pass_leaves_the_model_as_it_was(job):
    assert job.call(tail=([], [], [[1, 2, 5], [9], []], []))[0] == "enter"
    assert job.end() == ("", True)


def test_a_job_that_is_gone_ends_its_pass_at_the_next_module(tiny_gpt2):
    """A forward of 60 layers, whose job goes in the first: few of the others run."""
    model, tokenizer = copy.deepcopy(tiny_gpt2)
    ran = os.memfd_create("ran")
    blocks = model.transformer.h
    for _ in range(56):
        blocks.append(copy.deepcopy(blocks[0]))
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, n=number: _slowly(ran, n))
    job = Job(LanguageModel(model, tokenizer=tokenizer))
    at = job.channel.mine.put(torch.ones(1, 4, dtype=torch.int64))
    told = ["{", ["input_ids", ["n", "int64", [1, 4], at, -9]]]
    os.write(job.fd, json.dumps(["call", [], 0, ["("], told, True, False]).encode())
    while not os.fstat(ran).st_size:
        select.select([], [], [], 0.01)
    job.channel.close()
    job.there.wait()
    assert job.there.pristine
    assert os.fstat(ran).st_size < 10
    os.close(ran)


def _slowly(ran, number):
    os.write(ran, b"x")
    select.select([], [], [], 0.05)


def test_weights_that_a_module_gives_out_cannot_be_changed(tiny_gpt2):
    """A module that returns its own parameter: the job's edit is of a copy."""

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self):
            return self.weight

    class Root(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.own = Own()

        def forward(self):
            return self.own() * 1

    from insitu import NNsight

    job = Job(NNsight(Root()))
    _, _, _, _, told = job.say("call", [[], [], [[], [1], []], []], 0, ["("], ["{"], True, False)
    number = told[1]
    job.channel.begin()
    at = job.channel.mine.put(torch.zeros(3))
    kind, result = job.say("return", [[[number, at]], [], None, []], ["t", number])
    assert kind == "result"
    assert job.channel.theirs.take(result[4], torch.float32, (3,)).tolist() == [0, 0, 0]
    assert job.end() == ("", True)


def test_shared_memory_cannot_be_cut_off_nor_grown():
    fd = Segment.file(2**16)
    segment = Segment(os.dup(fd))
    for size in (0, 2**20):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    os.close(fd)
    with pytest.raises(SegmentError):
        segment.put(torch.zeros(2**16))


def test_shared_memory_that_could_be_cut_off_is_not_taken():
    fd = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 2**16)
    assert not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SHRINK
    with pytest.raises(SegmentError):
        Segment(fd)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5), torch.zeros(0, 4), torch.arange(6).reshape(2, 3).T,
        torch.tensor([True, False]), torch.tensor([float("nan"), float("inf")]),
        torch.ones(3, dtype=torch.bfloat16), torch.ones(2, dtype=torch.complex64) * 1j,
        torch.ones(3).to(torch.float8_e4m3fn), torch.ones(1, 3).expand(4, 3),
    ],
    ids=str,
)  # fmt: skip
def test_every_tensor_crosses_exactly(tensor):
    segment = Segment(Segment.file(2**16))
    segment.begin()
    segment.put(torch.zeros(3))
    at = segment.put(tensor)
    found = segment.take(at, tensor.dtype, tuple(tensor.shape))
    assert found.dtype is tensor.dtype
    one, other = (it.contiguous().reshape(-1).view(torch.uint8) for it in (found, tensor))
    assert torch.equal(one, other)


def test_a_truth_value_is_none_or_one_whatever_its_byte():
    segment = Segment(Segment.file(2**16))
    at = segment.put(torch.tensor([0, 1, 2, 255], dtype=torch.uint8))
    found = segment.take(at, torch.bool, (4,))
    assert found.view(torch.uint8).tolist() == [0, 1, 1, 1]


def test_ten_thousand_damaged_messages_end_in_a_sentence(tiny_gpt2):
    """Each in a conversation of its own would take minutes: the readers alone are asked."""
    from insitu.remote.worker.apart.channel import _read
    from insitu.remote.worker.apart.held import Held

    random.seed(5)
    up = Segment(Segment.file(2**16))
    channel = Channel(os.open(os.devnull, os.O_RDONLY), up, up)
    held = Held(channel, frozenset())
    held.told(torch.zeros(2), given=False)
    good = [
        "(",
        1,
        ["t", 1],
        ["n", "int64", [1, 4], 0, -9],
        {"float": "nan"},
        ["{", ["a", ["["]]],
        ["m", "transformers.modeling_outputs:BaseModelOutput", ["last_hidden_state", None]],
    ]
    text = bytearray(json.dumps(["call", [], 0, good, ["{"]]).encode())
    ends = set()
    for _ in range(10_000):
        damaged = bytearray(text)
        for _ in range(random.randint(1, 4)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        try:
            message = _read(bytes(damaged))
            held.read(message[3] if len(message) > 3 else None, torch.device("cpu"))
            ends.add("read")
        except ChannelError as error:
            ends.add("refused" if str(error) else "silent")
    assert ends == {"read", "refused"}
    os.close(channel.fd)
