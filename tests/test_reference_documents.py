"""The reference documents, run cell by cell: every cell runs, and does what its text says."""

import io
import re
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
import reference_cells
import torch
import walkthrough

import insitu

pytestmark = pytest.mark.skipif(
    not reference_cells.FOLDER.is_dir(), reason="the reference documents are not here"
)
EIFFEL = "The Eiffel Tower is in the city of"
run = cache(walkthrough.run)


class Cell:
    """The only cell of a document that holds a text, and the names as it left them."""

    def __init__(self, document, text):
        (self.result,) = [it for it in run(document) if text in it.cell.code]
        self.printed = self.result.printed

    def __getattr__(self, name):
        return self.result.names[name]


@pytest.fixture(scope="module")
def demo():
    """The oracle: the demo model in plain transformers, and its tokenizer."""
    wrapped = insitu.LanguageModel("demo")
    return wrapped._module, wrapped.tokenizer


def plain(demo, prompt, change=None):
    """What plain transformers computes of a prompt; `change` is a forward hook of each path."""
    model, tokenizer = demo
    handles = [
        model.get_submodule(path).register_forward_hook(lambda m, a, out, hook=hook: hook(out))
        for path, hook in (change or {}).items()
    ]
    with torch.no_grad():
        out = model(tokenizer(prompt, return_tensors="pt")["input_ids"], output_hidden_states=True)
    for handle in handles:
        handle.remove()
    return out


def generated(demo, prompt, count):
    """The tokens that plain transformers generates."""
    model, tokenizer = demo
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    return model.generate(ids, max_new_tokens=count, do_sample=False)[0, ids.shape[1] :]


# Every document -----------------------------------------------------------------------------------


@pytest.mark.parametrize("document", sorted(reference_cells.CUTS))
def test_every_cell_runs_or_is_left_out_for_its_reason(document):
    results = run(document)
    wrong = [it for it in results if it.status not in ("ok", "skipped")]
    told = [f"{it.cell.first}  {it.status}: {it.reason}\n{it.printed}" for it in wrong]
    assert not wrong, f"{walkthrough.summary(document, results)}\n\n" + "\n".join(told)


def test_every_line_of_the_tables_is_used():
    codes = [it.code for document in reference_cells.CUTS for it in reference_cells.cells(document)]
    rewritten = [walkthrough.rewritten(code) for code in codes]
    for skip in walkthrough.SKIPS:
        assert any(skip.text in code for code in rewritten), skip
    for aside in walkthrough.ASIDES:
        assert sum(aside.text in code for code in rewritten) == 1, aside
    for it in walkthrough.INSTEAD:
        assert any(re.search(it.pattern, code) for code in codes), it


def test_a_run_puts_back_what_cells_change_of_the_process():
    before = insitu.CONFIG.API.KEY, insitu.CONFIG.APP.DEBUG, sys.modules["__main__"]
    run("004")
    assert (insitu.CONFIG.API.KEY, insitu.CONFIG.APP.DEBUG, sys.modules["__main__"]) == before
    assert "nnsight" not in sys.modules


def test_a_cell_that_fails_and_one_that_need_not_be_left_out_are_told(monkeypatch):
    codes = ["a = 1", "b = a / 0", "VLLM(1)", "c = 'VLLM'"]
    cells = [reference_cells.Cell("004", n, n, code) for n, code in enumerate(codes)]
    monkeypatch.setattr(walkthrough, "cells", lambda document: cells)
    results = walkthrough.run("004")
    assert [it.status for it in results] == ["ok", "failed", "skipped", "passes"]
    assert results[1].reason == "ZeroDivisionError: division by zero"
    assert "vLLM is not installed" in walkthrough.summary("004", results)


def test_cells_find_the_readers_files_in_a_folder_that_goes():
    before = Path.cwd()
    assert Cell("004", "open('myfile.txt'").text == "Simple enough!"
    with walkthrough.a_shell():
        assert Path.cwd() != before
        Path("left.txt").touch()
    assert Path.cwd() == before
    assert not Path("left.txt").exists()


