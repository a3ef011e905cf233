import pytest
import torch

from insitu import NNsight
from insitu.engine.written import leaves
from insitu.notebook.forwards import put
from insitu.notebook.recorder import Recorder, _stats


@pytest.fixture
def nn_model(net):
    return NNsight(net)


def record(tracer):
    tracer.watch = recorder = Recorder()
    return recorder


def test_reads_and_writes_are_recorded_in_forward_order(nn_model, x):
    recorder = record(tracer := nn_model.trace(x))
    with tracer:
        nn_model.layer1.output[:] *= 2
        nn_model.layer2.output = nn_model.layer2.output + 1
        _ = nn_model.output
    assert [v.path for v in recorder.visits] == ["layer1.output", "layer2.output", "model.output"]
    assert [v.written for v in recorder.visits] == ["edited in place", "replaced", ""]
    assert recorder.visits[0].left.norm == 2 * recorder.visits[0].arrived.norm
    assert recorder.trouble == ""


def test_writes_to_inference_tensors_are_seen(nn_model, x):
    recorder = record(tracer := nn_model.trace(x))
    with torch.inference_mode(), tracer:
        _ = nn_model.layer1.output
        nn_model.layer2.output[:] = 0
    assert [v.written for v in recorder.visits] == ["", "edited in place"]


def test_nothing_read_is_kept_alive(nn_model, x):
    recorder = record(tracer := nn_model.trace(x))
    with tracer:
        _ = nn_model.layer1.output
    assert recorder.writes == []
    assert recorder._standing is None


def test_a_value_that_cannot_be_measured_does_not_harm_the_run(nn_model, x):
    class Strange(dict):
        def items(self):
            raise RuntimeError("no")

    recorder = record(tracer := nn_model.trace(x))
    recorder.arrived(nn_model.layer1, 0, Strange(), 1, 0)
    assert "RuntimeError" in recorder.trouble
    with tracer:
        assert nn_model.output is not None


def test_whole_numbers_have_no_norm_and_small_floats_do():
    assert _stats(torch.arange(3)).norm is None
    assert _stats(torch.ones(4, dtype=torch.float8_e5m2)).norm == 2.0
    assert _stats(torch.ones(4, dtype=torch.bfloat16)).norm == 2.0
    assert _stats(torch.tensor([1.0, float("nan")])).nans == 1
    assert _stats(torch.tensor(3 + 4j)).norm == 5.0


def test_nested_tensors_are_found_and_put_back():
    value = (torch.zeros(1), {"a": [torch.ones(1), None]})
    assert [leaf for leaf, _ in leaves(value)] == [(0,), (1, "a", 0)]
    changed = put(value, {(1, "a", 0): torch.full((1,), 5.0)})
    assert changed[1]["a"][0] == 5
    assert value[1]["a"][0] == 1
    assert changed[0] is value[0]
