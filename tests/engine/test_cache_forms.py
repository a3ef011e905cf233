"""Values of unusual forms in a cache: in memory, in a file, and spilled to a folder."""

import threading
from collections import UserDict, namedtuple
from dataclasses import dataclass, field

import pytest
import reference
import torch
from torch import nn

import insitu
from insitu import NNsight
from insitu.engine.cache.file import read_records
from insitu.engine.cache.forecast import forecast
from insitu.engine.cache.globs import chosen
from insitu.engine.cache.record import Plan
from insitu.engine.cache.table import LINES_MAX, in_bytes

Pair = namedtuple("Pair", "left right")


@dataclass
class Out:
    logits: torch.Tensor
    note: str = "kept"
    later: torch.Tensor = field(init=False)


class Single(UserDict):
    """A mapping of the user's that will not be copied."""

    def __copy__(self):
        raise TypeError("there is one of these")


@dataclass
class Sole:
    logits: torch.Tensor

    def __copy__(self):
        raise TypeError("there is one of these")


class Gives(nn.Module):
    """Returns what a function makes of its input."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


def cached(x, *makers, **options):
    """A cache of modules "0", "1", … that give these values of `x`, each on its own."""
    net = nn.Sequential(*[Gives(make) for make in makers])
    net.forward = lambda x: [module(x) for module in net]
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache(**options)
    return cache


# In memory ----------------------------------------------------------------------------------------


def test_named_tuples_and_dataclasses_stay_what_they_are(x):
    cache = cached(x, lambda x: Pair(x * 2, 3), lambda x: Out(x * 3))
    pair, out = cache["0"].output, cache["1"].output
    assert type(pair) is Pair
    assert torch.equal(pair.left, x * 2)
    assert type(out) is Out
    assert torch.equal(out.logits, x * 3)
    assert out.note == "kept"
    assert not hasattr(out, "later")  # as the model left it


def test_a_mapping_that_cannot_be_copied_becomes_one_of_its_parts(x):
    value = cached(x, lambda x: Single(h=x * 2, n=1))["0"].output
    assert torch.equal(value["h"], x * 2)
    assert torch.equal(value.h, x * 2)
    assert value.n == 1
    assert list(value) == ["h", "n"]


def test_a_dataclass_that_cannot_be_copied_is_not_kept(x):
    cache = cached(x, lambda x: Sole(x), lambda x: x + 1)
    assert repr(cache["0"].output) == "<Sole, not kept>"
    assert torch.equal(cache["1"].output, x + 1)


# In a file ----------------------------------------------------------------------------------------


def test_named_tuples_and_dataclasses_come_back_as_their_parts(tmp_path, x):
    cache = cached(x, lambda x: Pair(x * 2, 3), lambda x: Out(x * 3))
    loaded = insitu.load_cache(cache.save(tmp_path / "run.safetensors"))
    pair, out = loaded["0"].output, loaded["1"].output
    assert torch.equal(pair.left, x * 2)
    assert torch.equal(pair[0], x * 2)
    assert (pair.right, out.note) == (3, "kept")
    assert torch.equal(out.logits, x * 3)
    assert list(out) == ["logits", "note"]
    assert "Pair(left, right)" in repr(loaded)
    assert "Out(logits, note)" in repr(loaded)


def test_parts_whose_names_are_alike_do_not_mix(tmp_path, x):
    make = lambda x: {"a": {"b": x + 1}, "a.b": x + 2, "a.b~1": x + 3}  # noqa: E731
    cache = cached(x, make)
    loaded = insitu.load_cache(cache.save(tmp_path / "run.safetensors"))
    value = loaded["0"].output
    assert torch.equal(value["a"]["b"], x + 1)
    assert torch.equal(value["a.b"], x + 2)
    assert torch.equal(value["a.b~1"], x + 3)


def test_a_file_of_a_later_format_is_refused_by_its_number(tmp_path, x, monkeypatch):
    monkeypatch.setattr("insitu.engine.cache.file.FORMAT", 2)
    path = cached(x, lambda x: x).save(tmp_path / "run.safetensors")
    monkeypatch.undo()
    with pytest.raises(insitu.CacheFileError, match=r"written in format 2.*\nWhy: .*format 1"):
        read_records(path)


# In a folder --------------------------------------------------------------------------------------


def test_a_spilled_cache_holds_values_of_every_layout(tmp_path, x):
    wide = x.repeat(4, 1)
    makers = [
        lambda x: x.t() + 0,
        lambda x: (x + 1).to(torch.complex64).conj(),
        lambda x: x.to_sparse(),
        lambda x: x.to(torch.complex128) * 1j,
    ]
    plain = cached(wide, *makers, clone=True)
    cache = cached(wide, *makers, spill=tmp_path / "s")
    for number in "013":
        assert torch.equal(cache[number].output, plain[number].output)
    assert torch.equal(plain["2"].output.to_dense(), wide)  # in memory a sparse tensor is kept
    assert "not kept" in repr(cache["2"].output)
    again = insitu.load_cache(tmp_path / "s")
    assert torch.equal(again["3"].output, plain["3"].output)
    assert repr(again) == repr(cache)


def test_a_tensor_that_two_modules_return_moves_to_disk_once(tmp_path, x):
    big = lambda x: x.repeat(100, 1)  # noqa: E731
    net = nn.Sequential(Gives(big), nn.Identity(), *[Gives(lambda x: x + 1) for _ in range(3)])

    def spilled(folder, modules):
        with NNsight(net).trace(x) as tracer:
            handle = tracer.cache(modules, budget=5000, spill=folder)
        return handle

    calls = net.register_forward_pre_hook(lambda *_: None)  # no forecast: bytes are counted
    cache = spilled(tmp_path / "both", ["0", "1", "2", "3", "4"])
    alone = spilled(tmp_path / "one", ["0", "2", "3", "4"])
    calls.remove()
    seen = reference.outputs(net, ["0", "1", "4"], x)
    for path, (value,) in seen.items():
        assert torch.equal(cache[path].output, value)
    bytes_of = lambda name: sum(f.stat().st_size for f in (tmp_path / name).glob("*.safetensors"))  # noqa: E731
    assert bytes_of("both") - bytes_of("one") < 500
    assert cache.size_bytes == alone.size_bytes


def test_a_disk_that_is_full_at_the_very_end_keeps_nothing(tmp_path, monkeypatch, net, x):
    def full(folder, records, model):
        assert list(folder.glob("shard-*"))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("insitu.engine.cache.store.write_index", full)
    with pytest.raises(OSError, match="No space left"):
        with NNsight(net).trace(x) as tracer:
            tracer.cache(spill=tmp_path / "s")
    assert not list(tmp_path.iterdir())


# Forecasts and names ------------------------------------------------------------------------------


MANY_ROWS = torch.ones(1000, 5)


class Threaded(nn.Module):
    """Runs its layer in a thread of its own too, on something larger."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x):
        other = threading.Thread(target=self.layer, args=(MANY_ROWS,))
        other.start()
        other.join()
        return self.layer(x)


