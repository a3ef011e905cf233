"""Whole conversations with a live device process, damaged in every place: it answers the next job.

Real blocks are recorded once: what each sent, the memory beside it, what it was answered. Then they
are sent again with some messages damaged, and others between. Nothing but the job may come to harm:
the process stays, frees itself after every job, and gives an undamaged conversation what it gave
before. The one of a model process before its mending died here within a hundred messages.
"""

import copy
import json
import os
import random

import pytest
import torch
from apart_runs import SIZE, apart

from insitu import LanguageModel
from insitu.remote.worker import frames
from insitu.remote.worker.apart import device_process
from insitu.remote.worker.apart.channel import Channel, ChannelError
from insitu.remote.worker.apart.pristine import Pristine
from insitu.remote.worker.apart.shared import Segment
from insitu.remote.worker.apart.stops import Room

CONVERSATIONS = 1_000
HONEST_EVERY = 7
ANSWERED_S = 60
PROMPT = "Once upon a time"


# Real conversations ----------------------------------------------------------------------------


def reads_and_edits(model):
    with model.trace(PROMPT):
        h = model.transformer.h[0].output
        model.transformer.h[1].input = model.transformer.h[1].input + h
        model.transformer.h[1].mlp.output[:, -1] *= 2
        out = model.lm_head.output
    return out


def takes_gradients(model):
    with model.trace(PROMPT):
        h = model.transformer.h[0].output
        loss = (model.lm_head.output[:, -1] * 2).sum()
        with loss.backward():
            grad = h.grad
    return grad


def generates(model):
    with model.generate(PROMPT, max_new_tokens=3) as tracer:
        for _ in tracer.iter[:]:
            model.transformer.h[1].output[:, -1] *= 0.5
        ids = model.generator.output
    return ids


def changes_weights(model):
    with model.trace(PROMPT), torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[:4] = 0
        model.transformer.h[1].mlp.skip(model.transformer.h[0].output)
        out = model.lm_head.output
    return out


def asks_a_cache(model):
    with model.trace(PROMPT):
        cache = model.output.past_key_values
        length = torch.tensor(cache.get_seq_length())
    return length


BLOCKS = [reads_and_edits, takes_gradients, generates, changes_weights, asks_a_cache]


class Sent:
    """A message that a job sent, the memory beside it, and the answer with the memory of that."""

    def __init__(self, text, beside):
        self.text, self.beside = text, beside
        self.answer = None


def recorded(block, make, patch):
    """Every message of a block, in order."""
    found = []
    send, receive = Channel.send, Channel.receive

    def sends(channel, message):
        used = channel.mine._used
        found.append(Sent(message, bytes(channel.mine._memory[:used])))
        send(channel, message)

    def receives(channel):
        found[-1].answer = receive(channel)
        return found[-1].answer

    with patch.context() as patched, apart(make) as model:
        patched.setattr(Channel, "send", sends)
        patched.setattr(Channel, "receive", receives)
        block(model)
    return [json.loads(json.dumps([it.text, it.answer])) + [it.beside] for it in found]


# The process ------------------------------------------------------------------------------------


class Device:
    """A process that serves jobs for ever, as the one of a server does."""

    def __init__(self, model):
        self.control, theirs = frames.control_pair()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                self.control.close()
                model._module.requires_grad_(False)
                room = Room(model._module)
                device_process.serve(theirs, room, Pristine(model._module))
                code = 0
            finally:
                os._exit(code)
        theirs.close()
        self.jobs = 0

    def job(self):
        self.jobs += 1
        ours, theirs = frames.control_pair()
        up, down = Segment.file(SIZE), Segment.file(SIZE)
        told = {"job": str(self.jobs), "memory_bytes": 2**30}
        with theirs:
            frames.send_control(self.control, told, (theirs.fileno(), down, up))
        return Channel(ours.detach(), Segment(up), Segment(down))

    def freed(self):
        """Why the last job was refused, if it was, when the process has freed itself of it."""
        refusal = ""
        while True:
            assert frames.readable(self.control.fileno(), ANSWERED_S), "it is not free"
            got = frames.receive_control(self.control)
            assert got is not None, "the process of the model ended"
            said = got[0]
            assert said["job"] == str(self.jobs)
            if said["said"] == "free":
                return refusal
            refusal = said["why"]
            assert refusal.strip()

    def end(self):
        self.control.close()
        _, status = os.waitpid(self.pid, 0)
        assert status == 0


