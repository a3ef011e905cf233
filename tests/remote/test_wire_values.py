"""Values: every kind comes back as what it was, shared where it was shared; others are refused."""

import collections
import dataclasses
import enum
import math
import re
import sys
import threading
import types

import numpy as np
import pytest
import torch

import insitu
from insitu import NotSendableError, WireError
from insitu.engine.cache.values import Fields
from insitu.remote.wire.container import pack, unpack
from insitu.remote.wire.values import Decoder, Encoder, decode_all, encode_all


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


class Flags(enum.Flag):
    R = 1
    W = 2


@dataclasses.dataclass
class Score:
    loss: float
    hits: object = None

    def __post_init__(self):
        raise AssertionError("decoding ran the user's code")


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    a: int


Pair = collections.namedtuple("Pair", "x y")


def trip(**values):
    header, tensors = unpack(pack(*encode_all(values)), most=2**30)
    return decode_all(header, tensors)


def back(value):
    return trip(value=value)["value"]


PLAIN = [
    None, True, False, 0, -1, 2**63 - 1, 2**63, -(2**100), 1.5, -0.0, 1e-320, math.inf, -math.inf,
    1j, complex(-0.0, math.inf), "", "é\ud800\n\0", b"", b"\0\xff", ..., NotImplemented,
    [], [1, [2, (3,)]], (), (1,), {}, {1: 2, "1": 3, (1, 2): None, None: 4}, {1, 2},
    frozenset((1, 2)),
    range(1, 9, 2), range(10**30), slice(None), slice(1, None, -2), slice("a", 2.5),
    torch.float16, torch.device("cuda:1"), torch.device("cpu"), torch.Size([1, 2]), torch.Size([]),
    torch.strided, torch.channels_last, collections.OrderedDict(b=1, a=2),
    collections.Counter("aab"),
    collections.defaultdict(list, {1: [2]}), collections.defaultdict(None, {1: 2}),
    collections.deque([1, 2], 3), types.SimpleNamespace(a=1, b=[2]), Colour.RED, Colour.BLUE,
    Flags.R | Flags.W, Flags.R, Slotted(2), Pair(1, [2]), np.float32(2.5),
    np.int64(-3), np.bool_(True),
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:40])
def test_a_value_comes_back_as_what_it_was(value):
    found = back(value)
    assert type(found) is type(value)
    assert found == value
    assert repr(found) == repr(value)


def test_not_a_number_comes_back():
    found = back([math.nan, complex(math.nan, 1)])
    assert math.isnan(found[0])
    assert math.isnan(found[1].real)
    assert found[1].imag == 1


ARRAYS = [
    np.arange(6.0).reshape(2, 3), np.arange(6).reshape(2, 3).T, np.array(5.0), np.zeros((0, 3)),
    np.array(["ab", "ç"]), np.array([b"x"]), np.array(["2026-11-22"], "datetime64[D]"),
    np.arange(3, dtype=">i4"), np.array([True]), np.array([1j]), np.arange(9)[::2],
]  # fmt: skip


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{list(a.shape)}")
def test_an_array_comes_back(array):
    found = back(array)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_a_read_only_array_is_sent_without_a_warning():
    array = np.arange(3.0)
    array.flags.writeable = False
    np.testing.assert_array_equal(back(array), array)


def test_tensors_keep_kind_and_gradients():
    plain = torch.randn(3)
    found = trip(
        plain=plain,
        learns=plain.clone().requires_grad_(),
        weight=torch.nn.Parameter(plain.clone()),
        frozen=torch.nn.Parameter(plain.clone(), requires_grad=False),
        after=torch.nn.Parameter(plain.clone()) * 2,
        conj=plain.cfloat().conj(),
    )
    assert not found["plain"].requires_grad
    assert found["learns"].requires_grad
    assert isinstance(found["weight"], torch.nn.Parameter)
    assert found["weight"].requires_grad
    assert isinstance(found["frozen"], torch.nn.Parameter)
    assert not found["frozen"].requires_grad
    assert found["after"].requires_grad
    assert torch.equal(found["after"].detach(), plain * 2)
    assert torch.equal(found["conj"], plain.cfloat().conj())


def test_what_was_one_object_is_one_object():
    tensor, inner = torch.ones(2), [1]
    found = trip(a=tensor, b=[tensor, inner], c={"x": inner}, d=tensor.clone())
    assert found["b"][0] is found["a"]
    assert found["c"]["x"] is found["b"][1]
    assert found["d"] is not found["a"]


def test_views_of_the_same_numbers_are_sent_once():
    tensor = torch.randn(100)
    _, tensors = encode_all({"a": tensor, "b": tensor.detach(), "c": tensor[:50]})
    assert len(tensors) == 2


