"""Edits in a file: saved, loaded into another wrapper, refused where a file cannot hold them."""

import gc
import json
import linecache
import math
import pickle
import subprocess
import sys
import textwrap
import traceback
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import relu

import insitu
from insitu import EditsFileError, LanguageModel, NNsight, UsageError
from insitu.engine.capture.needs import needed


@pytest.fixture
def file(tmp_path):
    return tmp_path / "steer.safetensors"


def again(edited, file):
    """The edits of a wrapper, saved and loaded into another one of the same module."""
    edited.save_edits(file)
    return NNsight(edited._module).load_edits(file)


def header(file):
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["insitu_edits"])


def rewritten(file, change):
    """The same file with another header."""
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
        tensors = {name: opened.get_tensor(name) for name in names}
    document = header(file)
    change(document)
    save_file(tensors, file, {"insitu_edits": json.dumps(document)})


def shown():
    """The texts of edits that tracebacks would find."""
    return {name for name in linecache.cache if name.startswith("<edits")}


def doubled(value):
    return value * 2


# There and back -------------------------------------------------------------------------------


def test_a_loaded_edit_does_what_the_saved_one_did(net, x, file):
    model, direction = NNsight(net), torch.rand(10)
    with model.edit() as edited:
        model.layer1.output[:] += direction
    loaded = again(edited, file)
    want = net.layer2(net.layer1(x) + direction)
    assert torch.equal(loaded(x), want)
    with loaded.trace(x):
        out = loaded.output
    assert torch.equal(out, want)
    assert torch.equal(edited(x), want)
    assert torch.equal(NNsight(net)(x), net(x))


def test_loading_in_place_adds_to_the_wrapper_itself(net, x, file):
    model = NNsight(net)
    with model.edit() as edited:
        model.layer1.output[:] += 1
    edited.save_edits(file)
    other = NNsight(net)
    with other.edit(inplace=True):
        other.layer1.output[:] = 2
    assert other.load_edits(file, inplace=True) is other
    assert torch.allclose(other(x), net.layer2(torch.full((1, 10), 3.0)))
    added = other.load_edits(file)
    assert torch.allclose(added(x), net.layer2(torch.full((1, 10), 4.0)))
    assert [len(it.edits) for it in (other, added)] == [2, 3]
    other.clear_edits()
    assert torch.equal(other(x), net(x))


def test_several_edits_keep_their_order_and_what_they_share(net, x, file):
    model, log = NNsight(net), []
    with model.edit() as edited:
        model.layer1.output[:] = 1
        log.append("first")
    with edited.edit(inplace=True):
        edited.layer1.output[:] *= 3
        log.append("second")
        h = model.layer1.output
        edited.layer2.input = h + len(log)
    loaded = again(edited, file)
    assert torch.allclose(loaded(x), net.layer2(torch.full((1, 10), 5.0)))
    assert log == []
    assert torch.allclose(loaded(x), net.layer2(torch.full((1, 10), 7.0)))


def test_a_generation_is_edited_in_every_step(llm, file):
    favourite = torch.tensor(7)
    with llm.edit() as edited:
        assert llm.tokenizer.pad_token_id == llm.config.pad_token_id
        llm.lm_head.output[:, -1, favourite] = 1e4
    edited.save_edits(file)
    loaded = LanguageModel(llm._module, tokenizer=llm.tokenizer).load_edits(file)
    with loaded.generate("Once upon", max_new_tokens=4):
        ids = loaded.generator.output
    assert ids[0, -4:].tolist() == [7] * 4


@pytest.mark.parametrize("value", [
    3, True, None, 2.5, math.inf, 1 + 2j, "text", b"bytes", [1, [2, {"a": (3,)}]],
    {4: "x", (1, 2): [5]}, {1, 2}, frozenset({"a"}), slice(1, None, 2), range(3), ...,
    torch.float16, torch.device("cpu"), torch.Size([1, 2]), (), 10**30, -0.0,
])  # fmt: skip
def test_plain_values_come_back_as_they_were(net, x, file, value):
    model, got = NNsight(net), []
    with model.edit() as edited:
        model.layer1.output
        got.append(value)
    loaded = again(edited, file)
    loaded(x)
    held = loaded.edits[0].names.given()["got"]
    assert held == [value]
    assert type(held[0]) is type(value)
    assert got == []


