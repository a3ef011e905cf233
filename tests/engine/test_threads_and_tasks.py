"""Each thread and each task has a run of its own; blocks nest; wrappers share a module."""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from reference import outputs
from torch import nn

import insitu
from insitu import NNsight


def traced(model, x, factor):
    """One trace that reads, writes and reads again."""
    with model.trace(x):
        hidden = model.layer1.output
        model.layer1.output = hidden * factor
        out = model.output
    return hidden, out


def expected(net, x, factor):
    with torch.no_grad():
        hidden = net.layer1(x)
        return hidden, net.layer2(hidden * factor)


@pytest.fixture
def impatient():
    """Threads change places as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("warm", [False, True])
def test_four_threads_trace_one_model_at_once(net, impatient, warm):
    model = NNsight(net)
    if warm:
        traced(model, torch.ones(1, 5), 1)

    def work(number):
        for i in range(100):
            x = torch.full((1, 5), number + i / 100)
            torch.testing.assert_close(
                traced(model, x, number), expected(net, x, number), rtol=0, atol=0
            )
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_four_threads_wrap_one_module_each_for_itself(net, impatient):
    def work(number):
        for _ in range(25):
            x = torch.full((1, 5), float(number))
            model = NNsight(net)
            torch.testing.assert_close(
                traced(model, x, number), expected(net, x, number), rtol=0, atol=0
            )
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_threads_whose_blocks_fail_disturb_nobody(net, impatient):
    model = NNsight(net)

    def work(number):
        for i in range(50):
            x = torch.full((1, 5), float(number))
            if number % 2:
                with pytest.raises(ZeroDivisionError), model.trace(x):
                    model.layer1.output
                    i / 0
            else:
                torch.testing.assert_close(traced(model, x, 2), expected(net, x, 2), rtol=0, atol=0)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_threads_that_generate_at_once(llm):
    prompts = ["Once upon a time", "The Eiffel Tower", "Buckingham", "The city"]
    encoded = [llm.tokenizer(p, return_tensors="pt") for p in prompts]
    plain = [llm._module.generate(**e, max_new_tokens=3) for e in encoded]

    def work(number):
        seen = []
        with llm.generate(prompts[number], max_new_tokens=3) as tracer:
            for _step in tracer.iter[:]:
                seen.append(llm.transformer.h[1].output)
            ids = llm.generator.output
        return len(seen), ids

    with ThreadPoolExecutor(4) as pool:
        for (steps, ids), single in zip(pool.map(work, range(4)), plain, strict=True):
            assert steps == 3
            assert torch.equal(ids, single)


def test_a_plain_call_in_another_thread_is_not_the_traced_one(net, x):
    model, seen = NNsight(net), []
    with model.trace(x):
        hidden = model.layer1.output
        thread = threading.Thread(target=lambda: seen.append(net(x * 2)))
        thread.start()
        thread.join()
        model.layer1.output = hidden * 0
        out = model.output
    assert torch.equal(seen[0], net(x * 2))
    assert torch.equal(out, net.layer2(hidden * 0))


def test_a_thread_has_no_part_in_the_trace_around_its_start(net, x):
    model, raised = NNsight(net), []

    def ask():
        try:
            model.layer1.output
        except insitu.TraceError as error:
            raised.append(error)

    with model.trace(x):
        model.layer1.output
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert isinstance(raised[0], insitu.NoTraceError)


# Tasks ----------------------------------------------------------------------------------------


def test_two_tasks_take_turns_inside_their_blocks(net):
    model = NNsight(net)

    async def block(number):
        x = torch.full((1, 5), float(number))
        for _ in range(5):
            with model.trace(x):
                hidden = model.layer1.output
                await asyncio.sleep(0)
                model.layer1.output = hidden * number
                await asyncio.sleep(0)
                out = model.output
                await asyncio.sleep(0)
            torch.testing.assert_close((hidden, out), expected(net, x, number), rtol=0, atol=0)
        return number

    async def both():
        return await asyncio.gather(*(block(n) for n in range(1, 4)))

    assert asyncio.run(both()) == [1, 2, 3]


def test_a_task_that_ends_first_and_one_that_fails_leave_the_other_whole(net, x):
    model = NNsight(net)

    async def quick():
        with model.trace(x):
            model.layer1.output
            await asyncio.sleep(0)

    async def failing():
        with pytest.raises(ZeroDivisionError), model.trace(x):
            model.layer1.output
            await asyncio.sleep(0)
            1 / 0

    async def slow():
        with model.trace(x * 2):
            for _ in range(6):
                await asyncio.sleep(0)
            hidden = model.layer1.output
            for _ in range(6):
                await asyncio.sleep(0)
            out = model.output
        assert torch.equal(hidden, net.layer1(x * 2))
        assert torch.equal(out, net(x * 2))

    async def all_three():
        await asyncio.gather(slow(), quick(), failing(), quick())

    asyncio.run(all_three())


def test_a_cancelled_task_closes_its_pass(net, x):
    model = NNsight(net)

    async def waits():
        with model.trace(x):
            model.layer1.output
            await asyncio.sleep(60)

    async def cancel():
        task = asyncio.create_task(waits())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())


@pytest.mark.parametrize("started", [False, True])
def test_a_site_read_in_another_thread_of_the_same_context_says_so(net, x, started):
    model = NNsight(net)
    for _ in range(2):

        async def block():
            with model.trace(x):
                if started:
                    model.layer1.output
                with pytest.raises(insitu.PassClosedError, match="another thread"):
                    await asyncio.to_thread(lambda: model.layer2.output)
                with pytest.raises(insitu.PassClosedError, match="another thread"):
                    await asyncio.to_thread(lambda: model.layer2.input)
                return model.output

        assert torch.equal(asyncio.run(block()), net(x))


def test_a_trace_of_its_own_in_another_thread_of_the_same_context_is_fine(net, x):
    model = NNsight(net)

    async def block():
        with model.trace(x):
            hidden = model.layer1.output
            other = await asyncio.to_thread(traced, model, x * 2, 1)
            out = model.output
        return hidden, out, other

    hidden, out, other = asyncio.run(block())
    torch.testing.assert_close((hidden, out), expected(net, x, 1), rtol=0, atol=0)
    torch.testing.assert_close(other, expected(net, x * 2, 1), rtol=0, atol=0)


# Nesting --------------------------------------------------------------------------------------


def test_a_trace_inside_another_of_the_same_model(net, x):
    model = NNsight(net)
    for _ in range(2):
        with model.trace(x):
            outer = model.layer1.output
            with model.trace(x * 2):
                inner = model.layer1.output
                model.layer1.output = outer
                patched = model.output
            again = model.layer1.output
            out = model.output
        assert again is outer
        assert torch.equal(inner, net.layer1(x * 2))
        assert torch.equal(patched, net(x))
        assert torch.equal(out, net(x))


def test_a_trace_inside_another_of_another_model(net, x, llm):
    model = NNsight(net)
    with model.trace(x):
        hidden = model.layer1.output
        with llm.trace("Once upon a time"):
            block = llm.transformer.h[0].output
            model.layer1.output = hidden * block.mean()  # the outer pass, from the inner block
            logits = llm.lm_head.output
        out = model.output
    assert torch.equal(out, net.layer2(net.layer1(x) * block.mean()))
    assert logits.shape[-1] == 330


def test_passes_that_overlap_without_nesting(net, x):
    one, two = NNsight(net), NNsight(net)
    first, second = one.trace(x), two.trace(x * 2)
    first.__enter__()
    a = one.layer1.output
    second.__enter__()
    b = two.layer1.output
    first.__exit__(None, None, None)
    c = two.output
    second.__exit__(None, None, None)
    assert torch.equal(a, net.layer1(x))
    assert torch.equal(b, net.layer1(x * 2))
    assert torch.equal(c, net(x * 2))


def test_two_wrappers_of_one_module_at_once(net, x):
    one, two = NNsight(net), NNsight(net)
    for _ in range(2):
        with one.trace(x), two.trace(x * 2):
            a = one.layer1.output
            b = two.layer1.output
            two.layer1.output = b * 0
            d = two.output
            c = one.output
        assert torch.equal(a, net.layer1(x))
        assert torch.equal(b, net.layer1(x * 2))
        assert torch.equal(c, net(x))
        assert torch.equal(d, net.layer2(b * 0))


def test_a_submodule_wrapped_by_itself_is_traced_in_a_pass_of_the_whole(net, x):
    whole, part = NNsight(net), NNsight(net.layer2)
    for _ in range(2):
        with whole.trace(x):
            hidden = whole.layer1.output
            with part.trace(hidden * 2):
                partly = part.output
            out = whole.layer2.output
        assert torch.equal(partly, net.layer2(hidden * 2))
        assert torch.equal(out, net(x))


class Tracing(nn.Module):
    """Traces another model, and itself, inside its own forward."""

    def __init__(self, other):
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.__dict__["other"] = other
        self.__dict__["seen"] = []

    def forward(self, x, deep=True):
        x = self.inner(x)
        if deep:
            with self.other.trace(x):
                self.seen.append(self.other.layer1.output)
            with self.__dict__["me"].trace(x, deep=False):
                self.seen.append(self.__dict__["me"].inner.output)
        return x * 2


def test_traces_inside_a_modules_own_forward(net, x):
    tracing = Tracing(NNsight(net))
    model = tracing.__dict__["me"] = NNsight(tracing)
    for _ in range(2):
        tracing.seen.clear()
        with model.trace(x):
            hidden = model.inner.output
            model.inner.output = hidden + 1
            out = model.output
        assert torch.equal(hidden, tracing.inner(x))
        assert torch.equal(out, (hidden + 1) * 2)
        assert torch.equal(tracing.seen[0], net.layer1(hidden + 1))
        assert torch.equal(tracing.seen[1], tracing.inner(hidden + 1))


@pytest.mark.parametrize("reads", [True, False])
def test_a_user_hook_that_asks_for_a_site_gets_an_error_and_not_a_hang(net, x, reads):
    model, raised = NNsight(net), []

    def hook(module, args, output):
        try:
            model.layer2.output
        except insitu.InsituError as error:
            raised.append(error)

    for _ in range(2):
        handle = net.layer2.register_forward_hook(hook)
        with model.trace(x) as tracer:
            if reads:
                model.layer1.output
            out = tracer.result
        with model.trace(x):
            pass
        handle.remove()
        assert torch.equal(out, net(x))
    assert len(raised) == 4


def test_reads_while_another_wrapper_reads_the_same_values(net, x):
    one, two = NNsight(net), NNsight(net)
    run = one.open(x)
    run.until("layer1")
    with two.trace(x):
        read = two.layer1.output
    assert torch.equal(read, outputs(net, ["layer1"], x)["layer1"][0])
    assert torch.equal(run.finish(), net(x))