def test_the_names_may_be_read_in_any_order():
    shared = [torch.ones(1)]
    header, tensors = encode_all({"a": shared, "b": [shared]})
    decoder = Decoder(header["values"], tensors)
    b = decoder.decode(header["names"]["b"])
    assert decoder.decode(header["names"]["a"]) is b[0]


def test_torch_return_types_come_back():
    given = torch.tensor([3.0, 1.0]).max(0)
    found = back(given)
    assert type(found) is type(given)
    assert found.values == 3
    assert found.indices == 0


def test_a_dataclass_is_rebuilt_without_its_init():
    one = object.__new__(Score)
    one.loss, one.hits = 1.5, [torch.ones(2)]
    found = back(one)
    assert type(found) is Score
    assert found.loss == 1.5
    assert torch.equal(found.hits[0], torch.ones(2))


def renamed(header, name):
    for row in header["values"]:
        if row.get("class"):
            row["class"] = name
    return header


@pytest.mark.parametrize("value", [Slotted(2), Pair(1, 2), Colour.RED])
def test_an_unknown_class_becomes_its_named_parts_and_nothing_is_imported(value):
    before = set(sys.modules)
    header, tensors = encode_all({"v": value, "again": [value]})
    found = decode_all(renamed(header, "antigravity:Thing"), tensors)["v"]
    assert set(sys.modules) == before
    assert type(found) is Fields
    assert found._kind == "Thing"
    assert list(found.values())[-1] in (2, 1)
    assert back(found) == found


NO_SUCH = [
    "os:system", "builtins:dict", "subprocess:Popen", "sys:modules", "tests:x", "", ":",
    "insitu:LanguageModel", "builtins:BaseException",
]  # fmt: skip


@pytest.mark.parametrize("name", NO_SUCH)
def test_a_class_that_is_no_such_object_is_never_made(name):
    for value in (Slotted(2), Pair(1, 2), Colour.RED, torch.ones(2).max(0)):
        header, tensors = encode_all({"v": value})
        assert type(decode_all(renamed(header, name), tensors)["v"]) is Fields


def test_model_outputs_and_their_caches_come_back(demo):
    with demo.trace("The Eiffel Tower is in") as tracer:
        cache = tracer.cache(include_inputs=True)
        output = demo.output.save()
    found = trip(output=output, cache=cache)
    again = found["output"]
    assert type(again) is type(output)
    assert list(again.keys()) == list(output.keys())
    assert torch.equal(again.logits, output.logits)
    assert again[0] is again.logits
    assert again.loss is None
    pairs = zip(again.past_key_values.layers, output.past_key_values.layers, strict=True)
    for one, other in pairs:
        assert type(one) is type(other)
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)
    assert again.past_key_values.get_seq_length() == output.past_key_values.get_seq_length()
    assert list(found["cache"]) == list(cache)
    assert torch.equal(found["cache"].stack("transformer.h.*"), cache.stack("transformer.h.*"))
    assert found["cache"].steps == cache.steps


@pytest.fixture(scope="module")
def demo():
    return insitu.LanguageModel("demo")


def test_a_sliding_cache_goes_on_where_it_was():
    from transformers.cache_utils import (
        DynamicCache,
        DynamicSlidingWindowLayer,
        EncoderDecoderCache,
    )

    cache = DynamicCache()
    layer = DynamicSlidingWindowLayer(sliding_window=4)
    layer.update(torch.randn(1, 1, 6, 2), torch.randn(1, 1, 6, 2))
    cache.layers.append(layer)
    cache.layers.append(type(layer)(sliding_window=4))
    found = back(cache)
    assert vars(found.layers[0]).keys() == vars(layer).keys()
    assert found.layers[0].cumulative_length == 6
    assert torch.equal(found.layers[0].keys, layer.keys)
    new = torch.randn(1, 1, 1, 2)
    assert torch.equal(found.layers[0].update(new, new)[0], layer.update(new, new)[0])
    assert not found.layers[1].is_initialized
    pair = back(EncoderDecoderCache(DynamicCache(), DynamicCache()))
    assert type(pair) is EncoderDecoderCache


def test_parts_of_the_model_go_by_name(demo):
    encoder = Encoder(demo)
    block = demo.transformer.h[1]
    given = [demo, block, block._module, demo._module, demo.tokenizer, demo.lm_head._module.weight]
    there = encoder.encode("x", given)
    assert not encoder.tensors
    found = Decoder(encoder.table, {}, demo).decode(there)
    assert all(one is other for one, other in zip(found, given, strict=True))
    with pytest.raises(WireError, match="data only"):
        Decoder(encoder.table, {}).decode(there)


def test_a_module_path_that_is_none_is_refused(demo):
    for told in ({"module": "transformer.nothing"}, {"weight": "x"}, {"of_model": "__class__"}):
        with pytest.raises(WireError):
            Decoder([], {}, demo).decode(told)