def test_not_a_number_comes_back(net, x, file):
    model, nan = NNsight(net), math.nan
    with model.edit() as edited:
        model.layer1.output[:] = nan
    assert again(edited, file)(x).isnan().all()


@pytest.mark.parametrize("tensor", [
    torch.rand(3), torch.rand(()), torch.zeros(0, 4), torch.rand(3, 4).T, torch.rand(5)[1:3],
    torch.arange(3), torch.tensor([True]), torch.rand(2).half(), torch.rand(2).bfloat16(),
    torch.rand(2, dtype=torch.complex64), torch.rand(2, dtype=torch.complex128),
    torch.rand(3, requires_grad=True), nn.Parameter(torch.rand(2)), torch.rand(4).expand(3, 4),
], ids=lambda t: f"{t.dtype} {tuple(t.shape)}")  # fmt: skip
def test_tensors_come_back_as_they_were(net, file, tensor):
    model = NNsight(net)
    with model.edit() as edited:
        model.layer1.output = model.layer1.output + tensor.sum()
    held = again(edited, file).edits[0].names.given()["tensor"]
    assert torch.equal(held, tensor)
    assert held.dtype is tensor.dtype
    assert type(held) is type(tensor)
    assert held.requires_grad == tensor.requires_grad
    assert held.is_leaf


def test_tensors_stay_on_the_cpu_where_a_model_has_no_weights_yet(net, file):
    model, direction = NNsight(net), torch.rand(10)
    with model.edit() as edited:
        model.layer1.output = model.layer1.output + direction
    edited.save_edits(file)
    names = OrderedDict(layer1=nn.Linear(5, 10), layer2=nn.Linear(10, 2))
    loaded = NNsight(nn.Sequential(names).to("meta")).load_edits(file)
    assert torch.equal(loaded.edits[0].names.given()["direction"], direction)


def test_one_value_under_two_names_is_one_again(net, file):
    model, first = NNsight(net), torch.rand(3)
    second, both = first, {"it": first}
    with model.edit() as edited:
        model.layer1.output[:] = first.sum() + second.sum() + both["it"].sum()
    loaded = again(edited, file)
    names = loaded.edits[0].names.given()
    assert names["first"] is names["second"] is names["both"]["it"]
    with safe_open(file, framework="pt") as opened:
        assert len(list(opened.keys())) == 1


def test_modules_of_the_model_go_by_their_path(net, x, file):
    model = NNsight(net)
    layer, raw, weight, nodes = model.layer1, net.layer2, net.layer2.weight, [model.layer1]
    with model.edit() as edited:
        layer.output[:] = 1
        nodes[0].output[:] *= 2
        model.layer2.output = raw(layer.output) + weight.sum()
    edited.save_edits(file)
    other_net = nn.Sequential(OrderedDict(layer1=nn.Linear(5, 10), layer2=nn.Linear(10, 2)))
    loaded = NNsight(other_net).load_edits(file)
    twos = torch.full((1, 10), 2.0)
    want = other_net.layer2(twos) + other_net.layer2.weight.sum()
    assert torch.allclose(loaded(x), want)
    with safe_open(file, framework="pt") as opened:
        assert list(opened.keys()) == []


def test_a_child_called_model_is_not_the_root(x, file):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(5, 5)

        def forward(self, x):
            return self.model(x) + 1

    outer = Outer()
    wrapped = NNsight(outer)
    inner = wrapped.model
    with wrapped.edit() as edited:
        inner.output[:] = 1
    assert torch.equal(again(edited, file)(x), torch.full((1, 5), 2.0))


def test_what_can_be_imported_goes_by_its_name(net, x, file):
    model, sqrt, Linear, force, cat = NNsight(net), math.sqrt, nn.Linear, insitu.force, torch.cat
    with model.edit() as edited:
        h = F.relu(model.layer1.output) + relu(torch.ones(1)) + sqrt(4.0)
        assert isinstance(Linear(1, 1), torch.nn.Module)
        model.layer1.output = force(doubled(cat([h])))
    loaded = again(edited, file)
    want = net.layer2(2 * (F.relu(net.layer1(x)) + 3))
    assert torch.allclose(loaded(x), want)
    values = header(file)["values"]
    assert {"from": ["insitu", "force"]} in values
    assert {"from": ["torch", "cat"]} in values
    assert {"import": "torch.nn.functional"} in values


