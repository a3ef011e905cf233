"""A pass held open between statements: run up to a site, look, edit, step, finish."""

import gc
import threading
import time
import warnings
from weakref import ref

import pytest
import torch
from leftovers import unparked
from reference import edited, outputs
from torch import nn

import insitu
from insitu import NNsight
from insitu.engine import held, running

PROMPT = "Once upon a time"


def test_run_up_to_a_site_look_edit_and_finish(net, x):
    model = NNsight(net)
    run = model.open(x)
    assert run.where == "start"
    assert run.value is None
    assert run.until(model.layer1) is run
    assert run.where == "layer1.output"
    assert torch.equal(run.value, net.layer1(x))
    model.layer1.output = run.value * 2
    assert torch.equal(run.value, net.layer1(x) * 2)
    out = run.finish()
    assert run.where == "finished"
    assert torch.equal(out, edited(net, {"layer1": lambda value, call: value * 2}, x))


def test_reading_a_site_moves_the_pass_there(net, x):
    model = NNsight(net)
    run = model.open(x)
    given = model.layer2.input
    assert run.where == "layer2.input"
    assert run.value[0][0] is given
    model.layer2.output
    assert run.where == "layer2.output"
    assert "layer2.output" in repr(run)
    run.close()
    assert run.where == "closed"


def test_steps_go_from_module_to_module(net, x):
    run = NNsight(net).open(x)
    places = []
    while run.step().where != "finished":
        places.append(run.where)
    assert places == ["layer1.output", "layer2.output", "model.output"]
    run = NNsight(net).open(x)
    assert run.step(2).where == "layer2.output"
    assert run.step(99).where == "finished"


def test_paths_name_sites(llm):
    run = llm.open(PROMPT)
    run.until("transformer.h.1.input")
    assert run.where == "transformer.h.1.input"
    run.until("transformer.h.1.mlp")
    assert run.where == "transformer.h.1.mlp.output"
    run.until("lm_head.output")
    assert run.where == "lm_head.output"
    with pytest.raises(insitu.UnknownModuleError, match="did you mean"):
        run.until("transformer.hh.1")
    logits = llm.lm_head.output
    assert torch.equal(run.finish().logits, logits)


def test_a_site_that_has_passed_is_an_error_and_the_run_goes_on(net, x):
    model = NNsight(net)
    for passes_before in range(2):
        run = model.open(x)
        run.until(model.layer2)
        if passes_before:  # the order is known: the pass does not move
            with pytest.raises(insitu.OutOfOrderError, match=r"layer1\.output"):
                run.until(model.layer1)
            assert run.where == "layer2.output"
        assert torch.equal(run.finish(), net(x))


def test_an_error_between_two_statements_leaves_the_pass_parked(net, x):
    model = NNsight(net)
    run = model.open(x)
    model.layer1.output
    with pytest.raises(ZeroDivisionError):
        model.layer1.output * (1 / 0)
    assert run.where == "layer1.output"
    assert torch.equal(run.finish(), net(x))


def test_a_pass_lives_across_executed_cells(net, x):
    space = {"model": NNsight(net), "x": x, "insitu": insitu}
    for cell in (
        "run = model.open(x)",
        "h = model.layer1.output",
        "model.layer1.output = h * 0",
        "run.step()",
        "out = run.finish()",
    ):
        exec(compile(cell, "<cell>", "exec"), space)
    assert torch.equal(space["out"], net.layer2(torch.zeros(1, 10)))


def test_a_trace_of_the_same_model_while_a_pass_is_open(net, x):
    model = NNsight(net)
    run = model.open(x)
    run.until(model.layer1)
    with model.trace(x * 2):
        other = model.layer1.output
        out = model.output
    assert torch.equal(other, net.layer1(x * 2))
    assert torch.equal(out, net(x * 2))
    assert torch.equal(model.layer1.output, net.layer1(x))
    assert torch.equal(run.finish(), net(x))


def test_opening_a_second_pass_closes_the_first(net, x):
    model = NNsight(net)
    first = model.open(x)
    first.step()
    second = model.open(x)
    assert first.where == "closed"
    with pytest.raises(insitu.PassClosedError, match="is over"):
        first.step()
    assert torch.equal(second.finish(), net(x))


