"""What a job may send to the process of its model, and what ends the conversation."""

import copy
import fcntl
import json
import os
import random
import resource
import select

import pytest
import torch
from apart_runs import apart, started

from insitu import LanguageModel, NNsight
from insitu.remote.worker import frames
from insitu.remote.worker.apart.channel import Channel, ChannelError, _read
from insitu.remote.worker.apart.held import Held
from insitu.remote.worker.apart.shared import Segment, SegmentError

SHRINK = 0x2
ANSWERED_S = 30


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
        assert frames.readable(self.fd, ANSWERED_S), "no answer"
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
    found = Job(LanguageModel(copy.deepcopy(model), tokenizer=tokenizer))
    yield found
    found.there.kill()


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
    "a weight whose name is a list": (["fetch", [[], [], None, [[0, ["x"], 1]]], []], "a weight t"),
    "a weight whose name is none": (["fetch", [[], [], None, [[0, {"x": 1}, 1]]], []], "a weight"),
    "no elements along enormous axes": (
        given(["n", "uint8", [2**39, 2**39, 2**39, 0], 0, -9]), "does not lie"),
    "a tensor on a place that is a list": (given(["n", "uint8", [1], [0], -9]), "lies nowhere"),
    "a dtype that is a list": (given(["n", ["uint8"], [1], 0, -9]), "a value that is none"),
    "a class that is a list": (given(["m", ["a"], ["b", 1]]), "a class"),
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


def test_what_there_is_no_memory_for_is_refused_as_such(job):
    """1 GB of values that were never written, 64 times in one message."""
    resource.prlimit(job.there._pid, resource.RLIMIT_DATA, (2**30, 2**30))
    big = ["n", "uint8", [128 * 2**20], 0]
    assert job.say(*called(0, ["(", *[[*big, -9 - n] for n in range(64)]])) is None
    refusal, pristine = job.end()
    assert refusal == "more than there is memory for, where the model computes"
    assert pristine


CACHE = ["c", -1, {"cache": "DynamicCache", "layers": []}]
PAIR = [["n", "float32", [1, 1, 1, 4], 0, None]] * 2
INF, NAN = {"float": "inf"}, {"float": "nan"}
QUESTIONS = {
    "a name that is a list": (["update"], []),
    "a name that is none": (None, []),
    "a name of something else": ("__class__", []),
    "what only a plain method has": ("early_initialization", []),
    "a layer without end": ("update", [*PAIR, INF]),
    "a layer that is no number": ("update", [*PAIR, NAN]),
    "half a layer": ("update", [*PAIR, 0.5]),
    "a true layer": ("update", [*PAIR, True]),
    "a layer that is text": ("update", [*PAIR, "0"]),
    "a layer that is a tensor": ("update", [*PAIR, PAIR[0]]),
    "a layer that is a list": ("update", [*PAIR, ["["]]),
    "a layer too many": ("update", [*PAIR, 10_000]),
    "a layer below none": ("update", [*PAIR, -1]),
    "a layer of a thousand digits": ("update", [*PAIR, {"int": "f" * 1000}]),
    "keys that are none": ("update", [1, 2, 0]),
    "how many to drop, without end": ("crop", [INF]),
    "how many to drop, as a tensor": ("crop", [PAIR[0]]),
    "how often, without end": ("batch_repeat_interleave", [INF]),
    "how often, by far": ("batch_repeat_interleave", [2**40]),
    "which, as a number": ("batch_select_indices", [1]),
    "a length of a layer without end": ("get_seq_length", [INF]),
    "too many arguments": ("reset", [1]),
    "a value with an argument": ("is_sliding", [1]),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_a_cache_may_not_be_asked_ends_the_job_with_a_reason(job, name):
    asked, args = QUESTIONS[name]
    assert job.say(*given(CACHE))[0] == "failed"  # no model takes it there, but it is known now
    job.channel.begin()
    job.channel.mine.put(torch.ones(1, 1, 1, 4))
    assert job.say("ask", [], -1, asked, ["(", *args], nothing) is None
    refusal, pristine = job.end()
    assert "a question that a cache is not asked" in refusal
    assert pristine


def test_a_layer_without_end_by_its_name_is_refused_too(job):
    assert job.say(*given(CACHE))[0] == "failed"
    told = ["{", ["layer_idx", INF]]
    assert job.say("ask", [], -1, "get_seq_length", ["("], told) is None
    assert "a question that a cache is not asked" in job.end()[0]


def test_values_that_are_too_large_for_one_message_are_told_of_and_the_next_come(job):
    """One number asked for so often that it would fill the memory between the two."""
    answer = job.say("call", [], 0, ["(", ["n", "float32", [2**20], 0, -5]], ["{"], True, False)
    assert answer[0] == "failed"
    kind, _, text = job.say("fetch", [], [-5] * 200)
    assert (kind, "too large" in text) == ("failed", True)
    kind, found = job.say("fetch", [], [-5])
    assert (kind, found[0][4]) == ("values", 0)
    assert job.end() == ("", True)


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

    job = Job(NNsight(Root()))
    _, _, _, _, told = job.say("call", [[], [], [[], [1], []], []], 0, ["("], ["{"], True, False)
    number = told[1]
    job.channel.begin()
    at = job.channel.mine.put(torch.zeros(3))
    kind, result = job.say("return", [[[number, at]], [], None, []], ["t", number])
    assert kind == "result"
    assert job.channel.theirs.take(result[4], torch.float32, (3,)).tolist() == [0, 0, 0]
    assert job.end() == ("", True)


class Own(torch.nn.Module):
    """Gives its own weight out, and changes what it is given in place."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x=None):
        return self.weight if x is None else x.zero_()


def test_weights_that_a_module_gives_out_are_not_changed_by_another(tiny_gpt2):
    """As an argument of a module that works in place, and as the keys of a cache that is reset."""
    job = Job(NNsight(torch.nn.Sequential(Own())))
    _, told = job.say("call", [], 1, ["("], ["{"], True, False)
    weight = ["t", told[1]]
    assert job.say("call", [], 1, ["(", weight], ["{"], True, False)[0] == "result"
    layer = {"kind": "DynamicLayer", "keys": weight, "values": weight}
    cache = ["c", -1, {"cache": "DynamicCache", "layers": [layer]}]
    assert job.say(*given(cache))[0] == "failed"
    assert job.say("ask", [], -1, "reset", ["("], nothing) == ["result", None]
    assert job.end() == ("", True)


def test_an_edit_of_a_weight_that_a_module_gives_out_is_of_this_pass_alone():
    """What cannot be changed where it lies is changed all the same, as far as the block sees."""

    class Wide(torch.nn.Module):
        def forward(self, x):
            return x.expand(2, 3)

    class Root(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.own, self.wide, self.last = Own(), Wide(), torch.nn.Identity()

        def forward(self, x):
            return self.last(self.wide(self.own()))

    with apart(lambda: NNsight(Root())) as model:
        with model.trace(torch.ones(1)):
            model.own.output[:] = 5
            seen = model.wide.input.clone()
            model.wide.output[:] = torch.arange(6.0).reshape(2, 3)
            end = model.output
        with model.trace(torch.ones(1)):
            after = model.output
    assert seen.tolist() == [5, 5, 5]
    assert end.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert after.tolist() == [[1, 1, 1]] * 2


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
    """The readers alone; whole conversations are in `test_apart_fuzz.py`."""
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