def test_a_function_written_in_the_block_goes_with_its_text(net, x, file):
    model, by = NNsight(net), 3

    def made():
        with model.edit() as edited:

            def scaled(h):
                return h * by

            model.layer1.output = scaled(model.layer1.output)
        return edited

    assert torch.allclose(again(made(), file)(x), net.layer2(net.layer1(x) * 3))


def test_a_name_the_block_stores_itself_is_not_saved(net, x, file):
    model, h, lock = NNsight(net), object(), object()
    with model.edit() as edited:
        with torch.no_grad():
            h = model.layer1.output
        for lock in range(2):
            h[:] = lock
    assert not isinstance(h, torch.Tensor)
    assert not isinstance(lock, int)
    loaded = again(edited, file)
    assert torch.allclose(loaded(x), net.layer2(torch.ones(1, 10)))
    assert set(header(file)["edits"][0]["names"]) == {"model", "torch"}


def test_the_file_holds_the_value_of_when_the_edit_was_made(net, x, file):
    model, scale = NNsight(net), 2.0
    with model.edit() as edited:
        model.layer1.output[:] *= scale
    scale = 5.0
    assert torch.allclose(again(edited, file)(x), net.layer2(net.layer1(x) * 2))
    assert scale == 5


def test_a_loaded_edit_can_be_saved_again(net, x, file, tmp_path):
    model, direction = NNsight(net), torch.rand(10)
    with model.edit() as edited:
        model.layer1.output[:] += direction
    once = again(edited, file)
    twice = again(once, tmp_path / "second.safetensors")
    assert torch.equal(twice(x), edited(x))
    assert header(file) == header(tmp_path / "second.safetensors")


def test_saving_over_a_file_that_is_in_use(net, x, file):
    model, direction = NNsight(net), torch.rand(10)
    with model.edit() as edited:
        model.layer1.output[:] += direction
    loaded = again(edited, file)
    want = loaded(x)
    loaded.save_edits(file)
    assert torch.equal(loaded(x), want)
    assert torch.equal(model.load_edits(file)(x), want)
    assert [it.name for it in file.parent.iterdir()] == [file.name]


def test_private_names_and_annotations_mean_the_same(net, x, file):
    class Steering:
        def made(self):
            __direction = torch.ones(1, 10)
            with model.edit() as edited:
                scale: "no such type" = 2  # noqa: F722
                model.layer1.output = __direction * scale
            return edited

    model = NNsight(net)
    loaded = again(Steering().made(), file)
    assert torch.allclose(loaded(x), net.layer2(torch.full((1, 10), 2.0)))


def test_a_text_of_several_items_and_a_string_at_its_top(net, x, file):
    model, direction = NNsight(net), torch.ones(10)
    with model.edit() as edited, torch.no_grad():
        "what it does"
        model.layer1.output[:] = direction

    assert torch.allclose(again(edited, file)(x), net.layer2(torch.ones(1, 10)))
    with model.edit() as edited:
        """What it does."""
        model.layer1.output[:] = direction
    assert torch.allclose(again(edited, file)(x), net.layer2(torch.ones(1, 10)))


def test_another_program_loads_what_a_script_has_saved(tmp_path):
    saving = """
        import torch, insitu
        torch.manual_seed(0)
        model = insitu.NNsight(torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Linear(5, 2)))
        direction = torch.arange(5.0)
        with model.edit() as edited:
            model[0].output[:] = direction      # the comment goes with it
        edited.save_edits("steer.safetensors")
        print(edited(torch.ones(1, 5)).tolist())
    """
    loading = """
        import torch, insitu
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Linear(5, 2))
        steered = insitu.NNsight(net).load_edits("steer.safetensors")
        print(steered(torch.ones(1, 5)).tolist())
    """
    said = []
    for name, program in (("saving.py", saving), ("loading.py", loading)):
        (tmp_path / name).write_text(textwrap.dedent(program))
        done = subprocess.run(
            [sys.executable, name], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]
    assert "the comment goes with it" in header(tmp_path / "steer.safetensors")["edits"][0]["text"]