def test_passes_of_two_models_are_open_at_once(net, x, llm):
    model = NNsight(net)
    one, two = model.open(x), llm.open(PROMPT)
    one.step()
    two.step()
    assert one.where == "layer1.output"
    assert two.where.startswith("transformer.")
    two.finish()
    assert torch.equal(one.finish(), net(x))


def test_closing_twice_is_safe_and_finishing_twice_is_not(net, x):
    run = NNsight(net).open(x)
    run.finish()
    with pytest.raises(insitu.PassClosedError, match="is over"):
        run.finish()
    run.close()
    run.close()
    assert run.where == "finished"
    for go_on in (run.step, lambda: run.until("layer1"), run.finish):
        with pytest.raises(insitu.PassClosedError):
            go_on()


def test_closing_a_pass_that_never_started(net, x):
    model = NNsight(net)
    run = model.open(x)
    run.close()
    assert run.where == "closed"
    with pytest.raises(insitu.NoTraceError):
        model.layer1.output


def test_finishing_at_once_runs_the_model(net, x):
    assert torch.equal(NNsight(net).open(x).finish(), net(x))


def test_as_a_context_manager_a_run_closes_itself(net, x):
    model = NNsight(net)
    with model.open(x) as run:
        run.step()
    assert run.where == "closed"
    with pytest.raises(ZeroDivisionError), model.open(x) as run:
        run.step()
        1 / 0
    assert run.where == "closed"


@pytest.mark.parametrize("started", [False, True])
def test_a_dropped_run_closes_itself_with_a_warning(net, x, started):
    model = NNsight(net)
    run = model.open(x)
    if started:
        run.step()
    with pytest.warns(insitu.InsituWarning, match="dropped and has been closed"):
        run = None
        gc.collect()
    with model.trace(x):
        out = model.output
    assert torch.equal(out, net(x))


