"""Names of older documents: right where they can be, and clear where they cannot."""

import builtins
import subprocess
import sys

import pytest
import torch

import insitu
import insitu as nnsight
from insitu import CONFIG, LanguageModel, NNsight, compat
from insitu.engine.capture import per_code
from insitu.engine.source import kept
from insitu.settings import Config

TYPES = sorted(name for name in compat.OLDER if isinstance(getattr(builtins, name, None), type))


@pytest.mark.parametrize("name", TYPES)
def test_the_types_are_pythons_own(name):
    assert getattr(nnsight, name) is getattr(builtins, name)


def test_a_list_made_by_its_old_name_is_filled_and_saved(net, x):
    model = NNsight(net)
    with model.trace(x):
        norms = nnsight.list().save()
        norms.append(nnsight.float(model.layer1.output.detach().norm()))
        count = nnsight.int(len(norms)).save()
    assert norms == [net.layer1(x).norm().item()]
    assert count == 1


def test_apply_calls_a_function(net, x):
    model = NNsight(net)
    with model.trace(x):
        best = nnsight.apply(torch.argmax, model.output, dim=-1).save()
    assert torch.equal(best, net(x).argmax(-1))


def test_log_prints(net, x, capsys):
    with NNsight(net).trace(x):
        nnsight.log("norm", 1)
    assert capsys.readouterr().out == "norm 1\n"


def test_stop_ends_the_pass_and_the_block(net, x):
    model, seen = NNsight(net), []
    net.layer2.register_forward_hook(lambda *_: seen.append("layer2"))
    with model.trace(x):
        hidden = model.layer1.output
        nnsight.stop()
        seen.append("after")
    assert torch.equal(hidden, net.layer1(x))
    assert seen == []


def test_stop_in_a_nested_trace_ends_the_inner_one(net, x):
    model = NNsight(net)
    with model.trace(x):
        with model.trace(x * 2):
            model.layer1.output
            nnsight.stop()
        outer = model.layer1.output
    assert torch.equal(outer, net.layer1(x))


def test_stop_outside_a_trace_says_where_it_belongs():
    with pytest.raises(insitu.NoTraceError, match=r"(?s)stop\(\).*tracer\.stop\(\)"):
        nnsight.stop()


def test_trace_marks_a_function_and_leaves_it_as_it_is():
    def halve(value):
        """Half of it."""
        return value / 2

    marked = nnsight.trace(halve)
    assert marked is halve
    assert marked(4) == 2
    assert getattr(marked, compat.MARK) is True

    @nnsight.trace
    class Decoder:
        pass

    assert isinstance(Decoder(), Decoder)


@pytest.mark.parametrize("given", ["a prompt", None, 3, len])
def test_trace_of_what_is_no_function_points_to_the_models(given):
    with pytest.raises(insitu.UsageError, match=r"(?s)insitu\.trace.*with model\.trace\(prompt\)"):
        nnsight.trace(given)


def test_trace_of_a_model_points_to_its_method(net):
    with pytest.raises(insitu.UsageError, match="was given NNsight"):
        nnsight.trace(NNsight(net))


@pytest.mark.parametrize(
    ("name", "write"), [("iter", "for item in values:"), ("cond", "if condition:")]
)
def test_what_cannot_be_right_says_what_to_write(name, write):
    with pytest.raises(insitu.UsageError) as caught, getattr(nnsight, name)([1, 2]):
        pass
    assert caught.value.what == f"{name}() belongs to an older way of writing traces."
    assert f"write `{write}`" in caught.value.next


def test_clearing_the_cache_lets_go_of_blocks_and_forwards_and_breaks_none(net, x):
    model = NNsight(net)

    def run():
        with model.trace() as tracer, tracer.invoke(x):
            operation = model.layer1.source.F_linear_0.output
            out = model.output
        return operation, out

    def known():
        return bool(per_code.known[id(run.__code__)].bodies), bool(kept._known)

    for _ in range(2):
        operation, out = run()
        assert torch.equal(operation, net.layer1(x))
        assert torch.equal(out, net(x))
        assert known() == (True, True)
        nnsight.Globals.cache.clear()
        assert known() == (False, False)


def test_clearing_the_cache_in_a_block_does_not_hurt_those_that_wait(net, x):
    model, seen = NNsight(net), []
    with model.trace() as tracer:
        with tracer.invoke(x):
            nnsight.Globals.cache.clear()
            with tracer.iter[:]:
                seen.append(model.layer1.output)
        with tracer.invoke(x * 2):
            nnsight.Globals.cache.clear()
            out = model.output
    torch.testing.assert_close(seen, [net.layer1(x)])
    torch.testing.assert_close(out, net(x * 2))


def test_the_older_variable_holds_the_key_where_nothing_of_ours_does(monkeypatch):
    config = Config()
    monkeypatch.delenv("INSITU_API_KEY", raising=False)
    monkeypatch.setenv("NDIF_API_KEY", "older")
    assert config.api_key == "older"
    config.set_default_api_key("set here")
    assert config.api_key == "set here"
    monkeypatch.setenv("INSITU_API_KEY", "ours")
    assert config.api_key == "ours"
    for name in ("INSITU_API_KEY", "NDIF_API_KEY"):
        monkeypatch.setenv(name, "")
    assert Config().api_key is None


def test_the_names_of_the_documents_first_lines():
    assert nnsight.CONFIG is CONFIG
    assert nnsight.NNsight is NNsight
    assert nnsight.LanguageModel is LanguageModel


def test_an_unknown_name_is_pythons_own_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        insitu.nothing
    with pytest.raises(ImportError):
        from insitu import nothing  # noqa: F401


def test_older_names_are_not_listed_and_load_when_asked_for():
    assert not set(compat.OLDER) & set(insitu.__all__)
    code = (
        "import sys, insitu; assert 'insitu.compat' not in sys.modules;"
        "assert insitu.list is list; assert 'insitu.compat' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