# The walkthrough, in its order --------------------------------------------------------------------


def test_values_of_a_small_net():
    cell = Cell("004", "layer2_input = model.layer2.input")
    assert torch.equal(cell.layer2_input, cell.layer1_output)
    assert torch.equal(Cell("004", "output = model.output.save()\n\n").output, cell.layer2_output)
    cell = Cell("004", "max_idx = ")
    assert torch.equal(cell.max_idx, cell.layer1_output.argmax(dim=1))
    assert torch.equal(cell.total, cell.layer1_output.sum() + cell.layer2_output.sum())


def test_changes_in_a_small_net():
    cell = Cell("004", "before = model.layer1.output.clone()")
    assert cell.before[:, 0] != 0
    assert cell.after[:, 0] == 0
    assert torch.equal(cell.after[:, 1:], cell.before[:, 1:])
    cell = Cell("004", "noise = 0.1 *")
    assert torch.equal(cell.modified, cell.original + cell.noise)
    assert "Caught error: index 10 is out of bounds" in Cell("004", "except IndexError").printed


def test_invokes_of_a_small_net():
    cell = Cell("004", "out2 = model.output.save()\n\nprint")
    torch.testing.assert_close(cell.out1, cell.net(cell.input))
    torch.testing.assert_close(cell.out2, cell.net(cell.input * 2))
    several = Cell("004", "# Use it in the second invoker!")
    torch.testing.assert_close(several.original_out, cell.out1)
    torch.testing.assert_close(several.modified_out[0], cell.net.layer2.bias)
    both = Cell("004", "all_outputs = ").all_outputs
    torch.testing.assert_close(both, torch.cat([cell.out1, cell.out2]))


def test_a_prompt_is_traced(demo):
    cell, want = Cell("004", '"Predicted token:"'), plain(demo, EIFFEL)
    torch.testing.assert_close(cell.logits, want.logits)
    assert cell.hidden_states.shape == (8, 128)
    assert cell.printed.splitlines()[-1] == "Predicted token:  Paris"


def test_tokens_are_generated(demo):
    want = generated(demo, "The Eiffel Tower is in", 3)
    assert torch.equal(Cell("004", "output = llm.generator.output").output[0, -3:], want)
    cell = Cell("004", "tokens_per_step = list()")
    assert torch.equal(torch.stack(cell.tokens_per_step), want)
    want = generated(demo, "Hello", 3)
    assert torch.equal(torch.stack(Cell("004", "with tracer.all():").tokens), want)


def test_steps_are_told_apart():
    cell = Cell("004", "with tracer.iter[:] as step_idx:")
    assert len(cell.hidden_states) == 5
    untouched = Cell("004", "tracer.next()  # Move")
    torch.testing.assert_close(cell.hidden_states[0], untouched.hs0)
    torch.testing.assert_close(cell.hidden_states[1], untouched.hs1)
    assert untouched.hs0.shape == untouched.hs1.shape == (1, 128)
    assert not torch.equal(untouched.hs0, untouched.hs1)


def test_a_step_is_changed_alone(demo):
    states = Cell("004", "with tracer.iter[:] as step_idx:").hidden_states
    model, calls = demo[0], []

    def note(out, first):
        calls.append(out[0].clone()) if not first else None
        return torch.zeros_like(out) if first and len(calls) == 2 else out

    handles = [
        model.transformer.h[0].register_forward_hook(lambda m, a, out: note(out, True)),
        model.transformer.h[-1].register_forward_hook(lambda m, a, out: note(out, False)),
    ]
    generated(demo, "Hello", 5)
    for handle in handles:
        handle.remove()
    for got, want in zip(states, calls, strict=True):
        torch.testing.assert_close(got, want)


