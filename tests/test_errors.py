"""Errors say what happened, why, and what to do next; bad input is one of them."""

import pickle
import threading

import pytest
import torch
from torch import nn

import insitu
import insitu.methods
from insitu import LanguageModel, NNsight, errors
from insitu.models import memory
from insitu.remote.client import connection, job, refusals, told, words
from insitu.remote.protocol import Fault
from insitu.remote.wire import container

# Bad input --------------------------------------------------------------------------------------


def three_lines(error):
    first, why, next_ = str(error).split("\n")
    assert first == error.what
    assert why == f"Why: {error.why}"
    assert next_ == f"Next: {error.next}"
    assert first.endswith(".")
    assert not first.startswith(("Why", "Next"))
    return error


def test_no_input(net, llm):
    for wrong in (NNsight(net).trace, NNsight(net).open, llm.trace, llm.generate, llm.open):
        with pytest.raises(insitu.InputError, match="no input"), wrong():
            pass


def test_text_for_a_model_of_tensors(net):
    with pytest.raises(insitu.InputTypeError, match=r"(?s)text.*LanguageModel"):
        with NNsight(net).trace("hello"):
            pass


@pytest.mark.parametrize("prompt", [3.5, object(), [], None, [1, "a"], {1, 2}])
def test_a_prompt_of_the_wrong_type(llm, prompt):
    with pytest.raises(insitu.InputTypeError, match="cannot run on") as caught:
        with llm.trace(prompt):
            pass
    assert isinstance(three_lines(caught.value), TypeError)


@pytest.mark.parametrize("prompt", ["", [""], torch.zeros(1, 0, dtype=torch.long), [[]]])
def test_a_prompt_without_tokens(llm, prompt):
    for run in (llm.trace, llm.open, lambda p: llm.generate(p, max_new_tokens=1)):
        with pytest.raises(insitu.InputError, match=r"no tokens|empty|cannot run"):
            with run(prompt):
                pass


def test_several_prompts_not_in_a_list(llm):
    with pytest.raises(insitu.InputTypeError, match="several prompts are one argument"):
        llm.trace("one", "two")


def test_an_input_on_another_device(net, x):
    meta = NNsight(nn.Linear(5, 2, device="meta"))
    with (
        pytest.raises(insitu.DeviceError, match="the input is on cpu, the model on meta") as caught,
        meta.trace(x),
    ):
        meta.output
    assert "input.to('meta')" in three_lines(caught.value).next
    assert isinstance(caught.value.__cause__, RuntimeError)
    model = NNsight(net)
    with pytest.raises(insitu.DeviceError), model.trace(x.to("meta")):
        pass
    with model.trace(x):
        out = model.output
    assert torch.equal(out, net(x))


def test_an_error_of_another_kind_is_not_taken_for_one_of_devices(net):
    with pytest.raises(RuntimeError, match="multiplied") as caught:
        with NNsight(net).trace(torch.ones(1, 3)):
            pass
    assert not isinstance(caught.value, insitu.InsituError)


# Error texts ------------------------------------------------------------------------------------

BASES = {
    "FunctionWhitelistError": PermissionError,
    "NotSendableError": TypeError,
    "WireError": ValueError,
    "TraceError": RuntimeError, "OutOfOrderError": RuntimeError, "NeverRanError": RuntimeError,
    "NoTraceError": RuntimeError, "PassClosedError": RuntimeError, "StepError": IndexError,
    "InputError": ValueError, "InputTypeError": TypeError, "DeviceError": RuntimeError,
    "WriteError": ValueError, "UnknownModuleError": AttributeError, "ModelNotFoundError": OSError,
    "MetricError": ValueError, "MissingPackageError": ImportError,
    "AdapterError": ValueError, "ModelMemoryError": MemoryError,
    "UsageError": ValueError, "UnknownSettingError": AttributeError, "InsituError": Exception,
    "CacheBudgetError": MemoryError, "CacheFileError": OSError, "CaptureError": RuntimeError,
    "GradientError": RuntimeError, "ScanError": RuntimeError, "SourceError": OSError,
    "EditsFileError": OSError,
    "UnknownOperationError": AttributeError,
    "ServerError": RuntimeError, "ServerUnreachableError": ConnectionError,
    "ServerRefusedError": RuntimeError, "QueueFullError": RuntimeError,
    "JobLostError": RuntimeError, "JobTimeoutError": TimeoutError, "RemoteError": RuntimeError,
}  # fmt: skip


def trigger_out_of_order(model, x, llm):
    with model.trace(x):
        model.layer2.output
        model.layer1.output


def trigger_never_ran(model, x, llm):
    with llm.trace("Once"):
        llm.transformer.h.output


def trigger_no_trace(model, x, llm):
    model.layer1.output


def trigger_pass_closed(model, x, llm):
    run = model.open(x)
    run.finish()
    run.finish()


