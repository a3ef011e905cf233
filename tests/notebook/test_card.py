import re

import pytest
import torch

from insitu import NNsight

PROMPT = "The Eiffel Tower is in"


def test_sites_come_in_forward_order_with_their_numbers(cell):
    shown = cell(
        f"%%trace model '{PROMPT}'\n"
        "h = model.transformer.h[1].output\nlogits = model.lm_head.output"
    )
    first, second = (line for line in shown.text.splitlines() if ".output" in line)
    norm = f"{cell.names['h'].norm():.2f}"
    assert first.split()[0] == "transformer.h.1.output"
    assert first.split()[1] == "2"
    assert f"[{', '.join(map(str, cell.names['h'].shape))}]" in first
    assert "float32" in first
    assert norm in first
    assert first.endswith("read")
    assert second.split()[0] == "lm_head.output"


def test_one_write_is_measured_against_the_bare_forward(cell):
    model = cell.names["model"]
    cell.names["ids"] = model.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    shown = cell(
        "%%trace model ids\nmodel.transformer.h[1].output[:] *= -1\nlogits = model.lm_head.output"
    )
    with torch.no_grad():
        before = model._module(cell.names["ids"]).logits[0, -1].softmax(-1)
    after = cell.names["logits"][0, -1].softmax(-1)
    moved = f"{(before - after).abs().sum() / 2:.2f} TV"
    write = next(line for line in shown.text.splitlines() if "edited in place" in line)
    assert write.endswith(moved)
    assert f"The cell moved next-token probabilities by {moved}" in shown.text
    assert moved in shown.html


def test_several_writes_are_measured_one_after_the_other(cell):
    edits = ["model.transformer.h[0].output[:] *= -1", "model.transformer.h[2].output[:, -1] = 0"]
    alone = cell(f"%%trace model '{PROMPT}'\n{edits[0]}").text
    both = cell(f"%%trace model '{PROMPT}'\n" + "\n".join(edits)).text
    of_first = re.search(r"edited in place\s+([\d.]+) TV", alone)[1]
    assert re.findall(r"edited in place\s+([\d.]+) TV", both)[0] == of_first
    assert len(re.findall(r"edited in place\s+([\d.]+) TV", both)) == 2
    assert "all but" not in both


@pytest.mark.parametrize(
    ("edit", "how"),
    [
        ("model.transformer.h[0].output = model.transformer.h[0].output * 2", "replaced"),
        ("model.transformer.h[0].output[:] *= 2", "edited in place"),
        ("model.transformer.h[0].attn.output[0][:] = 1", "edited in place"),
        ("model.transformer.h[1].input = model.transformer.h[1].input * 2", "replaced"),
        ("model.transformer.h[1].input[:] = 1", "edited in place"),
        ("model.output.logits[:, -1, 5] = 99", "edited in place"),
    ],
)
def test_every_way_of_writing_is_seen_and_explains_the_change(cell, edit, how):
    shown = cell(f"%%trace model '{PROMPT}'\n{edit}")
    assert how in shown.text
    assert "all but" not in shown.text
    assert "no effect" not in shown.text
    assert " TV" in shown.text


def test_a_write_to_what_nobody_reads_is_flagged(cell):
    cell.names["ids"] = cell.names["model"].tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    shown = cell("%%trace model ids\nmodel.lm_head.output[:, 0] = 5")
    assert "0.00 TV, no effect" in shown.text
    assert "no effect" in shown.html


def test_a_skip_is_a_write_with_an_effect_of_its_own(cell):
    shown = cell(
        f"%%trace model '{PROMPT}'\nmodel.transformer.h[2].skip(model.transformer.h[0].output * 3)"
    )
    line = next(line for line in shown.text.splitlines() if "skipped" in line)
    assert "transformer.h.2.output" in line
    assert " TV" in line
    assert "all but" not in shown.text


def test_more_writes_than_are_replayed_get_the_total_alone(cell):
    shown = cell(
        f"%%trace model '{PROMPT}'\nfor block in model.transformer.h:\n"
        "    block.ln_1.output[:] *= 2\n    block.mlp.output[:] *= 2\n    block.output[:] *= 2\n"
    )
    assert "Each write's own effect was not measured: there are 12 writes" in shown.text
    assert "The cell moved next-token probabilities by" in shown.text


def test_a_generation_is_measured_step_by_step(cell):
    shown = cell(
        f"%%trace model '{PROMPT}' --generate 3\n"
        "for step in tracer.iter[:]:\n"
        "    if step == 1:\n"
        "        model.transformer.h[1].output[:] *= -3\n"
    )
    steps = step_rows(shown.text)
    assert next(iter(steps)) == "1"
    assert float(steps["1"]) > 0
    assert "At step " in shown.text
    write = next(line for line in shown.text.splitlines() if "edited in place" in line)
    assert write.endswith(f"{steps['1']} TV")


def step_rows(text):
    """How far each step told on a card moved."""
    rows = re.findall(r"^ +(\d+) .* ([\d.]+)$", text, re.MULTILINE)
    return dict(rows)


def test_steps_that_nothing_wrote_or_moved_are_folded(cell):
    shown = cell(
        f"%%trace model '{PROMPT}' --generate 5\n"
        "for step in tracer.iter[:]:\n"
        "    if step == 3:\n"
        "        model.lm_head.output[:, 0] = model.lm_head.output[:, 0]\n"
    )
    assert step_rows(shown.text) == {"3": "0.00"}
    assert "4 other steps: unmoved" in shown.text
    assert "4 other steps: unmoved</summary>" in shown.html
    assert "by 0.00 TV at every step: no effect" in shown.text


