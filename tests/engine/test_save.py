"""`.save()` marks a value and returns it."""

import pytest
import torch

import insitu
from insitu import NNsight
from insitu.engine.save import begin_session, end_session, keeping

SAVED = [
    torch.ones(2), [1], {"a": 1}, (1, 2), {1}, frozenset({1}), 3, 2.5, True, "text", b"bytes",
    1j, range(3),
]  # fmt: skip


@pytest.mark.parametrize("value", SAVED, ids=lambda v: type(v).__name__)
def test_saving_returns_the_very_value(net, x, value):
    with NNsight(net).trace(x):
        assert value.save() is value
        assert insitu.save(value) is value


def test_names_need_no_saving(net, x):
    model = NNsight(net)
    with model.trace(x):
        norms = list().save()  # noqa: C408 - the reference's spelling
        norms.append(model.layer1.output.norm().item().save())
        hidden = model.layer1.output.save()
    assert norms == [hidden.norm().item()]


def test_saving_outside_a_trace_raises(net, x):
    with NNsight(net).trace(x):
        pass
    for save in (lambda: insitu.save(1), lambda: torch.ones(1).save(), lambda: [].save()):
        with pytest.raises(insitu.NoTraceError, match="outside a trace"):
            save()


def test_values_are_saved_between_the_traces_of_a_session(net, x):
    model = NNsight(net)
    begin_session()
    try:
        found = list().save()  # noqa: C408 - the reference's spelling
        for scale in (1, 2):
            with model.trace(x * scale):
                found.append(model.layer1.output.save())
        begin_session()
        end_session()
        assert insitu.save(found) is found
    finally:
        end_session()
    assert all(
        torch.equal(one, net.layer1(x * scale)) for one, scale in zip(found, (1, 2), strict=True)
    )
    with pytest.raises(insitu.NoTraceError, match="outside a trace"):
        found.save()


@pytest.mark.parametrize("remote", [None, "local"])
def test_a_list_is_saved_between_the_traces_of_a_session_here_as_elsewhere(llm, remote):
    with llm.session(remote=remote):
        found = list().save()  # noqa: C408 - the reference's spelling
        for prompt in ("Once upon a time", "The city"):
            with llm.trace(prompt):
                found.append(llm.lm_head.output[0, -1].argmax().item())
    plain = [
        llm.trace(prompt).logits[0, -1].argmax().item()
        for prompt in ("Once upon a time", "The city")
    ]
    assert found == plain
    with pytest.raises(KeyError), llm.session(remote=remote):
        raise KeyError("mine")
    with pytest.raises(insitu.NoTraceError):
        found.save()


def test_anything_can_be_saved_by_the_function(net, x):
    thing = object()
    with NNsight(net).trace(x):
        assert insitu.save(thing) is thing


def test_object_and_classes_of_the_users_have_no_save(net, x):
    class Mine:
        pass

    with NNsight(net).trace(x):
        assert not hasattr(object(), "save")
        assert not hasattr(Mine(), "save")
        assert not hasattr(torch.nn.Linear(1, 1), "save")


def test_a_users_own_save_method_wins(net, x):
    class Results(list):
        def save(self):
            return "mine"

    with NNsight(net).trace(x):
        assert Results().save() == "mine"
    assert Results().save() == "mine"


def test_saving_in_a_pass_held_open(net, x):
    model = NNsight(net)
    run = model.open(x)
    hidden = model.layer1.output.save()
    run.finish()
    assert torch.equal(hidden, net.layer1(x))


def test_what_is_saved_within_is_kept_by_identity_and_only_there(net, x):
    model = NNsight(net)
    with keeping() as kept:
        with model.trace(x) as tracer:
            hidden = model.layer1.output.save()
            norms = [1.0].save()
            cache = tracer.cache().save()
            with keeping() as inner:
                inside = (1,).save()
        after = {}.save()  # where values are sent back, the end of the trace is not the end
    assert list(map(id, kept.values())) == list(kept)
    assert [value is it for value, it in zip(
        kept.values(), (hidden, norms, cache, after), strict=True
    )] == [True] * 4  # fmt: skip
    assert list(inner.values()) == [inside]
    with pytest.raises(insitu.NoTraceError):
        insitu.save(1)


def test_a_cache_is_saved_by_its_method_where_a_trace_runs(net, x):
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache()
        assert cache.save() is cache
    with pytest.raises(insitu.NoTraceError, match="outside a trace"):
        cache.save()


def test_a_local_part_of_a_block_that_runs_here_changes_nothing(net, x):
    model = NNsight(net)
    with model.trace(x):
        hidden = model.layer1.output
        with insitu.local():
            doubled = hidden * 2
        model.layer1.output = doubled
        out = model.output
    assert torch.equal(out, net.layer2(net.layer1(x) * 2))
    with pytest.raises(KeyError, match="mine"), model.trace(x), insitu.local():
        raise KeyError("mine")
