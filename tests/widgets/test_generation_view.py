"""A generation watched step by step, and its forks; the oracle is transformers' own generate."""

import gc
import json
import signal
from pathlib import Path

import pytest
import torch
from asking import ask, trouble_with, value_of

import insitu
from insitu.errors import InputError, UsageError
from insitu.widgets.generation_record import Measure, Record, Step
from insitu.widgets.generation_view import GenerationView, watch_generation

SAMPLES = Path(__file__).parents[2] / "labextension" / "samples"
PROMPT = "Once upon a time"
COUNT = 6


def ids_of(llm, text=PROMPT):
    return llm.tokenizer(text, return_tensors="pt")["input_ids"]


def generated(llm, ids, count=COUNT, **settings):
    """What transformers generates: new ids, and the logits of each step."""
    found = llm._module.generate(
        ids, max_new_tokens=count, output_logits=True, return_dict_in_generate=True, **settings
    )
    return found.sequences[0, ids.shape[1] :].tolist(), torch.cat(found.logits)


def lens_of(llm, ids):
    """Each layer's residual stream at the last position, by hooks, read by norm and unembedding."""
    streams = []
    handles = [
        block.register_forward_hook(
            lambda _, args, out: streams.append((out[0] if isinstance(out, tuple) else out)[0, -1])
        )
        for block in llm._module.transformer.h
    ]
    with torch.no_grad():
        llm._module(ids)
        for handle in handles:
            handle.remove()
        return llm._module.lm_head(llm._module.transformer.ln_f(torch.stack(streams)))


def test_every_step_is_what_transformers_generates(llm):
    view = watch_generation(llm, PROMPT, max_new_tokens=COUNT, top=4)
    ids, logits = generated(llm, ids_of(llm))
    steps = view.branches[0].own
    assert [step.id for step in steps] == ids
    assert view.branches[0].state == "done"
    for step, row in zip(steps, logits.float(), strict=True):
        chances = row.softmax(-1)
        best = chances.topk(4)
        assert step.token == llm.tokenizer.decode([step.id])
        assert step.chance == pytest.approx(chances[step.id].item(), rel=1e-4)
        assert [number for _, number, _ in step.top] == best.indices.tolist()
        assert [it[2] for it in step.top] == pytest.approx(best.values.tolist(), rel=1e-4)
        entropy = torch.distributions.Categorical(logits=row).entropy().item()
        assert step.entropy == pytest.approx(entropy, rel=1e-4)


def test_every_layer_is_what_hooks_and_the_unembedding_give(llm):
    view = watch_generation(llm, PROMPT, max_new_tokens=3)
    ids = ids_of(llm)
    for step in view.branches[0].own:
        lens = lens_of(llm, ids).float()
        best = lens.softmax(-1).max(-1)
        target = lens[-1].log_softmax(-1)
        far = (target.exp() * (target - lens.log_softmax(-1))).sum(-1)
        assert step.values[0] == pytest.approx(best.values.tolist(), rel=1e-3)
        assert step.values[1] == pytest.approx(far.tolist(), abs=1e-3)
        assert list(step.texts) == [llm.tokenizer.decode([it]) for it in best.indices]
        ids = torch.cat([ids, torch.tensor([[step.id]])], 1)