def said(channel, data, beside):
    """Send bytes and the memory beside them; the answer, None where it hung up."""
    channel.begin()
    channel.mine._memory[: len(beside)] = beside
    channel.mine._used = len(beside)
    try:
        if isinstance(data, bytes):
            os.write(channel.fd, data)
        else:
            channel.send(data)
    except (BrokenPipeError, ConnectionResetError):
        return None
    except ChannelError:  # too long to be sent by what we have
        os.write(channel.fd, b"@0,4194305")
    assert frames.readable(channel.fd, ANSWERED_S), f"no answer to {str(data)[:300]}"
    return channel.receive()


def speaks(device, messages, damage=None):
    """Send a conversation, its messages damaged and others between; the answers, and the refusal.

    Whatever is answered with a result leaves the turn with the job, so that others can be sent
    between; what ends the conversation is the last.
    """
    channel = device.job()
    answers = []
    for number, (message, _, beside) in enumerate(messages):
        for told in (message,) if damage is None else damage.turn(messages, number):
            answer = said(channel, told, beside)
            if answer is None:
                break
            answers.append((answer, values_of(channel, answer)))
            if damage is not None:
                damage.look(answer)
        if answer is None:
            break
    channel.close()
    return answers, device.freed()


def values_of(channel, answer):
    """The values that an answer brings, by places."""
    found = []

    def look(told):
        if isinstance(told, list):
            if len(told) > 4 and told[0] in ("t", "g") and type(told[4]) is int and told[4] >= 0:
                dtype, shape = getattr(torch, told[2]), tuple(told[3])
                order = told[5:] or list(range(len(shape)))
                shape = tuple(shape[axis] for axis in order)
                found.append(channel.theirs.take(told[4], dtype, shape).flatten().tolist())
            for part in told:
                look(part)

    look(answer)
    return found


# Damage -------------------------------------------------------------------------------------------

ODD = [
    None, True, False, 0, 1, -1, 2, 7, -3, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "x", "weight", "training", "update", "\ud800", "a" * 5000,
    [], {}, [[]], ["x"], ["("], ["["], ["{"], ["{", ["use_cache", True]], {"a": 1, "b": 2},
    {"float": "inf"}, {"float": "nan"}, {"int": "f" * 2000}, {"bytes": "!"}, {"complex": [1, 2]},
    {"range": [0, 2**70, 1]}, {"size": [2**70]}, {"device": "cuda:99"}, {"dtype": "float32"},
    {"slice": [None, None, None]}, {"name": "..."}, ["m", "builtins:dict", ["a", 1]],
    ["m", "transformers.modeling_outputs:BaseModelOutput", ["last_hidden_state", 1]],
]  # fmt: skip
SHAPES = [
    [], [0], [1], [4], [1, 4], [1, 0], [2**20], [1, 1, 1, 4], [2**39], [1] * 70, [16 * 2**20],
    [2**39, 2**39, 2**39, 0], [0, 2**62], [3, 2**62, 0], [-1], [0.5], [True], "4", None,
]  # fmt: skip
DTYPES = ["float32", "int64", "bool", "float8_e4m3fn", "complex64", "bfloat16", "object", ["x"]]
NAMES = ["weight", "bias", "training", "forward", "", "x", ["x"], {"x": 1}, None, 7]
METHODS = [
    "update", "crop", "reset", "get_seq_length", "get_mask_sizes", "batch_repeat_interleave",
    "reorder_cache", "batch_select_indices", "has_previous_state", "is_sliding", "max_batch_size",
    "__class__", "layers", ["update"], None, {"a": 1},
]  # fmt: skip
MODULES = [0, 1, 2, 3, 4, 5, 8, 12, 20, -1, 10**9, True, None, "0", 0.5, []]