@pytest.mark.parametrize("inputs", [False, True])
def test_a_forecast_counts_no_other_threads_calls(x, inputs):
    model = NNsight(Threaded())
    expected = forecast(model._module, lambda: model._module(x), chosen(model, "layer"),
                        Plan(inputs=inputs))  # fmt: skip
    with model.trace(x) as tracer:
        cache = tracer.cache("layer", include_inputs=inputs)
    assert expected.size_bytes == cache.size_bytes == (1 + inputs) * x.nbytes


def test_a_place_where_there_is_no_module_is_passed_over(x):
    net = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
    net[0].register_module("adapter", None)
    net[1].register_module("scale", None)
    with NNsight(net).trace(x) as tracer:
        everything, named = tracer.cache(), tracer.cache("*")
    assert list(everything) == ["model", "model.0", "model.1"]
    assert list(named) == ["model.0", "model.1"]
    assert torch.equal(everything["1"].output, net(x))


@pytest.mark.filterwarnings("ignore:.torch.jit.*:DeprecationWarning")
def test_what_is_inside_a_compiled_script_is_no_module_to_cache(x):
    inside = nn.Sequential(nn.Linear(5, 5), nn.ReLU())
    net = nn.Sequential(torch.jit.script(inside), nn.Tanh())
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache("**")
    assert list(cache) == ["model", "model.0", "model.1"]
    assert torch.allclose(cache["0"].output, inside(x))


def test_a_long_table_ends_with_how_many_rows_are_left_out(x):
    cache = cached(x, *[lambda x, n=n: x.repeat(n + 1, 1) for n in range(LINES_MAX + 5)])
    lines = repr(cache).splitlines()
    assert len(lines) == LINES_MAX
    shown = sum(line.strip().startswith("model") for line in lines)  # "model" itself is one
    assert lines[-1] == f"  … and {len(cache) - shown} rows more"


@pytest.mark.parametrize(
    ("size", "told"),
    [(999, "999 B"), (1.4e9, "1.4 GB"), (9.99e11, "999 GB"), (2.5e12, "2.5 TB")],
)
def test_bytes_are_told_in_the_unit_that_suits_them(size, told):
    assert in_bytes(size) == told


def test_a_forecast_of_no_modules_is_of_no_bytes(net, x):
    expected = forecast(net, lambda: net(x), {}, Plan())
    assert (expected.size_bytes, dict(expected.modules)) == (0, {})


def test_a_cache_cannot_begin_when_its_trace_is_over(net, x):
    with NNsight(net).trace(x) as tracer:
        pass
    with pytest.raises(insitu.PassClosedError, match="is over"):
        tracer.cache()