def test_an_edit_can_be_given_to_an_attribute(net, x, file):
    class Holder:
        pass

    model, holder = NNsight(net), Holder()
    with model.edit() as holder.edited:
        model.layer1.output[:] = 0
    loaded = again(holder.edited, file)
    assert torch.equal(loaded(x), holder.edited(x))
    assert torch.allclose(loaded(x), net.layer2.bias)


# What is seen ---------------------------------------------------------------------------------


def test_an_edit_shows_its_text(net, file, capsys):
    model = NNsight(net)
    assert model.edits == ()
    with model.edit() as edited:
        h = model.layer1.output
        h[:] = 0  # nothing is left
    (edit,) = edited.edits
    line = test_an_edit_shows_its_text.__code__.co_firstlineno + 4
    text = "    h = model.layer1.output\n    h[:] = 0"
    assert repr(edit).startswith(f"edit on line {line} of test_edits_file.py:\n{text}")
    assert repr(again(edited, file).edits[0]) == repr(edit)
    print(edit)
    assert "h[:] = 0" in capsys.readouterr().out


def test_an_error_in_a_loaded_edit_is_at_its_own_line(net, x, file):
    gc.collect()
    model, wrong = NNsight(net), torch.zeros(3)
    with model.edit() as edited:
        h = model.layer1.output

        model.layer1.output = h + wrong
    loaded = again(edited, file)
    with pytest.raises(RuntimeError) as error:
        with loaded.trace(x):
            loaded.output
    told = "".join(traceback.format_exception(error.value))
    assert 'File "<edits steer.safetensors:0>", line 3, in edit' in told
    assert "model.layer1.output = h + wrong" in told


def test_an_order_error_in_a_loaded_edit_names_its_lines(net, x, file):
    model = NNsight(net)
    with model.edit() as edited:
        model.layer2.output
        model.layer1.output[:] = 0
    with pytest.raises(insitu.OutOfOrderError, match=r"line 1"):
        again(edited, file)(x)


def test_two_loaded_files_of_one_name_show_their_own_lines(net, x, tmp_path):
    gc.collect()
    model, names = NNsight(net), []
    for folder in ("one", "two"):
        with model.edit() as edited:
            model.layer1.output[:, 99] = len(names)
        (tmp_path / folder).mkdir()
        names.append(again(edited, tmp_path / folder / "steer.safetensors"))
    assert shown() == {"<edits steer.safetensors:0>", "<edits steer.safetensors:0 (2)>"}


def test_the_lines_of_a_dropped_edit_are_forgotten(net, file):
    gc.collect()
    model = NNsight(net)
    with model.edit() as edited:
        model.layer1.output[:] = 0
    loaded = again(edited, file)
    assert shown()
    linecache.checkcache()
    assert linecache.getline("<edits steer.safetensors:0>", 1) == "model.layer1.output[:] = 0\n"
    del loaded
    gc.collect()
    assert shown() == set()


# What cannot be saved -------------------------------------------------------------------------


def refused(edited, file):
    """The error that saving raises; nothing is written."""
    file.write_text("was here before")
    with pytest.raises(UsageError) as error:
        edited.save_edits(file)
    assert file.read_text() == "was here before"
    assert list(file.parent.iterdir()) == [file]
    assert str(error.value).count("\n") == 2
    return error.value


def edit_with(net, value):
    model = NNsight(net)
    with model.edit() as edited:
        model.layer1.output
        value
    return edited


def local_function():
    """One that no other program could import."""

    def steer(h):
        return h

    return steer


class Unknown:
    pass


