"""Forks of a generation that a cell's code made: the code runs again, beside the notebook."""

import gc
import weakref

import pytest
import torch
from asking import value_of

from insitu import LanguageModel, UsageError
from insitu.widgets.generation_view import watch_generation

TEXT = "The Eiffel Tower is in the city of"
COUNT = 8
WRITES = (
    "for step in tracer.iter[:]:\n"
    "    seen.append(step)\n"
    "    total += model.layers[0].resid_post[0, -1]\n"
    "    model.layers[1].resid_post[:, -1] += push * (step + 1)\n"
)


@pytest.fixture(scope="module")
def demo():
    return LanguageModel("demo")


@pytest.fixture
def ran(cell, demo, monkeypatch):
    """What a cell that generates with the demo model ends in; names are the notebook's."""
    found = []
    monkeypatch.setattr("insitu.notebook.trace_magic.display", found.append)
    cell.names["model"] = demo

    def run(body, options="", count=COUNT, **names):
        cell.names.update(names)
        shown = cell(
            f"%%trace model {TEXT!r} --generate {count} --view generation {options}\n{body}"
        )
        assert shown.error is None
        return found[-1]

    return run


@pytest.fixture
def written(ran, demo):
    """A generation that its cell has turned another way, and the names it used."""
    width = demo._module.config.n_embd
    push = torch.randn(width, generator=torch.Generator().manual_seed(3)) * 1.5
    view = ran(WRITES, seen=[], total=torch.zeros(width), push=push)
    plain = watch_generation(demo, TEXT, max_new_tokens=COUNT)
    assert ids(view.branches[0].own) != ids(plain.branches[0].own)  # the cell turned it
    return view


def ids(steps):
    return [step.id for step in steps]


def told(steps):
    return [(step.id, step.chance, step.entropy, step.texts, step.values) for step in steps]


def test_a_fork_without_a_change_is_the_same_text_to_the_last_bit(written):
    main = written.branches[0].own
    assert (written.forks, written.unforkable) == (True, "")
    for step in (0, 3, COUNT - 1):
        same = written.fork(step, main[step].id)
        assert same.state == "done"
        assert told(same.own) == told(main[step:])  # what the cell wrote is in force, and where
        assert [it.is_forced for it in same.own] == [True] + [False] * (len(same.own) - 1)


def test_a_fork_with_another_token_differs_from_its_step_on_alone(written, demo):
    main = written.branches[0].own
    other = main[3].top[1][1] if main[3].top[0][1] == main[3].id else main[3].top[0][1]
    branch = written.fork(3, other)
    whole = written.record.steps(branch)
    assert told(whole[:3]) == told(main[:3])
    assert whole[3].id == other
    assert whole[3].values == main[3].values  # the choice is another, what led to it is not
    assert whole[3].chance == {number: chance for _, number, chance in main[3].top}[other]

    # The oracle: the same loop, written out by hand.
    push = torch.randn(demo._module.config.n_embd, generator=torch.Generator().manual_seed(3)) * 1.5
    given = [*ids(main[:3]), other]

    def forced(tokens, scores):
        at = tokens.shape[1] - len(written.record.prompt)
        if at < len(given):
            scores = torch.full_like(scores, -torch.inf)
            scores[:, given[at]] = 0
        return scores

    with demo.generate(TEXT, max_new_tokens=COUNT, logits_processor=[forced]) as tracer:
        for step in tracer.iter[:]:
            demo.layers[1].resid_post[:, -1] += push * (step + 1)
        out = tracer.result.save()
    assert ids(whole) == out[0, len(written.record.prompt) :].tolist()


def test_the_notebooks_names_stay_those_of_the_first_run(written, cell):
    names = {
        name: value for name, value in cell.names.items() if name in ("seen", "total", "step", "_")
    }
    total, tracer = names["total"].clone(), cell.names["tracer"]
    written.fork(2, 5)
    value_of(written, "fork", branch=0, step=4, id=7)
    assert {name: cell.names[name] for name in names} == names
    assert cell.names["seen"] == list(range(COUNT))
    assert torch.equal(cell.names["total"], total)
    assert cell.names["tracer"] is tracer
    cell.names["push"] = None  # and what the notebook does later is nothing to a fork
    del cell.names["seen"]
    main = written.branches[0].own
    assert told(written.fork(1, main[1].id).own) == told(main[1:])


def test_an_edit_holds_from_the_step_of_its_fork_on_beside_what_the_cell_wrote(written):
    main = written.branches[0].own
    asked = []

    def turned(model):
        asked.append(1)
        model.layers[2].resid_post[:] *= -1

    branch = written.fork(3, edit=turned)
    assert branch.start == 3
    assert len(asked) == len(branch.own)  # the steps before are not its
    assert branch.own[0].values[0][1] == main[3].values[0][1]  # layer 1 is the cell's, as it was
    assert branch.own[0].values[0][2] != main[3].values[0][2]
    further = written.fork(5, 9, branch=branch.number)  # a fork of it keeps its steps and its edit
    assert told(written.record.steps(further)[:5]) == told(written.record.steps(branch)[:5])
    assert further.own[0].values == branch.own[2].values
    undone = written.fork(5, edit="pass", branch=branch.number)
    assert ids(written.record.steps(undone)[:5]) == ids(written.record.steps(branch)[:5])
    assert undone.own[0].values != branch.own[2].values