def test_gradients_are_those_of_autograd(demo):
    kept = []

    def keep(out):
        kept.append(out.detach().requires_grad_())
        return kept[0]

    model, tokenizer = demo
    handle = model.transformer.h[-1].register_forward_hook(lambda m, a, out: keep(out))
    model(**tokenizer("Hello", return_tensors="pt")).logits.sum().backward()
    handle.remove()
    torch.testing.assert_close(Cell("001", "grad = hs.grad").grad, kept[0].grad[0])
    torch.testing.assert_close(Cell("004", "    grad = hs.grad").grad, kept[0].grad[0])
    cell = Cell("004", "hs.grad[:] = 0")
    torch.testing.assert_close(cell.original_grad, kept[0].grad[0])
    assert not cell.modified_grad.any()


@pytest.mark.parametrize("document", ["001", "004"])
def test_operations_are_listed_and_read(document, demo):
    listed = [it.printed for it in run(document) if ".attn.source)" in it.cell.code]
    assert "attention_interface_0" in listed[0]
    assert "self_c_proj_0" in listed[0]
    name = {"001": "attn_out", "004": "attn_output"}[document]
    read = Cell(document, f"{name} = {'model' if document == '001' else 'llm'}"
                ".transformer.h[0].attn.source").result.names[name]  # fmt: skip
    assert read[0].shape == (1, 1, 4, 32)  # batch, pos, head, d_head


@pytest.mark.parametrize("document", ["001", "004"])
def test_a_cache_holds_what_layers_returned(document, demo):
    cell = Cell(document, "cache = tracer.cache()")
    want = plain(demo, "Hello").hidden_states[1]
    torch.testing.assert_close(cell.cache["model.transformer.h.0"].output, want)
    torch.testing.assert_close(cell.cache.model.transformer.h[0].output, want)
    assert cell.printed.count("torch.Size([1, 128])") == (2 if document == "004" else 1)


def test_invokes_meet_at_a_barrier(demo):
    cell = Cell("004", "barrier = tracer.barrier(2)")
    model, tokenizer = demo
    longest = len(tokenizer("_ _ _ _ _ _ _")["input_ids"])
    tokenizer.padding_side = "left"
    ids = tokenizer.pad(
        {"input_ids": [tokenizer("The Eiffel Tower is in")["input_ids"]]},
        padding="max_length", max_length=longest, return_tensors="pt",
    )["input_ids"]  # fmt: skip
    with torch.no_grad():
        want = model(inputs_embeds=model.transformer.wte(ids)).logits.argmax(dim=-1)
    assert torch.equal(cell.out, want)
    assert cell.printed.startswith("Prediction:")


def test_a_result_a_skip_and_a_stop(demo):
    want = plain(demo, "Hello")
    cell = Cell("004", "result = tracer.result()")
    torch.testing.assert_close(cell.result.names["result"].logits, want.logits)
    assert "logits" in cell.printed
    cell = Cell("004", ".skip(layer0_out)")
    assert torch.equal(cell.layer1_out, cell.layer0_out)
    torch.testing.assert_close(cell.layer0_out, want.hidden_states[1])
    torch.testing.assert_close(Cell("004", "tracer.stop()").layer0, want.hidden_states[1][0])


@pytest.mark.parametrize("document", ["001", "004"])
def test_a_scan_gives_the_width(document):
    cell = Cell(document, ".scan(")
    assert cell.dim == 128
    assert cell.printed.split()[-1] == "128"


def test_an_edited_model_predicts_paris_and_the_first_still_rome():
    cell = Cell("004", "with llm.edit() as llm_edited:")
    assert [line.split()[-1] for line in cell.printed.splitlines()[:2]] == ["Rome", "Paris"]


def test_edits_in_place_are_cleared(demo):
    model = Cell("004", "llm.clear_edits()").llm
    torch.testing.assert_close(model(**demo[1](EIFFEL, return_tensors="pt")).logits,
                               plain(demo, EIFFEL).logits)  # fmt: skip


# The README ---------------------------------------------------------------------------------------


def zeroed(out):
    return torch.zeros_like(out)