def test_each_step_is_sent_as_it_comes_and_is_small(llm):
    came = []

    def watched(view):
        view.observe(lambda change: came.append((change["new"], len(view.branches[0].own))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GenerationView, "show_now", watched)
        watch_generation(llm, PROMPT, max_new_tokens=COUNT)
    latest = [(new, had) for new, had in came if isinstance(new, dict) and "step" in new]
    assert [(new["number"], had) for new, had in latest] == [(n, n + 1) for n in range(COUNT)]
    assert max(len(json.dumps(new)) for new, _ in latest) < 50_000


def test_a_fork_with_another_token_goes_on_as_transformers_would(llm):
    view = watch_generation(llm, PROMPT, max_new_tokens=COUNT)
    main = [step.id for step in view.branches[0].own]
    other = next(number for _, number, _ in view.branches[0].own[2].top if number != main[2])
    branch = view.fork(2, other)
    ids, logits = generated(llm, torch.tensor([[*ids_of(llm)[0], *main[:2], other]]), COUNT - 3)
    assert [step.id for step in branch.own] == [other, *ids]
    assert (branch.parent, branch.start, branch.own[0].is_forced) == (0, 2, True)
    assert branch.own[0].top == view.branches[0].own[2].top
    assert branch.own[1].chance == pytest.approx(logits[0].softmax(-1)[ids[0]].item(), rel=1e-3)
    assert [step.id for step in view.record.steps(branch)] == [*main[:2], other, *ids]
    rare = int(logits[0].argmin())
    chance = view.fork(0, rare).own[0].chance
    first = generated(llm, ids_of(llm), 1)[1][0]
    assert chance == pytest.approx(first.softmax(-1)[rare].item(), rel=1e-3)


def zeroed(llm, ids, count):
    """What is generated while a layer gives nothing at its last position, by a hook."""
    block = llm._module.transformer.h[1]

    def zero(_, args, out):
        (out[0] if isinstance(out, tuple) else out)[:, -1] = 0
        return out

    handle = block.register_forward_hook(zero)
    try:
        return generated(llm, ids, count)[0]
    finally:
        handle.remove()


def wipe(model):
    model.layers[1].resid_post[:, -1] = 0


def test_a_fork_with_an_edit_goes_on_as_a_hooked_model_would(llm):
    with llm.edit() as edited:
        llm.layers[1].resid_post[:, -1] = 0
    view = watch_generation(llm, PROMPT, max_new_tokens=COUNT)
    main = [step.id for step in view.branches[0].own]
    expected = zeroed(llm, torch.tensor([[*ids_of(llm)[0], *main[:3]]]), COUNT - 3)
    for edit in (wipe, edited, "model.layers[1].resid_post[:, -1] = 0"):
        branch = view.fork(3, edit=edit)
        assert [step.id for step in branch.own] == expected
    assert [it.why for it in view.branches[1:3]] == ["wipe", "llm.layers[1].resid_post[:, -1] = 0"]
    assert llm._edits == []


def test_a_fork_of_a_fork_keeps_its_edit_and_leaves_the_branch_that_chose(llm):
    view = watch_generation(llm, PROMPT, max_new_tokens=COUNT)
    main = [step.id for step in view.branches[0].own]
    view.fork(1, edit=wipe)
    own = [step.id for step in view.branches[1].own]
    deeper = view.fork(3, 5, branch=1)
    expected = zeroed(llm, torch.tensor([[*ids_of(llm)[0], main[0], *own[:2], 5]]), COUNT - 4)
    assert [step.id for step in deeper.own] == [5, *expected]
    assert deeper.parent == 1
    assert view.fork(0, 5, branch=2).parent == 0
    first = view.fork(2, 5)
    assert view.fork(2, 6, branch=first.number).parent == 0
    assert view.fork(1, 6, branch=1).parent == 1


def test_an_edit_and_a_token_together_are_asked_of_the_edited_model(llm):
    view = watch_generation(llm, PROMPT, max_new_tokens=3)
    branch = view.fork(0, 5, edit=wipe)
    plain = view.fork(0, edit=wipe)
    assert branch.own[0].top == plain.own[0].top
    assert branch.own[0].id == 5
    assert branch.own[0].top != view.branches[0].own[0].top


def test_a_forced_end_ends(llm):
    view = watch_generation(llm, PROMPT, max_new_tokens=5, eos_token_id=7)
    assert [step.id for step in view.fork(1, 7).own] == [7]


def test_an_interrupt_leaves_what_came_so_far(llm):
    def interrupt(change):
        if change["new"].get("number") == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        show = GenerationView.observe
        patch.setattr(GenerationView, "show_now", lambda view: show(view, interrupt, "latest"))
        view = watch_generation(llm, PROMPT, max_new_tokens=COUNT)
    assert [lane["state"] for lane in view.lanes] == ["stopped"]
    assert len(view.branches[0].own) == 3
    view.unobserve_all("latest")
    assert view.fork(3, 5).state == "done"  # it can go on from where it stopped


def test_the_views_own_button_ends_a_run_after_its_step(llm):
    view = watch_generation(llm, PROMPT, max_new_tokens=2)
    view.observe(lambda _: view._runs.stop(), "latest")
    assert view.fork(1, edit=wipe, max_new_tokens=5).state == "stopped"
    assert len(view.branches[1].own) == 1


def test_the_front_end_forks_by_id_text_or_edit(llm):
    view = watch_generation(llm, PROMPT, max_new_tokens=4)
    assert value_of(view, "fork", branch=0, step=1, id=5) == {"branch": 1}
    text = llm.tokenizer.decode([40])
    ask(view, "fork", branch=0, step=2, token=text)
    ask(view, "fork", branch=0, step=2, edit="model.layers[1].resid_post[:] *= 0")
    assert [lane["state"] for lane in view.lanes] == ["done"] * 4
    assert view.branches[2].own[0].token == text
    assert view.focus == 3


def test_what_cannot_be_forked_is_told(llm):
    view = watch_generation(llm, PROMPT, max_new_tokens=2)
    for given, what in (
        ({"step": 9, "id": 1}, "there is no step 9 to fork at"),
        ({"step": 1}, "a fork needs a difference"),
        ({"step": 1, "token": "many words in one"}, "is not one token"),
        ({"step": 1, "edit": "model.layers["}, "the edit is no Python"),
        ({"step": 1, "branch": 4, "id": 1}, "there is no branch 4"),
    ):
        assert what in trouble_with(view, "fork", **given)["what"]
    assert len(view.branches) == 1
    ask(view, "fork", step=1, edit="model.layers[99].resid_post[:] = 0")
    assert view.lanes[1]["state"] == "failed"
    assert "99" in view.lanes[1]["trouble"]["what"]
    with pytest.raises(UsageError, match="an edit was given as int"):
        view.fork(1, edit=3)


def test_a_view_outlives_its_model(tiny_gpt2):
    module, tokenizer = tiny_gpt2
    model = insitu.LanguageModel(module, tokenizer=tokenizer)
    view = watch_generation(model, PROMPT, max_new_tokens=2)
    del model
    gc.collect()
    assert (
        trouble_with(view, "fork", step=1, id=5)["what"] == "the model of this generation is gone."
    )
    assert view.text()


def test_what_is_no_single_text_is_refused(llm):
    with pytest.raises(InputError, match="was given 2 prompts"):
        watch_generation(llm, ["Once upon", "Once upon"])
    for settings in ({"num_beams": 2}, {"num_return_sequences": 3}, {"streamer": object()}):
        with pytest.raises(UsageError, match="cannot be watched"):
            watch_generation(llm, PROMPT, **settings)


def test_a_generation_that_fails_says_so_in_its_view_and_raises(llm):
    with pytest.raises(IndexError), pytest.MonkeyPatch.context() as patch:
        made = []
        patch.setattr(GenerationView, "show_now", lambda view: made.append(view))
        watch_generation(llm, PROMPT, edit=lambda model: model.layers[99])
    assert made[0].lanes[0]["state"] == "failed"


def test_show_opens_it_in_one_line(llm):
    view = insitu.show(llm, generate=PROMPT, max_new_tokens=2)
    assert isinstance(view, GenerationView)
    assert len(view.branches[0].own) == 2


def test_a_result_of_it_can_be_used_like_any(llm):
    view = watch_generation(llm, PROMPT, max_new_tokens=3)
    result = view.result()
    assert result.names == ("layer", "step")
    assert result.values[2, 1].item() == pytest.approx(view.branches[0].own[1].values[0][2])
    assert result.further["KL from the final prediction"].values[-1].abs().max() < 1e-3
    with pytest.raises(UsageError, match="no numbers of layers"):
        GenerationView.of(["a"]).result()


# Plain data ---------------------------------------------------------------------------------------


def small_generation():
    record = Record("Generation", ["The", " <b>"], range(2), [Measure("probability", "", (0, 1))])
    main = record.branch(why="main", state="done")
    fork = record.branch(why="' Rome'", parent=0, start=1, state="done")
    top = ((" Paris", 4, 0.5), (" Rome", 5, 0.25), ("\n", 6, 0.125))
    main.own += [
        Step(" in", 3, 0.75, 0.5, ((" in", 3, 0.75),), ("a", "b"), ((0.25, 0.75),)),
        Step(" Paris", 4, 0.5, 1.25, top, ("c", " Paris"), ((0.125, 0.5),)),
        Step(".", 8, float("nan"), float("nan"), (), (), ()),
    ]
    fork.own.append(Step(" Rome", 5, 0.25, 1.25, top, ("c", " Paris"), ((0.125, 0.5),), True))
    return GenerationView(record)


def test_the_sample_is_what_python_sends():
    view = small_generation()
    sent = {name: getattr(view, name) for name in ("title", "prompt", "layers", "measures")}
    sent["lanes"] = view.lanes
    sent["steps"] = [value_of(view, "steps", branch=number)["steps"] for number in (0, 1)]
    file = SAMPLES / "generation_view.json"
    assert json.loads(file.read_text()) == json.loads(json.dumps(sent))


def test_the_measure_and_what_is_typed_of_a_fork_stay_when_the_cells_output_is_written_anew(llm):
    view = watch_generation(llm, PROMPT, max_new_tokens=2)
    typed = {"measure": 1, "draft": {"token": " king", "edit": "model.layers[0]"}}
    view.set_state(typed)  # as the page says it
    view.fork(1, edit="model.layers[2].mlp_out[:] = 0")
    view.show_twins()
    assert {name: view.get_state()[name] for name in typed} == typed


def test_a_view_that_opens_late_is_told_all_steps_in_parts():
    view = GenerationView.of([str(n) for n in range(4500)])
    first, told = 0, []
    while True:
        came = value_of(view, "steps", branch=0, first=first)
        told += [step["token"] for step in came["steps"]]
        first = len(told)
        if not came["more"]:
            break
    assert told == [str(n) for n in range(4500)]


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([[float("nan"), float("inf")]]),
        torch.ones(1, 2, dtype=torch.bfloat16),
        torch.ones(1, 2, dtype=torch.complex64),
        torch.ones(1, 2, dtype=torch.bool),
        torch.ones(1, 0),
    ],
    ids=str,
)
def test_numbers_of_any_kind_are_shown(values):
    view = GenerationView.of(["\x00\u202e"], values, entropy=[float("nan")])
    value_of(view, "steps", branch=0)
    assert "\x00" not in view.text()
    assert "<script" not in view.html()