def test_a_run_dropped_after_its_end_does_not_warn(net, x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = NNsight(net).open(x)
        run.finish()
        del run
        gc.collect()


def test_an_error_in_the_model_ends_the_run(net, x):
    model = NNsight(net)
    run = model.open(x)
    model.layer1.output = insitu.force(torch.ones(1, 3))
    with pytest.raises(RuntimeError, match="multiplied"):
        run.step()
    assert run.where == "finished"
    assert torch.equal(model.open(x).finish(), net(x))


def in_a_thread(work):
    """What `work` raised in a thread of its own."""
    raised = []

    def call():
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_another_thread_cannot_go_on_with_the_pass(net, x):
    model = NNsight(net)
    run = model.open(x)
    run.step()
    for work in (
        run.step,
        run.finish,
        lambda: run.until("layer2"),
        lambda: model.layer2.output,
        lambda: model.layer1.output,
        lambda: setattr(model.layer1, "output", torch.zeros(1, 10)),
    ):
        error = in_a_thread(work)
        assert isinstance(error, insitu.PassClosedError), work
        assert "another thread" in str(error)
    assert run.where == "layer1.output"
    assert torch.equal(run.finish(), net(x))


def test_a_pass_that_has_not_started_belongs_to_its_thread_too(net, x):
    run = NNsight(net).open(x)
    assert isinstance(in_a_thread(run.step), insitu.PassClosedError)
    assert torch.equal(run.finish(), net(x))


def test_a_run_closed_by_another_thread_harms_neither(net, x):
    model = NNsight(net)
    run = model.open(x)
    run.step()

    def close_and_trace():
        run.close()
        for _ in range(3):
            with model.trace(x):
                assert torch.equal(model.layer1.output, net.layer1(x))

    assert in_a_thread(close_and_trace) is None
    with model.trace(x):
        assert torch.equal(model.layer1.output, net.layer1(x))


def test_what_another_thread_closed_ends_at_the_next_trace_of_its_own(net, x):
    model, inner = NNsight(net), NNsight(nn.Linear(5, 5))
    with model.trace(x):
        model.layer1.output
        with inner.trace(x):  # its worker is parked, and remembers the one it went back to
            inner.output
    before = unparked()
    run = model.open(x)
    run.step()
    assert in_a_thread(run.close) is None
    with torch.no_grad():
        with inner.trace(x):
            inner.output
        assert not torch.is_grad_enabled()
    assert not unparked() - before
    assert run.where == "closed"


def test_a_generation_held_open(llm):
    expected = llm._module.generate(**llm.tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=3)
    run = llm.open(PROMPT, generate=3)
    run.until(llm.lm_head)
    assert run.where == "lm_head.output"
    run.step()  # the root's own output
    run.until(llm.transformer.h[0])
    assert run.where == "transformer.h.0.output (step 1)"
    assert torch.equal(run.finish(), expected)


def test_an_edit_in_one_step_of_a_held_generation(llm):
    encoded = llm.tokenizer(PROMPT, return_tensors="pt")
    path = "transformer.h.1.mlp"

    def at_step_one(value, call):
        return value + 3 if call == 1 else None

    expected = edited(
        llm._module,
        {path: at_step_one},
        call=lambda: llm._module.generate(**encoded, max_new_tokens=3),
    )
    run = llm.open(PROMPT, generate=3)
    run.until("model")
    run.until(path)
    llm[path].output += 3
    assert torch.equal(run.finish(), expected)


def test_values_along_a_held_pass_are_what_hooks_see(llm):
    ids = torch.tensor([[5, 6, 7]])
    paths = [f"transformer.h.{i}" for i in range(4)]
    expected = outputs(llm._module, paths, ids)
    run = llm.open(ids)
    for path in paths:
        assert torch.equal(run.until(path).value, expected[path][0])
    run.close()


# Ends ---------------------------------------------------------------------------------------------


def test_at_exit_each_thread_closes_its_own_passes(net, x):
    """As the interpreter does at its end; see test_faults_everywhere for a real one."""
    mine, theirs = NNsight(net).open(x).step(), []
    begun, ended = threading.Event(), threading.Event()

    def hold():
        theirs.append(NNsight(net).open(x).step())
        begun.set()
        ended.wait(30)
        theirs[0].close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(30)
    try:
        held._close_all()
        assert mine.where == "closed"
        assert theirs[0].where == "layer1.output"
    finally:
        ended.set()
        thread.join()


def test_a_pass_of_a_thread_that_has_ended_is_closed_and_forgotten(net, x):
    runs = []
    in_a_thread(lambda: runs.append(NNsight(net).open(x).step()))
    worker = ref(runs[0]._pass.worker)
    runs.pop().close()
    for _ in range(500):  # the system may take a moment to end the thread
        if worker() is None:
            break
        gc.collect()
        time.sleep(0.01)
    assert worker() is None
    with NNsight(net).trace(x) as tracer:
        out = tracer.result
    assert torch.equal(out, net(x))


def test_the_passes_around_a_piece_of_code_are_found_from_the_inside(net, x):
    model, other = NNsight(net), NNsight(nn.Linear(5, 5))
    assert running.around_here() == []
    run = model.open(x)
    with model.trace(x) as outer, other.trace(x) as inner:
        around = running.around_here()
        elsewhere = []
        in_a_thread(lambda: elsewhere.extend(running.around_here()))
    assert around == [run._pass, inner._run, outer._run]
    assert elsewhere == []
    run.close()


def test_who_has_stopped_listening_is_forgotten_at_the_next_move(net, x):
    class Listener:
        moves = 0

        def heard(self):
            Listener.moves += 1

    gone, there = Listener(), Listener()
    with NNsight(net).open(x) as run:
        run.on_move(gone.heard)
        run.on_move(there.heard)
        del gone
        run.step()
        assert Listener.moves == 1
        run.step()
        assert Listener.moves == 2


def test_a_module_that_stands_at_its_input_can_be_looked_at_and_changed(net, x):
    with NNsight(net).open(x) as run:
        run.until("layer2.input")
        assert run.where == "layer2.input"
        assert torch.equal(run.value[0][0], net.layer1(x))
        assert repr(run).startswith("<pass at layer2.input: ")
        assert torch.equal(run.finish(), net(x))