CASES = {
    "a function": (local_function(), "a function of test_edits_file", "into the block"),
    "a lambda": (lambda h: h, "a function of", "import it from there"),
    "an object": (Unknown(), "a Unknown", "value = value.…"),
    "an array": (np.zeros(3), "a ndarray", "torch.as_tensor"),
    "another module": (nn.Linear(2, 2), "a Linear that is no part of the model", "value.weight"),
    "another model": (NNsight(nn.Linear(2, 2)), "a part of another model", "this model's own"),
    "meta": (torch.zeros(2, device="meta"), "a shape and no numbers", "of numbers"),
    "sparse": (torch.eye(2).to_sparse(), "another layout", "to_dense"),
    "inside": ({"k": [1, Unknown()]}, "value['k'][1] is a Unknown", "value['k'][1].…"),
    "a method": (Unknown().__init__, "a method-wrapper", "above the block"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_file_cannot_hold_is_refused_by_name(net, file, case):
    value, kind, advice = CASES[case]
    error = refused(edit_with(net, value), file)
    assert "test_edits_file.py cannot be saved: value" in error.what
    assert kind in error.what
    assert advice in error.next
    assert "nothing is pickled" in error.why


def test_an_open_file_and_a_container_that_holds_itself_are_refused(net, file, tmp_path):
    with open(__file__) as opened:
        assert "a TextIOWrapper" in refused(edit_with(net, opened), file).what
    loop = []
    loop.append(loop)
    assert "holds itself" in refused(edit_with(net, loop), file).what


def test_a_function_of_a_notebook_is_refused(net, file):
    names = {"__name__": "__main__"}
    exec("def steer(h): return h", names)
    error = refused(edit_with(net, names["steer"]), file)
    assert "a function of __main__" in error.what


def test_an_operation_is_named_in_the_block_itself(net, x, file):
    class Squares(nn.Module):
        def forward(self, x):
            return torch.square(x)

    model = NNsight(Squares())
    operation = model.source.torch_square_0
    with model.edit() as edited:
        operation.output[:] = 0
    assert "model.source.torch_square_0 in the block" in refused(edited, file).next
    with model.edit() as edited:
        model.source.torch_square_0.output = torch.zeros(1, 5)
    assert not again(edited, file)(x).any()


def test_one_edit_that_cannot_be_saved_keeps_all_from_being_written(net, file):
    model, thing = NNsight(net), Unknown()
    with model.edit() as edited:
        model.layer1.output[:] = 0
    with edited.edit(inplace=True):
        thing.seen = model.layer2.output
    assert "thing is a Unknown" in refused(edited, file).what


def test_a_wrapper_without_edits_has_nothing_to_save(net, file):
    model = NNsight(net)
    with model.edit():
        model.layer1.output[:] = 0
    assert refused(model, file).what == "there are no edits to save."


def test_an_edit_without_text_is_refused(net, file):
    names = {"net": net, "NNsight": NNsight}
    exec("model = NNsight(net)\nwith model.edit() as edited: model.layer1.output[:] = 0", names)
    assert "cannot be saved: it has no text" in refused(names["edited"], file).what
    assert "its text is not known" in repr(names["edited"].edits[0])


def test_a_folder_that_is_not_there(net, tmp_path):
    with pytest.raises(EditsFileError, match="could not be written to") as error:
        edit_with(net, 1).save_edits(tmp_path / "no" / "steer.safetensors")
    assert isinstance(error.value, OSError)
    assert list(tmp_path.iterdir()) == []


# What cannot be loaded ------------------------------------------------------------------------


def unloadable(net, file, match):
    model, before = NNsight(net), shown()
    with pytest.raises(EditsFileError, match=match) as error:
        model.load_edits(file, inplace=True)
    assert model.edits == ()
    assert str(error.value).count("\n") == 2
    assert shown() <= before
    return error.value


def test_no_file_and_files_of_another_kind(net, file):
    unloadable(net, file, "there is no file")
    file.write_text("no safetensors")
    unloadable(net, file, "could not be read as edits")
    file.write_bytes(pickle.dumps({"edits": []}))
    unloadable(net, file, "could not be read as edits")
    save_file({"a": torch.zeros(1)}, file)
    unloadable(net, file, "could not be read as edits")
    for text in ("no json", "[]", "{}", '{"format": 1, "edits": 3, "values": []}'):
        save_file({}, file, {"insitu_edits": text})
        unloadable(net, file, "could not be read as edits")


def test_a_damaged_file(net, file):
    edit_with(net, torch.rand(100)).save_edits(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    unloadable(net, file, "could not be read as edits")


@pytest.mark.parametrize("damage", [
    lambda d: d["edits"][0].pop("text"),
    lambda d: d["edits"][0]["names"].update(value={"at": 99}),
    lambda d: d["edits"][0]["names"].update(value={"at": -1}),
    lambda d: d["edits"][0]["names"].update(value={"pickle": "x"}),
    lambda d: d["edits"][0]["names"].update(value={}),
    lambda d: d["values"].append({"list": [{"at": len(d["values"])}]})
    or d["edits"][0]["names"].update(value={"at": len(d["values"]) - 1}),
    lambda d: d["edits"][0].update(futures=["no such"]),
    lambda d: d["edits"][0]["names"].update(value={"dtype": "load"}),
    lambda d: d["edits"][0]["names"].update(value={**d["values"][1], "tensor": "no such"}),
])  # fmt: skip
def test_a_header_that_says_something_else(net, file, damage):
    edit_with(net, torch.rand(3)).save_edits(file)
    rewritten(file, damage)
    unloadable(net, file, r"could not be read as edits")


def test_another_format(net, file):
    edit_with(net, 1).save_edits(file)
    rewritten(file, lambda document: document.update(format=2))
    error = unloadable(net, file, "was written in format 2")
    assert "upgrade" in error.next


def test_text_of_another_python(net, file):
    edit_with(net, 1).save_edits(file)
    rewritten(file, lambda document: document["edits"][0].update(text="a = = b"))
    assert "test_edits_file.py" in unloadable(net, file, "edit 0 of .* by this Python").next


@pytest.mark.parametrize("text", [
    "model.layer1.output[:] = 0", "h = model.layer1.output", "model['layer1'].output",
    "for i in range(2):\n    model.layer1.input", "with model.layer1.output:\n    pass",
])  # fmt: skip
def test_a_model_without_a_module_of_the_text(net, file, text):
    edit_with(net, 1).save_edits(file)
    rewritten(file, lambda document: document["edits"][0].update(text=text))
    other = nn.Sequential(OrderedDict(layer_1=nn.Linear(5, 5)))
    error = unloadable(other, file, "edit 0 of steer.safetensors does not fit this model")
    assert "layer1" in error.what
    assert "saved from a Sequential" in error.why
    assert "did you mean layer_1?" in error.next


def test_a_text_that_may_not_come_to_a_module_loads(net, x, file):
    model = NNsight(net)
    with model.edit() as edited:
        if hasattr(model, "layer1"):
            model.layer1.output[:] = 0
        else:
            model[0].output[:] = 0
        getattr(model, "config", None)
        index = -1
        model[index].output
        model[-1].output
        model.layer1.weight
    edited.save_edits(file)
    other = nn.Sequential(nn.Linear(5, 10), nn.Linear(10, 2))
    rewritten(
        file,
        lambda d: d["edits"][0].update(text=d["edits"][0]["text"].rpartition("model.layer1")[0]),
    )
    assert torch.allclose(NNsight(other).load_edits(file)(x), other[1].bias)


def test_a_model_without_a_module_that_is_bound_to_a_name(net, file):
    model = NNsight(net)
    layer, weight, raw = model.layer1, net.layer2.weight, net.layer2
    other = nn.Sequential(nn.Linear(5, 5))
    with model.edit() as edited:
        layer.output[:] = 0
    edited.save_edits(file)
    assert "layer1" in unloadable(other, file, "does not fit this model").what
    with model.edit() as edited:
        model.output[:] = weight.sum()
    edited.save_edits(file)
    unloadable(other, file, r"needs the weight layer2\.weight")
    with model.edit() as edited:
        model.output[:] = raw(torch.ones(10))
    edited.save_edits(file)
    unloadable(other, file, "layer2")


def test_too_few_layers(net, file):
    model = NNsight(nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)))
    with model.edit() as edited:
        model[1].output[:] = 0
    edited.save_edits(file)
    unloadable(nn.Sequential(nn.Linear(5, 5)), file, r"it has no model\[1\]")


def test_what_cannot_be_imported_any_more(net, file, tmp_path, monkeypatch):
    (tmp_path / "ours_for_a_while.py").write_text("def steer(h):\n    return h * 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import ours_for_a_while
    from ours_for_a_while import steer

    for value in (ours_for_a_while, steer):
        edit_with(net, value).save_edits(file)
        assert NNsight(net).load_edits(file).edits
        monkeypatch.delitem(sys.modules, "ours_for_a_while")
        (tmp_path / "ours_for_a_while.py").rename(tmp_path / "gone.py")
        error = unloadable(net, file, "needs ours_for_a_while, which cannot be imported")
        assert "sys.path" in error.next
        (tmp_path / "gone.py").rename(tmp_path / "ours_for_a_while.py")
        monkeypatch.setitem(sys.modules, "ours_for_a_while", ours_for_a_while)
    monkeypatch.delattr(ours_for_a_while, "steer")
    unloadable(net, file, "needs steer of ours_for_a_while, which is not there")


def test_loading_runs_none_of_the_text(net, file, capsys):
    model = NNsight(net)
    with model.edit() as edited:
        print("running")
        model.layer1.output[:] = 0
    again(edited, file)
    assert capsys.readouterr().out == ""


# Names a body needs ---------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "wants"), [
    ("h = f(x); g(h)", "f g x"),
    ("h += 1", "h"),
    ("for i in r:\n  h = i\n  h.x", "r"),
    ("for i in r:\n  h = i\nh", "r h"),
    ("with c:\n  h = 1\nh", "c"),
    ("with suppress(E):\n  h = 1\nh", "suppress E h"),
    ("try:\n  h = a()\nexcept E:\n  h = 0\nh", "a E"),
    ("try:\n  h = a()\nexcept E:\n  pass\nh", "a E h"),
    ("if c: h = 1\nelse: h = 2\nh", "c"),
    ("if c: h = 1\nh", "c h"),
    ("def f(): return k\nf()", "k"),
    ("k = 1\ndef f(): return k\nf()", ""),
    ("[a * b for a in c]", "b c"),
    ("class A:\n  x = y", "y"),
    ("del h", "h"),
    ("while True:\n  h = 1\n  break\nh", ""),
    ("a, (b, *c) = d", "d"),
    ("import a.b as c\nc", ""),
    ("x = lambda: y", "y"),
    ("global h\nh = 1\nh", ""),
])  # fmt: skip
def test_the_names_a_body_reads_before_it_stores_them(text, wants):
    names = {"a", "b", "c", "d", "f", "g", "h", "i", "k", "r", "x", "y", "A", "E", "suppress"}
    assert needed(compile(text, "", "exec"), names) == set(wants.split())