def test_the_readme_begins_with_a_zeroed_layer(demo):
    want = plain(demo, EIFFEL, {"transformer.h.0": zeroed})
    torch.testing.assert_close(Cell("001", "output.logits.argmax").output.logits, want.logits)


def test_the_readme_reads_and_replaces(demo):
    cell, want = Cell("001", "# Access attention output"), plain(demo, EIFFEL)
    torch.testing.assert_close(cell.logits, want.logits)
    kept = []
    plain(demo, EIFFEL, {"transformer.h.0.mlp": kept.append, "transformer.h.5": kept.append})
    torch.testing.assert_close(cell.mlp_output, kept[0])
    torch.testing.assert_close(cell.layer_output, kept[1][0])
    cell = Cell("001", "noise = 0.01 *")
    assert torch.equal(cell.result.names["result"], cell.hs + cell.noise)


def test_the_readme_batches_prompts(demo):
    cell = Cell("001", "# No-arg invoke: operates on ALL")
    assert torch.equal(cell.out_all, torch.cat([cell.out1, cell.out2]))
    want = [plain(demo, prompt).logits[:, -1] for prompt in ("Hello", "World", "Test")]
    torch.testing.assert_close(cell.out_all, torch.cat(want), atol=1e-4, rtol=1e-4)


def test_the_readme_gives_an_invoke_another_ones_embeddings(demo):
    cell = Cell("001", "# Second invoke: worker thread 2")
    torch.testing.assert_close(
        cell.output1[:, -1], plain(demo, "The Eiffel Tower is in").logits[:, -1],
        atol=1e-4, rtol=1e-4,
    )  # fmt: skip
    with torch.no_grad():
        want = demo[0](inputs_embeds=cell.embeddings).logits
    torch.testing.assert_close(cell.output2, want, atol=1e-4, rtol=1e-4)


def test_the_readme_generates(demo):
    want = generated(demo, "The Eiffel Tower is in", 3)
    cell = Cell("001", "output = model.generator.output")
    assert torch.equal(cell.output[0, -3:], want)
    assert cell.printed.strip() == "The Eiffel Tower is in the city of"
    tokens = Cell("001", "logits = list().save()\n    \n    # Iterate").logits
    assert torch.equal(torch.stack(tokens), generated(demo, "Hello", 5))
    assert len(Cell("001", "outputs = list().save()").outputs) == 5


def test_the_readme_iterates_in_one_invoke_and_reads_in_another(demo):
    cell = Cell("001", "final = model.output.save()")
    assert cell.hidden.shape == (1, 1, 128)
    assert cell.final.logits.shape == (1, 1, demo[0].config.vocab_size)


def test_the_readme_carries_a_value_through_a_session():
    cell = Cell("001", "with model.session() as session:")
    assert torch.equal(cell.hs2, cell.hs1.expand_as(cell.hs2))


def test_the_readme_applies_modules_where_it_likes(demo):
    cell = Cell("001", '"logit lens" view')
    assert torch.equal(cell.tokens, plain(demo, EIFFEL).logits[0].argmax(dim=-1))


# The reference by name ----------------------------------------------------------------------------


def test_the_reference_gives_one_prompt_the_states_of_another():
    cell = Cell("002", "cat_hidden = ")
    with torch.no_grad():
        module = cell.model._module
        want = module.lm_head(module.transformer.ln_f(cell.cat_hidden))
    torch.testing.assert_close(cell.output.logits[0], want, atol=1e-2, rtol=1e-2)  # in float16


def test_the_reference_computes_with_what_it_reads():
    cell = Cell("002", "mean.save()")
    assert torch.equal(cell.mean, cell.h.mean(dim=-1))
    assert torch.equal(cell.transposed, cell.h.transpose(1, 2))


def test_the_reference_keeps_a_gradient():
    cell = Cell("002", "hidden.retain_grad()")
    (want,) = torch.autograd.grad(*again(cell))
    torch.testing.assert_close(cell.grad, want)
    assert cell.grad.any()