def test_a_value_that_contains_itself_is_refused():
    loop = []
    loop.append({"deep": loop})
    with pytest.raises(NotSendableError, match="contains itself"):
        encode_all({"loop": loop})


def test_a_value_that_is_nested_deep_is_refused():
    deep = []
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(NotSendableError, match="more than 100 deep"):
        encode_all({"deep": deep})


def test_the_refusal_says_where_and_what_to_do():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(NotSendableError) as error:
        Encoder().encode("opt", optimizer, "cell 4, line 7")
    assert error.value.what == "cannot send 'opt' (torch.optim.Adam) used at cell 4, line 7."
    assert error.value.next == "send its state_dict() or build it inside the block."
    with pytest.raises(
        NotSendableError, match=r"cannot send state\['opt'\]\[0\] \(torch.optim.Adam\)"
    ):
        Encoder().encode("state", {"opt": [optimizer]})


class Named(dict):
    pass


REFUSED = {
    "generator": ((i for i in ()), r"list\(…\)"),
    "lock": (threading.Lock(), "inside the block"),
    "thread": (threading.Thread(), "local"),
    "function": (lambda: 1, "what it returns"),
    "class": (Score, "made of"),
    "module": (math, "values"),
    "layer": (torch.nn.Linear(1, 1), "state_dict"),
    "sparse": (torch.ones(2).to_sparse(), "to_dense"),
    "meta": (torch.ones(2, device="meta"), "inside the block"),
    "random": (torch.Generator(), "manual_seed"),
    "objects": (np.array([object()]), "tolist"),
    "dict": (Named(), "dict"),
    "loader": (torch.utils.data.DataLoader([1]), "batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_cannot_be_sent_has_a_next_step(name):
    value, expected = REFUSED[name]
    with pytest.raises(NotSendableError) as error:
        encode_all({name: value})
    assert error.value.what.startswith(
        f"cannot send '{name}' (" if name.isidentifier() else "cannot"
    )
    assert re.search(expected, error.value.next)


def test_an_open_file_is_refused(tmp_path):
    with (tmp_path / "x").open("w") as file, pytest.raises(NotSendableError) as error:
        encode_all({"file": file})
    assert "read it first" in error.value.next


HERE = {"at": 0}
HOSTILE = [
    (HERE, []),
    (HERE, 3),
    (HERE, [3]),
    (HERE, [{"list": [HERE]}]),
    ({"at": -1}, [None]),
    ({"at": True}, [{}, {}]),
    ({"tensor": "t0"}, []),
    ([1], []),
    (HERE, [{"tensor": "nope"}]),
    (HERE, [{"set": [{"at": 1}]}, {"list": []}]),
    (HERE, [{"dict": [[{"at": 1}, 1]]}, {"list": []}]),
    ({"range": [0, 1, 0]}, []),
    ({"dtype": "load"}, []),
    ({"device": "a b"}, []),
    ({"size": [1.5]}, []),
    ({"int": "0y"}, []),
    ({"piece": 0}, []),
    ({"name": "os:system"}, []),
    ({"source": "os"}, []),
    (HERE, [{"enum": "A"}]),
    (HERE, [{"array": "t", "dtype": "O", "shape": [1]}]),
    (HERE, [{"fields": [], "class": "x:y", "kind": "pickle"}]),
    (HERE, [{"cache": "Evil", "layers": []}]),
    (HERE, [{"deque": [], "most": "x"}]),
    (HERE, [{"dict": [], "kind": "eval"}]),
    (HERE, [{"dict": [], "kind": "defaultdict", "of": "eval"}]),
]


@pytest.mark.parametrize(("told", "table"), HOSTILE, ids=str)
def test_json_that_no_encoder_writes_is_refused(told, table):
    with pytest.raises(WireError):
        decode_all({"names": {"a": told}, "values": table}, {})


def test_a_header_without_names_is_refused():
    with pytest.raises(WireError):
        decode_all({"names": 3, "values": []}, {})


def test_values_nested_deep_in_the_table_are_refused():
    table = [{"list": [{"at": n + 1}]} for n in range(5000)] + [{"list": []}]
    with pytest.raises(WireError, match="deep"):
        decode_all({"names": {"a": {"at": 0}}, "values": table}, {})


def test_a_tensor_is_given_to_one_row_alone():
    table = [{"tensor": "t"}, {"array": "t", "dtype": "|u1", "shape": [2]}]
    header = {"names": {"a": {"at": 0}, "b": {"at": 1}}, "values": table}
    with pytest.raises(WireError, match="used twice"):
        decode_all(header, {"t": torch.zeros(2, dtype=torch.uint8)})