class Damage:
    """Ways to damage a conversation; the same ones for the same seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self._tensors, self._caches, self._own = [1], [], -1000

    def turn(self, messages, number):
        """What is sent in the place of a message: others before it, it or a damaged one."""
        if number:  # before, there is nothing to speak of
            for _ in range(self.random.choice((0, 1, 2, 3))):
                yield self._another()
        message = messages[number][0]
        yield self._damaged(message) if self.random.random() < 0.2 else message

    def look(self, told):
        """Note the numbers that an answer speaks of."""
        if isinstance(told, list) and told:
            if told[0] in ("t", "g") and len(told) > 1 and type(told[1]) is int:
                self._tensors = [*self._tensors[-12:], told[1]]
            elif told[0] == "o" and len(told) > 3 and told[3] == "cache":
                self._caches.append(told[1])
            for part in told:
                self.look(part)

    # Values that a job could send ----------------------------------------------------------------

    def value(self, deep=0):
        one = self.random.random()
        if one < 0.25:
            return copy.deepcopy(self.random.choice(ODD))
        if one < 0.45:
            return ["t", self.random.choice(self._tensors)]
        if one < 0.75:
            return self.tensor()
        if one < 0.8 and self._caches:
            return ["o", self.random.choice(self._caches)]
        if one < 0.9:
            return self.cache()
        if deep > 3:
            return 1
        inner = [self.value(deep + 1) for _ in range(self.random.randrange(3))]
        tag = self.random.choice("([{m")
        if tag in "([":
            return [tag, *inner]
        return [tag, *[[self.random.choice(["x", 1, None, "past_key_values"]), it] for it in inner]]

    def tensor(self):
        some = self.random.choice
        self._own -= 1
        number = some([None, None, None, self._own, self._own, 5, -1, "x"])
        if number == self._own:
            self._tensors.append(number)
        at = some([0, 0, 0, 0, 0, 0, 64, 3, -64, 2**28, None, [0]])
        return [
            some("nnnv"),
            some(DTYPES[:4] * 3 + DTYPES),
            some(SHAPES[:7] * 3 + SHAPES),
            at,
            number,
        ]

    def cache(self):
        some = self.random.choice
        self._own -= 1
        self._caches.append(self._own)
        four = ["n", "float32", [1, 1, 1, 4], 0, None]
        parts = [some([four, four, None, self.value(4)]) for _ in range(2)]
        layer = {"kind": "DynamicLayer", "keys": parts[0], "values": parts[1]}
        sliding = {"kind": "DynamicSlidingWindowLayer", "window": some([-5, 0, 4, 2**70, 0.5, "4"])}
        sliding = {**layer, **sliding, "seen": some([0, -1, 4, 2**70, None])}
        layers = some([[], [layer], [layer, sliding], [sliding], [1], {}, [{}]])
        kind = some(["DynamicCache"] * 4 + ["EncoderDecoderCache", "StaticCache", None])
        return ["c", self._own, {"cache": kind, "layers": layers}]

    # Messages that a job could send -------------------------------------------------------------

    def _tail(self):
        """What every message may tell besides."""
        some, numbers = self.random.choice, self._tensors
        if self.random.random() < 0.85:
            return []
        return [
            some([[], [], [[some(numbers), some([0, 64, 3, -1, None])]], [[some(numbers), 0]] * 9]),
            some([[], [], [], [some(numbers)], [some(self._caches or [7])], [some(numbers)] * 2]),
            some([None, None, [[1], [2], []], [[], [4, 5], [4]], [[1] * 999, [], [10**9]]]),
            some([[], [], [[some(MODULES), some(NAMES), self.value()] for _ in range(2)]]),
        ]

    def _another(self):
        """A message of its own; mostly one that is answered."""
        some, numbers = self.random.choice, self._tensors
        kind = some(("call", "call", "fetch", "ask", "ask", "pull", "weights", "odd"))
        args = [self.value() for _ in range(self.random.randrange(4))]
        if kind == "call":
            told = [some(MODULES[:9]), ["(", *args], ["{"], some([True, False, 1]), some([True, 0])]
        elif kind == "fetch":
            told = [some([[some(numbers)], [some(numbers)] * 100, numbers[-9:], [some(ODD)], 5])]
        elif kind == "ask":
            if not self._caches:
                return ["call", [], 1, ["(", self.cache()], ["{"], True, False]
            pair = [["n", "float32", [1, 1, 1, 4], 0, None]] * 2
            layer = some([0, 1, {"float": "inf"}, 0.5, True, 9_999, -1, self.value()])
            given = some([args, [*pair, layer], [*pair, layer], [layer], []])
            told = [some(self._caches), some(METHODS[:9] * 2 + METHODS), ["(", *given], ["{"]]
        elif kind == "pull":
            of = some([some(numbers), some(numbers), None, [1]])
            told = [of, self.value(), some([numbers[-9:], [None, [1], "x"], 7])]
        elif kind == "weights":
            weights = [[some(MODULES), some(NAMES), self.value()] for _ in range(2)]
            return ["fetch", [[], [], None, weights], []]
        else:
            return self._damaged(["call", [], 1, ["(", *args], ["{"], True, False])
        return [kind, self._tail(), *told]

    # Damage to a message -------------------------------------------------------------------------

    def _damaged(self, message):
        message = copy.deepcopy(message)
        for _ in range(self.random.choice((1, 1, 2))):
            if message and isinstance(found := self.random.choice(_WAYS)(self, message), bytes):
                return found
        return message

    def _place(self, message):
        """A place inside; seldom the first ones, without which it is no message at all."""
        places = places_in(message)
        inside = [it for it in places if it[0] is not message or it[1] > 1]
        return self.random.choice(inside if inside and self.random.random() < 0.9 else places)

    def _odd(self, message):
        holder, key = self._place(message)
        holder[key] = self.value()

    def _swapped(self, message):
        """A part of the message in the place of another."""
        (one, at), (other, there) = self._place(message), self._place(message)
        one[at] = copy.deepcopy(other[there])

    def _left_out(self, message):
        holder, key = self._place(message)
        del holder[key]

    def _often(self, message):
        holder, key = self._place(message)
        if isinstance(holder, list):
            holder[key:key] = [copy.deepcopy(holder[key])] * self.random.choice((1, 30, 300))

    def _wrapped(self, message):
        holder, key = self._place(message)
        for _ in range(self.random.choice((1, 3, 700))):
            holder[key] = ["(", holder[key]]

    def _shifted(self, message):
        """A number a little off."""
        numbers = [(it, key) for it, key in places_in(message) if type(it[key]) is int]
        if numbers:
            holder, key = self.random.choice(numbers)
            holder[key] += self.random.choice((-64, -1, 1, 2, 64, 2**33))

    def _other_tail(self, message):
        if len(message) > 1:
            message[1] = self._tail()

    def _bytes(self, message):
        """Bytes of the text itself."""
        data = bytearray(json.dumps(message).encode())[:40_000]
        for _ in range(self.random.randint(1, 4)):
            data[self.random.randrange(len(data))] = self.random.randrange(256)
        cut = self.random.random() < 0.2
        return bytes(data[: self.random.randrange(1, len(data))] if cut else data)


_WAYS = [
    Damage._odd, Damage._odd, Damage._odd, Damage._swapped, Damage._left_out, Damage._often,
    Damage._wrapped, Damage._shifted, Damage._other_tail, Damage._other_tail, Damage._bytes,
]  # fmt: skip


def places_in(message):
    """Every place of a message: the list or dict that holds it, and where."""
    found = []

    def look(holder, keys):
        for key in keys:
            found.append((holder, key))
            inner = holder[key]
            if isinstance(inner, list):
                look(inner, range(len(inner)))
            elif isinstance(inner, dict):
                look(inner, list(inner))

    look(message, range(len(message)))
    return found


# The tests ----------------------------------------------------------------------------------------


@pytest.fixture
def conversations(tiny_gpt2, monkeypatch):
    model, tokenizer = tiny_gpt2
    small = copy.deepcopy(model)
    del small.transformer.h[2:]
    small.config.num_hidden_layers = 2

    def make():
        return LanguageModel(copy.deepcopy(small), tokenizer=tokenizer)

    return make, [recorded(block, make, monkeypatch) for block in BLOCKS]


def test_thousands_of_damaged_messages_end_their_job_and_never_the_process(conversations):
    make, real = conversations
    device = Device(make())
    right = [speaks(device, messages) for messages in real]
    assert all(refusal == "" for _, refusal in right)
    assert [len(answers) for answers, _ in right] == [len(messages) for messages in real]
    refused = sent = 0
    for n in range(CONVERSATIONS):
        answers, refusal = speaks(device, real[n % len(real)], Damage(n))
        sent += len(answers) + 1
        refused += bool(refusal)
        if n % HONEST_EVERY == 0:
            honest = n // HONEST_EVERY % len(real)
            assert speaks(device, real[honest]) == right[honest], n
    for messages, before in zip(real, right, strict=True):
        assert speaks(device, messages) == before
    device.end()
    assert sent > 2_000
    assert refused > 200