def again(cell):
    """The loss of the reference's cell, computed in plain torch, and the states it is from."""
    module, hidden = cell.model._module, cell.hidden.detach().requires_grad_()
    logits = module.lm_head(module.transformer.ln_f(hidden))
    return -logits[0, -1, cell.target_token], hidden


def test_the_generation_that_the_reference_means(demo):
    """Its cell gives `generate` no prompt, and is left out; the error says to write this."""
    model = insitu.LanguageModel("demo")
    with pytest.raises(insitu.InputError, match=r"(?s)inside another pass.*model\.generate\("):
        with model.trace() as tracer:
            with tracer.invoke("Once upon a time"):
                model.transformer.h[5].output[:] *= 1.2
            model.generate(max_new_tokens=50).sum()
    with model.generate(max_new_tokens=50) as tracer:
        with tracer.invoke("Once upon a time"):
            model.transformer.h[5].output[:] *= 1.2
        output = tracer.result
    calls = []

    def scaled(module, args, out):
        calls.append(module)
        return out * 1.2 if len(calls) == 1 else out

    handle = demo[0].transformer.h[5].register_forward_hook(scaled)
    want = generated(demo, "Once upon a time", 50)
    handle.remove()
    assert torch.equal(output[0, -len(want) :], want)


# The release notes --------------------------------------------------------------------------------


def test_the_release_notes_describe_an_image():
    cell = Cell("003", "from nnsight import VisionLanguageModel")
    module, processor, found = cell.model._module, cell.model.processor, []
    given = processor(images=[cell.img], text="<image>\nDescribe this image", return_tensors="pt")
    with torch.no_grad():
        want = module.generate(**given, max_new_tokens=50, do_sample=False)
        layer = module.model.language_model.layers[-1]
        handle = layer.register_forward_hook(lambda m, args, out: found.append(out))
        module(**processor.tokenizer("Hello world", return_tensors="pt"))
    handle.remove()
    assert torch.equal(cell.output, want)
    torch.testing.assert_close(cell.hidden, found[0])


def test_the_release_notes_draw_with_a_unet_and_with_a_transformer():
    cell = Cell("003", "from nnsight import DiffusionModel")
    torch.manual_seed(0)  # as before the cell; weights that are made before they are read draw too
    pipeline = insitu.DiffusionModel("demo").pipeline
    (one,) = denoised(pipeline, "unet", 1)
    steps = denoised(pipeline, "unet", 50)
    (last,) = denoised(cell.flux.pipeline, "transformer", 1)
    torch.testing.assert_close(cell.denoiser_out[0], one)
    torch.testing.assert_close(cell.denoiser_outputs, steps)
    torch.testing.assert_close(cell.transformer_out[0], last)


def denoised(pipeline, name, steps):
    """What a pipeline's denoiser returns at each step, by a hook."""
    found = []
    pipeline.set_progress_bar_config(disable=True)
    hook = lambda m, args, out: found.append(out[0].clone())  # noqa: E731
    handle = getattr(pipeline, name).register_forward_hook(hook)
    pipeline("A cat", num_inference_steps=steps)
    handle.remove()
    return found


def test_loops_and_withs_of_the_release_notes_do_the_same(demo):
    loops, withs = Cell("003", "# Preferred: for-loop"), Cell("003", "# Still supported")
    want = generated(demo, "Hello", 5)
    assert torch.equal(torch.stack(withs.logits), want)
    assert torch.equal(torch.stack(loops.logits), want)
    assert len(loops.hs) == 3


def test_inputs_by_keyword_make_an_invoke(demo):
    cell = Cell("003", "# Now works correctly:")
    want = plain(demo, "Hello world").hidden_states[1][0]
    torch.testing.assert_close(cell.hidden, want)
    assert Cell("003", "# This would ERROR").output.logits.shape[1] == 2


def test_two_wrappers_of_one_module_both_work():
    cell = Cell("003", "model2 = NNsight(my_pytorch_model)")
    assert torch.equal(cell.out1, cell.out2)
    assert torch.equal(cell.out1, cell.out3)