def test_plain_data_may_lack_anything():
    assert GenerationView.of().text() == "Generation: \n0 main: "
    view = GenerationView.of(["a", "b"], top=[[("a", 0.5)], []], texts=[["x"], ["y"]])
    assert view.layers == ["0"]
    view.add("c", entropy=0.5, values=[2.0], texts=["z"])
    assert view.record.text(view.branches[0]) == "abc"
    with pytest.raises(UsageError, match="entropy has 1 steps, and there are 2 tokens"):
        GenerationView.of(["a", "b"], entropy=[0.1])
    with pytest.raises(UsageError, match="the values have 1 axes"):
        GenerationView.of(["a", "b"], torch.ones(2))
    with pytest.raises(UsageError, match="a step was given 3 layers"):
        view.add("d", values=[1, 2, 3])
    with pytest.raises(UsageError, match="this view cannot fork"):
        view.fork(0, 1)


def test_the_twins_tell_branches_steps_and_markup_as_text():
    view = small_generation()
    text, html = view.text(), view.html()
    assert "Rome*" in text
    assert "from step 1 of 0" in text
    assert "&lt;b&gt;" in html
    assert "<b>" not in html.split("</b>", 1)[1].split("<table", 1)[0]
    assert html == small_generation().html()
    data, _ = view._repr_mimebundle_()
    assert "render" in str(view._esm), "run `make widgets`"
    assert set(data) >= {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"}