def test_functions_chances_caches_and_displays_of_the_cell_are_those_of_the_first_run(ran, cell):
    cell("def note(it):\n    global tally\n    tally += 1\n    notes.append(it)\n    return it")
    view = ran(
        "for step in tracer.iter[:]:\n"
        "    noise = note(torch.randn(model._module.config.n_embd))\n"
        "    model.layers[0].resid_post[:, -1] += noise\n"
        "    print(len(notes), tally)\n"
        "len(cache)",
        "--cache transformer.h.0",
        torch=torch, notes=[], tally=10,
    )  # fmt: skip
    main, state = view.branches[0].own, torch.get_rng_state()
    assert (len(cell.names["notes"]), cell.names["tally"]) == (COUNT, 10 + COUNT)
    cache = cell.names["cache"]
    assert told(view.fork(4, main[4].id).own) == told(main[4:])
    assert (len(cell.names["notes"]), cell.names["tally"]) == (COUNT, 10 + COUNT)
    assert cell.names["cache"] is cache
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            "x = input() if model is None else 1\n",
            "the cell calls input(), which asks for an answer",
        ),
        ("x = next(numbers)\n", "the cell uses numbers, a list_iterator, which goes on"),
        ("x = eval('1')\n", "the cell calls eval(), which runs code that it is given as text"),
        ("x = !echo 1\n", "the cell runs a magic or a shell command"),
        ("x = big.shape\n", "the cell names 257 MiB of tensors"),
    ],
)
def test_what_cannot_run_again_says_why_in_the_view(ran, body, why):
    names = {"numbers": iter([1, 2]), "big": torch.empty(257 * 2**20, dtype=torch.uint8)}
    names = {name: value for name, value in names.items() if name in body}
    writes = "model.layers[1].resid_post[:] *= 0.5\n"
    view = ran(body + writes, count=2, **names)
    assert not view.forks
    assert why in view.unforkable
    with pytest.raises(UsageError, match="cannot be forked") as caught:
        view.fork(1, 5)
    assert why in caught.value.why
    only_reads = ran(body, count=2)
    assert only_reads.forks  # it changed nothing, so a fork does without it
    assert only_reads.fork(1, 5).state == "done"


def test_what_a_cell_stores_first_is_no_obstacle_from_its_last_run(ran):
    body = (
        "pairs = zip([1], [2])\nbig = len(list(pairs))\nmodel.layers[1].resid_post[:] *= 0.5\nbig"
    )
    before = {"pairs": iter([1]), "big": torch.empty(257 * 2**20, dtype=torch.uint8)}
    view = ran(body, count=2, **before)
    assert view.unforkable == ""
    assert view.fork(1, 5).state == "done"


def test_a_quiet_cell_is_not_taken_for_one_that_writes_nothing(ran):
    view = ran("model.layers[1].resid_post[:] *= -1", "--quiet", count=3)
    main = view.branches[0].own
    assert told(view.fork(0, main[0].id).own) == told(main)


def test_a_fork_whose_cell_fails_or_stops_says_so(ran):
    body = "for step in tracer.iter[:]:\n    if len(seen) > 2: {}\n    seen.append(step)\n"
    view = ran(body.format("tracer.stop()"), seen=[], count=6)
    assert view.branches[0].state == "stopped"
    again = view.fork(1, 5)
    assert again.state == "stopped"
    fails = "for step in tracer.iter[:]:\n    if step and {}: 1 / 0\n"
    view = ran(fails.format("model.layers[1].resid_post[0, -1, 0] == -7"), count=3)
    with pytest.raises(ZeroDivisionError):
        view.fork(1, edit="model.layers[1].resid_post[0, -1, 0] = -7")
    lane = view.lanes[1]
    assert lane["state"] == "failed"
    assert lane["trouble"]["what"] == "ZeroDivisionError: division by zero"


def test_the_button_ends_a_fork_after_its_step(written):
    written.observe(lambda _: written._runs.stop(), "latest")
    branch = written.fork(2, 5, max_new_tokens=6)
    assert (branch.state, len(branch.own)) == ("stopped", 2)


def test_a_view_keeps_neither_the_model_nor_the_notebook_alive(cell, ran, tiny_gpt2):
    module, tokenizer = tiny_gpt2
    cell.names["model"] = model = LanguageModel(module, tokenizer=tokenizer)
    cell.names["unused"] = unused = torch.zeros(3)
    view = ran("model.layers[1].resid_post[:] *= 0.5", count=2)
    gone = weakref.ref(model), weakref.ref(unused)
    assert view.forks
    for name in ("model", "unused", "tracer"):
        del cell.names[name]
    del model, unused
    gc.collect()
    assert [it() for it in gone] == [None, None]
    with pytest.raises(UsageError, match="model of this generation is gone"):
        view.fork(1, 5)