# Streaming: blocks that run on a server, in a jail ------------------------------------------------


def last_block(demo, prompt):
    kept = []
    plain(demo, prompt, {"transformer.h.5": lambda out: kept.append(out) or out})
    return kept[0]


def said(cell):
    """What the status lines of a job say, without their times; and what else was printed."""
    line = re.compile(r"[\d-]+ [\d:,]+ [0-9a-f]{32} - ([A-Z]+: .*)")
    lines = cell.printed.splitlines()
    found = [line.fullmatch(it) for it in lines]
    return [it[1] for it in found if it], [it for it, known in zip(lines, found) if not known]  # noqa: B905


RECEIVED = "RECEIVED: Your job has been received and is waiting approval."
APPROVED = "APPROVED: Your job was approved and is waiting to be run."
RUNNING = "RUNNING: Your job has started running."
COMPLETED = "COMPLETED: Your job has been completed."


def test_a_streamed_value_is_logged_by_the_server(demo):
    cell = Cell("000", "# This will give you a remote LOG")
    torch.testing.assert_close(cell.out, plain(demo, "hello").logits)
    number = f"{last_block(demo, 'hello')[0, 0, 0].item():.4f}"
    phases, rest = said(cell)
    assert phases[:3] == [RECEIVED, APPROVED, RUNNING]
    assert re.fullmatch(rf"LOG: tensor\({number}.*\)", phases[3])
    assert phases[4:] == [COMPLETED]
    assert rest == str(cell.out).splitlines()


def test_a_streamed_value_is_printed_here_within_local(demo):
    cell = Cell("000", "# This will print locally")
    torch.testing.assert_close(cell.out, plain(demo, "hello").logits)
    number = f"{last_block(demo, 'hello')[0, 0, 0].item():.4f}"
    phases, rest = said(cell)
    assert phases == [RECEIVED, APPROVED, RUNNING, COMPLETED]
    assert re.fullmatch(rf"tensor\({number}.*\)", rest[0])
    assert rest[1:] == str(cell.out).splitlines()
    lines = cell.printed.splitlines()
    assert lines[2].endswith(RUNNING)
    assert lines[3] == rest[0]  # while it ran


def test_a_local_function_ablates_on_the_server(demo):
    cell = Cell("000", "# We use a local function to ablate")
    want = plain(demo, "hello", {"transformer.h.5": zeroed}).logits[:, -1:]
    torch.testing.assert_close(cell.out, want)
    assert not torch.allclose(want, plain(demo, "hello").logits[:, -1:], atol=1e-2)
    assert not cell.hs.any()
    assert cell.hs.shape == (1, 3, 128)
    assert said(cell)[0][-1] == COMPLETED


def test_a_marked_function_outside_of_local_is_refused_before_anything_is_sent():
    cell = Cell("000", "# no .local - will cause an error")
    assert (
        "FunctionWhitelistError: my_local_fn on line 5 is for local() parts alone." in cell.printed
    )
    assert said(cell)[0] == []
    assert torch.equal(cell.out, Cell("000", "# We use a local function to ablate").out)


def test_a_chat_is_streamed_word_by_word(demo):
    cell = Cell("000", "Initialize the state for decoding")
    want = generated(demo, EIFFEL, 20).tolist()
    assert cell.all_tokens == [want[-1:]]  # its list is made anew at each step
    with torch.no_grad():
        before = demo[1](EIFFEL, return_tensors="pt")["input_ids"][0].tolist() + want[:-1]
        logits = demo[0](torch.tensor([before])).logits[:, -1:]
    torch.testing.assert_close(cell.out, logits, atol=1e-4, rtol=1e-4)
    state = {"current_line": "", "current_line_length": 0}
    with redirect_stdout(io.StringIO()) as shown:
        print("Prompt: ", EIFFEL, "\n", end="")
        for token in want:
            state = cell.my_decoding_function([token], cell.llama, max_length=12, state=state)
    assert cell.printed == shown.getvalue()
    assert cell.state == state
    assert "Paris" in cell.printed