def test_padded_prompts_agree_with_the_bare_forward_at_every_step(cell):
    cell.names["prompts"] = ["Once upon a time", "The"]
    shown = cell("%%trace model prompts --generate 3\nids = model.generator.output")
    assert step_rows(shown.text) == {"0": "0.00", "1": "0.00", "2": "0.00"}
    assert "unmoved" not in shown.text
    assert "TV:" not in shown.text


def test_the_prompt_that_moved_most_is_shown(cell):
    cell.names["prompts"] = ["The Eiffel Tower", "The Colosseum is in"]
    shown = cell("%%trace model prompts\nmodel.transformer.h[1].output[1] *= -1")
    assert "(prompt 2 of 2, which moved most)" in shown.text


def test_nan_is_counted_and_stands_out(cell):
    shown = cell(
        f"%%trace model '{PROMPT}'\nmodel.transformer.h[1].output[0, 0, :3] = float('nan')\n"
        "model.lm_head.output"
    )
    assert '<span class="flag">3 NaN</span>' in shown.html
    assert "logits hold NaN" in shown.text


def test_tokens_are_data(cell):
    cell.names["prompt"] = "<script>alert(1)</script> & \x07\n"
    shown = cell("%%trace model prompt\nmodel.lm_head.output")
    assert "<script" not in shown.html
    assert "\x07" not in shown.html + shown.text
    assert "\\x07" in shown.html
    assert "↵" in shown.html


def test_a_card_is_the_same_every_time_and_runs_no_script(cell):
    code = f"%%trace model '{PROMPT}'\nmodel.transformer.h[1].output[:] *= 2"
    first, second = cell(code), cell(code)
    assert first.html == second.html
    assert first.text == second.text
    assert not re.search(r"<script|https?://|\son\w+=", first.html)


def test_a_card_reads_well_without_its_sheet(cell):
    shown = cell(f"%%trace model '{PROMPT}'\nmodel.transformer.h[1].output[:] *= -1")
    html = shown.html.partition("</style>")[2]
    assert "one forward · 1 site met, 1 written" in re.sub(r"<[^>]*>", "", html)
    assert "</code> <code>" in html  # tokens do not run together
    assert "background-color:#" in html
    assert "var(" not in html  # JupyterLab keeps literal values only


def test_a_distance_is_explained_once_where_there_is_one(cell):
    wrote = cell(f"%%trace model '{PROMPT}'\nmodel.transformer.h[1].output[:] *= -1")
    assert wrote.html.count("total variation distance") == 1
    assert wrote.text.count("total variation distance") == 1
    read = cell(f"%%trace model '{PROMPT}'\nmodel.lm_head.output")
    assert "total variation" not in read.html + read.text


def test_forty_sites_stay_small_and_fold(cell):
    shown = cell(
        f"%%trace model '{PROMPT}'\nfor block in model.transformer.h:\n"
        "    for part in (block.ln_1, block.attn.c_attn, block.attn.c_proj, block.attn,\n"
        "                 block.ln_2, block.mlp.c_fc, block.mlp.act, block.mlp.c_proj,\n"
        "                 block.mlp, block):\n"
        "        part.output\n"
    )
    assert "40 sites met" in shown.html
    assert "<details" in shown.html
    assert len(shown.html.encode()) < 30_000


def test_time_is_told_when_asked_for_and_says_when_it_is_the_first_pass(cell):
    code = f"%%trace model '{PROMPT}' --time\nmodel.lm_head.output"
    assert "first pass" in cell(code).text
    assert "median of" in cell(code).text
    assert "first pass" not in cell(code).text


def test_a_generation_is_timed_against_a_bare_generation(cell):
    assert "median of" in cell(f"%%trace model '{PROMPT}' --generate 2 --time\nx = 1").text


def test_a_plain_module_gets_a_card_without_tokens(cell, net, x):
    cell.names.update(net=NNsight(net), x=x)
    shown = cell("%%trace net x\nnet.layer1.output[:] = 0\nout = net.output")
    assert "layer1.output" in shown.text
    assert "token" not in shown.text


def test_a_stopped_pass_still_shows_what_it_met(cell):
    shown = cell(f"%%trace model '{PROMPT}'\nmodel.transformer.h[0].output[:] = 0\ntracer.stop()")
    assert shown.error is None
    assert "edited in place" in shown.text
    assert "The pass was stopped" in shown.text


def test_comparing_leaves_the_model_and_the_random_state_alone(cell):
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5)).train()
    cell.names.update(net=NNsight(net), x=torch.rand(4, 3))
    torch.manual_seed(0)
    cell("%%trace net x --time\nnet[0].output")
    drawn = torch.rand(1)
    torch.manual_seed(0)
    net(cell.names["x"])
    assert torch.equal(torch.rand(1), drawn)
    assert net[0].num_batches_tracked == 2  # the trace and the line above; not the comparison


def test_an_edited_input_tensor_does_not_spoil_the_comparison(cell):
    cell.names["ids"] = cell.names["model"].tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    shown = cell("%%trace model ids\nmodel.transformer.wte.input[:] = 7")
    assert "no effect" not in shown.text


def test_an_input_that_carries_state_is_not_run_again(cell):
    cell.names["ids"] = cell.names["model"].tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    cell("from transformers import DynamicCache\nprompt = dict(input_ids=ids)")
    cell("prompt['past_key_values'] = DynamicCache()")
    shown = cell("%%trace model prompt\nlogits = model.lm_head.output")
    assert shown.error is None
    assert "not compared with the bare model: the input holds DynamicCache" in shown.text
    assert "lm_head.output" in shown.text