def test_two_edits_with_one_name_for_different_tensors_keep_both(net, x, file):
    model = NNsight(net)
    for factor in (1.0, 2.0):
        direction = torch.full((10,), factor)
        with model.edit() as edited:
            model.layer1.output[:] += direction
        model = edited
    loaded = again(model, file)
    assert torch.equal(loaded(x), net.layer2(net.layer1(x) + 1 + 2))
    with safe_open(file, framework="pt") as opened:
        assert sorted(opened.keys()) == ["direction", "direction~1"]


def test_what_only_this_program_has_is_refused(net, file):
    made, bounds = type(json)("made_here"), slice(torch.tensor(0), None)
    model = NNsight(net)
    with model.edit() as with_module:
        model.layer1.output[:] *= made.factor
    with model.edit() as with_slice:
        model.layer1.output[bounds] *= 2
    with pytest.raises(UsageError, match="made is the module made_here"):
        with_module.save_edits(file)
    with pytest.raises(UsageError, match="bounds is a slice"):
        with_slice.save_edits(file)


class LearnsEntrance:
    """Knows the first layer by a further name, once it is asked for."""

    def offered(self, node, name):
        if name != "entrance" or node._parent is not None:
            return False
        node._root.rename({"layer1": "entrance"})
        return True

    def listed(self, node):
        return ["entrance"]


def test_a_name_that_a_model_learns_when_asked_is_one_of_its_names(net, x, file):
    model = NNsight(net, rename={"layer1": "entrance"})
    with model.edit() as edited:
        model.entrance.output[:] = 0
    edited.save_edits(file)
    with pytest.raises(EditsFileError, match="entrance"):
        NNsight(net).load_edits(file)
    other = NNsight(net)
    other.__dict__["_more_names"] = LearnsEntrance()
    assert torch.equal(other.load_edits(file)(x), net.layer2(torch.zeros(1, 10)))