def trigger_step(model, x, llm):
    with llm.generate("Once", max_new_tokens=1) as tracer:
        tracer.next()


def trigger_input(model, x, llm):
    model.trace()


def trigger_input_type(model, x, llm):
    llm.trace(3.5)


def trigger_device(model, x, llm):
    with model.trace(x.to("meta")):
        pass


def trigger_write(model, x, llm):
    with model.trace(x):
        model.layer1.output = x


def trigger_unknown_module(model, x, llm):
    model.layer3


def trigger_model_not_found(model, x, llm):
    LanguageModel("./no/such/folder")


def trigger_usage(model, x, llm):
    llm.trace("Once", max_new_tokens=3)


def trigger_capture(model, x, llm):
    with model.trace() as tracer:
        with tracer.invoke(x):
            return model.output


def trigger_gradient(model, x, llm):
    with model.trace(x):
        h = model.layer1.output.detach()
        with insitu.backward(model.output.sum()):
            h.grad


def trigger_scan(model, x, llm):
    with model.scan(x):
        if model.output.sum().item() > 0:
            raise AssertionError


def trigger_source(model, x, llm):
    print(NNsight(nn.Flatten()).source, NNsight(Compiled()).source)


def trigger_unknown_operation(model, x, llm):
    model.layer1.source.no_such_operation_0


class Compiled(nn.Module):
    """Its forward was never text."""

    forward = len


def trigger_cache_budget(model, x, llm):
    with model.trace(x) as tracer:
        tracer.cache(budget=1)


def trigger_cache_file(model, x, llm):
    insitu.load_cache("./no/such/file")


def trigger_edits_file(model, x, llm):
    model.load_edits("./no/such/file")


def trigger_metric(model, x, llm):
    insitu.methods.metrics.measure(lambda logits: logits[:, -1], torch.zeros(2, 3, 5))


def trigger_missing_package(model, x, llm):
    insitu.methods.optional.package("no_such_package", "this draws with it", "insitu[lab]")


def trigger_adapter(model, x, llm):
    llm.set_adapter("french")


def trigger_model_memory(model, x, llm):
    memory.require("a model", 10**18, llm.config, {})


class Answered:
    """An answer that is no success, and gives no reason."""

    url = "http://127.0.0.1:9"

    def __init__(self, status):
        self.status = status

    def header(self, name):
        return ""

    def body(self, most, within_s=0):
        return b""


def ended(phase, fault=None):
    with connection.Connection("http://127.0.0.1:9") as nobody:
        raise job.RemoteJob(nobody, "5f")._failure(told.End(phase, "it says no", fault, None))


def trigger_server(model, x, llm):
    words.whole({"done": -1}, "done", most=9)


def trigger_server_unreachable(model, x, llm):
    with connection.Connection("http://127.0.0.1:9") as nobody:
        nobody.info()


def trigger_server_refused(model, x, llm):
    raise refusals.of(Answered(403))


def trigger_queue_full(model, x, llm):
    raise refusals.of(Answered(429))


def trigger_job_lost(model, x, llm):
    ended("CANCELLED")


def trigger_job_timeout(model, x, llm):
    ended("TIMEOUT")


def trigger_remote(model, x, llm):
    ended("ERROR", Fault("lab.OddError", "no."))


def trigger_function_whitelist(model, x, llm):
    with llm.trace("Hello", remote="local"):
        exec("a file")


def trigger_not_sendable(model, x, llm):
    thing = object()
    with llm.trace("Hello", remote="local"):
        llm.lm_head.output = thing


def trigger_wire(model, x, llm):
    container.unpack(b"no container", most=1000)


def trigger_unknown_setting(model, x, llm):
    insitu.CONFIG.APP.DEBUGG = True


TRIGGERS = {
    "".join(map(str.capitalize, name.removeprefix("trigger_").split("_"))) + "Error": function
    for name, function in tuple(globals().items())
    if name.startswith("trigger_")
}
ABSTRACT = {"InsituError", "TraceError"}


def test_every_class_of_error_is_triggered_here():
    classes = {n for n, v in vars(errors).items() if isinstance(v, type) and n.endswith("Error")}
    assert classes == BASES.keys()
    assert classes - ABSTRACT == TRIGGERS.keys()
    assert all(issubclass(getattr(errors, name), base) for name, base in BASES.items())


@pytest.mark.parametrize("name", sorted(TRIGGERS))
def test_every_error_has_three_lines_and_can_be_sent(net, x, llm, name):
    with pytest.raises(errors.InsituError) as caught:
        TRIGGERS[name](NNsight(net), x, llm)
    error = three_lines(caught.value)
    assert type(error).__name__ == name
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.next) == (type(error), str(error), error.next)


def test_errors_in_a_thread_reach_it_alone(net, x):
    model, raised = NNsight(net), []

    def work():
        try:
            with model.trace(x):
                model.layer2.output
                model.layer1.output
        except insitu.OutOfOrderError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(raised) == 1
