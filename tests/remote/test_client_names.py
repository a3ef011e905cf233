"""A server that hands over names: those that a block speaks of, and no others of the user's."""

import pytest
import torch
from fake_server import packed

import insitu
from insitu import LanguageModel, ServerError

PROMPT = "The Eiffel Tower is in the city of"
PATH = "where the user's own results go"


def refused(act, *named):
    """The error about a server that went too far: it says which, and what it sent."""
    with pytest.raises(ServerError) as caught:
        act()
    assert type(caught.value) is ServerError
    said = str(caught.value)
    assert len(said.splitlines()) == 3
    for name in named:
        assert name in said
    return said


def handing_over(server, **values):
    """The server comes to the first part with these, and ends with nothing."""
    server.plan = lambda job: (job.ask(0, 0, packed(**values)), job.end(result=packed()))


# What a result may bind ---------------------------------------------------------------------------


def test_a_result_assigns_what_the_block_assigns(far, server):
    server.plan = lambda job: job.end(result=packed(h=torch.ones(2), out={"n": 3}))
    with far.trace(PROMPT, remote=server.url):
        h = far.transformer.h[1].output.save()
        out = {"n": 3}.save()
    assert torch.equal(h, torch.ones(2))
    assert out == {"n": 3}


def test_a_name_that_the_block_does_not_assign_is_not_taken_from_a_server(far, server):
    unrelated = PATH
    server.plan = lambda job: job.end(result=packed(h=torch.ones(2), unrelated="/etc/passwd"))

    def run():
        nonlocal unrelated
        with far.trace(PROMPT, remote=server.url):
            h = far.transformer.h[1].output.save()
        return h

    said = refused(run, server.url, "unrelated")
    assert "/etc/passwd" not in said
    assert unrelated == PATH


SCRIPT = """
with model.trace(prompt, remote=url) as tracer:
    h = model.transformer.h[1].output.save()
"""


@pytest.mark.parametrize(
    "name", ["torch", "print", "model", "prompt", "url", "__name__", "__builtins__", "tracer",
             ".value", "", "a name that is none", "__insitu_returned__"],
)  # fmt: skip
def test_no_global_of_a_module_or_notebook_is_a_servers_to_set(far, server, name, tmp_path):
    server.plan = lambda job: job.end(result=packed(**{"h": torch.ones(2), name: 5}))
    file = tmp_path / "cell.py"
    file.write_text(SCRIPT)
    names = {"__name__": "cell", "model": far, "prompt": PROMPT, "url": server.url, "torch": torch}
    before = dict(names)
    refused(lambda: exec(compile(SCRIPT, str(file), "exec"), names), server.url)
    names.pop("__builtins__")
    assert names.pop("tracer", None) is not 5  # noqa: F632
    assert names == before


def test_a_given_value_that_the_block_leaves_alone_stays_the_users(far, server):
    scale = torch.tensor(2.0)
    server.plan = lambda job: job.end(result=packed(h=1, scale=5))

    def run():
        with far.trace(PROMPT, remote=server.url):
            h = (far.transformer.h[1].output * scale).save()
        return h

    refused(run, server.url, "scale")
    assert torch.equal(scale, torch.tensor(2.0))


def test_a_given_list_is_filled_and_never_becomes_something_else(far, server):
    kept, mine = [1], {"a": 1}
    same = kept, mine

    def run(**values):
        server.plan = lambda job: job.end(result=packed(**values))
        with far.trace(PROMPT, remote=server.url):
            kept.append(far.transformer.h[1].output.save())
            mine["h"] = far.transformer.h[2].output.save()

    run(kept=[1, 2], mine={"a": 1, "h": 3})
    assert kept == [1, 2]
    assert mine == {"a": 1, "h": 3}
    assert (kept is same[0], mine is same[1]) == (True, True)
    refused(lambda: run(kept={"a": 1}), server.url, "kept")
    refused(lambda: run(mine="text"), server.url, "mine")
    assert kept == [1, 2]
    assert mine == {"a": 1, "h": 3}


def test_nothing_of_a_result_is_assigned_when_a_part_of_it_is_refused(far, server):
    h, kept = "as it was", []
    server.plan = lambda job: job.end(result=packed(h=1, kept=[1], zzz=2))

    def run():
        nonlocal h
        with far.trace(PROMPT, remote=server.url):
            h = far.transformer.h[1].output.save()
            kept.append(h.save())

    refused(run, server.url, "zzz")
    assert h == "as it was"
    assert kept == []


def test_a_call_without_a_block_takes_its_value_alone(far, server):
    def run():
        out = far.trace(PROMPT, remote=server.url)
        print(out)
        return [out]

    server.plan = lambda job: job.end(result=packed(__insitu_returned__=3, torch=5))
    refused(run, server.url, "torch")
    server.plan = lambda job: job.end(result=packed())
    refused(run, server.url)
    server.plan = lambda job: job.end(result=packed(__insitu_returned__=3))
    assert run() == [3]


def test_a_call_that_is_not_waited_for_gives_a_job_whose_result_is_asked_for(far, server):
    server.plan = lambda job: job.end(result=packed(__insitu_returned__=3))
    job = far.trace(PROMPT, remote=server.url, blocking=False)
    assert job.result(timeout_s=30) == 3
    assert job.phase == "COMPLETED"
    assert insitu.job(job.id, server.url).result(timeout_s=30) == 3, "taken up, it is the same"
    assert far.trace(PROMPT, remote=server.url, blocking=False).result(timeout_s=30) == 3


def test_a_stored_tracer_that_is_not_waited_for_is_entered_all_the_same(far, server):
    server.plan = lambda job: job.end(result=packed(h=1))
    stored = far.trace(PROMPT, remote=server.url, blocking=False)
    with stored as tracer:
        h = tracer.result.save()  # noqa: F841
    assert tracer.job.result(timeout_s=30) == {"h": 1}


def test_the_result_of_a_job_that_is_not_waited_for_is_looked_at_too(far, server):
    server.plan = lambda job: job.end(result=packed(h=1, other=5))
    with far.trace(PROMPT, remote=server.url, blocking=False) as tracer:
        h = far.transformer.h[1].output.save()
    refused(lambda: tracer.job.result(timeout_s=30), server.url, "other")
    assert "h" not in locals()


# What a local part may be given -------------------------------------------------------------------


def test_a_local_part_is_given_what_it_reads_of_the_block(far, server):
    seen = []
    handing_over(server, h=torch.ones(2))
    with far.trace(PROMPT, remote=server.url):
        h = far.transformer.h[1].output
        with insitu.local():
            seen.append(h + 1)
    assert torch.equal(seen[0], torch.full((2,), 2.0))


@pytest.mark.parametrize("name", ["out_path", "seen", "torch", "insitu", "unknown", "__name__"])
def test_a_local_part_keeps_the_names_that_nobody_asked_for(far, server, name):
    seen, out_path = [], PATH
    values = {"h": torch.ones(2), "out_path": "/home/me/.ssh/authorized_keys"}
    handing_over(server, **{"h": torch.ones(2), name: values.get(name, 5)})

    def run():
        with far.trace(PROMPT, remote=server.url):
            h = far.transformer.h[1].output
            with insitu.local():
                seen.append((out_path, h))
            far.transformer.h[1].output[:] = h

    refused(run, server.url, name)
    assert seen == []
    assert out_path == PATH


def test_a_part_takes_the_sites_of_its_own_and_needs_them_all(far, server):
    seen = []

    def run():
        with far.trace(PROMPT, remote=server.url):
            with insitu.local():
                seen.append(far.transformer.h[1].output)
            with insitu.local():
                seen.append(far.transformer.h[2].output)

    handing_over(server, __insitu_site_0_0__=1)
    run()
    assert seen == [1]
    handing_over(server, __insitu_site_0_0__=1, __insitu_site_1_0__=2)
    refused(run, server.url)
    handing_over(server)
    refused(run, server.url)
    assert seen == [1]


@pytest.mark.parametrize("index", [1, 7, 2**31])
def test_a_part_that_the_block_has_not_is_refused(far, server, index):
    server.plan = lambda job: (job.ask(0, index, packed()), job.end(result=packed()))

    def run():
        with far.trace(PROMPT, remote=server.url):
            with insitu.local():
                print("never")

    refused(run, server.url)


def test_a_block_without_parts_runs_none(far, server):
    server.plan = lambda job: (job.ask(0, 0, packed()), job.end(result=packed()))

    def run():
        with far.trace(PROMPT, remote=server.url):
            far.transformer.h[1].output.save()

    refused(run, server.url)
    assert server.jobs["job-0"].given == {}


def test_values_for_a_part_that_are_no_container_are_refused(far, server):
    server.plan = lambda job: (job.ask(0, 0, b"\x80\x04garbage"), job.end(result=packed()))

    def run():
        with far.trace(PROMPT, remote=server.url):
            with insitu.local():
                print("never")

    refused(run, server.url)


def test_what_a_part_is_given_is_not_left_among_the_users_names(far, server, tmp_path):
    text = (
        "with model.trace(prompt, remote=url):\n"
        "    h = model.transformer.h[1].output\n"
        "    with insitu.local():\n"
        "        seen.append(h)\n"
    )
    file = tmp_path / "cell.py"
    file.write_text(text)
    handing_over(server, h=torch.ones(2))
    names = {"__name__": "cell", "model": far, "prompt": PROMPT, "url": server.url,
             "insitu": insitu, "seen": []}  # fmt: skip
    exec(compile(text, str(file), "exec"), names)
    assert len(names["seen"]) == 1
    assert "h" not in names


# A real server does not get refused ---------------------------------------------------------------


def test_a_real_server_keeps_to_the_names(remote):
    far = LanguageModel("demo", dispatch=False)
    kept, table, n = [], {"a": []}, 2
    with far.trace(PROMPT, remote=remote) as tracer:

        def doubled(h):
            return h * n

        for layer in far.transformer.h[:2]:
            kept.append(layer.output.save())
        table["a"].append(doubled(kept[0]).save())
        (a, b), *rest = [(1, 2), 3, 4]
        a.save(), b.save(), rest.save()
        with insitu.local():
            c = a + b
        c.save()
        import math as m

        d = (out := [m.pi]).save()
        try:
            kept[9]
        except IndexError as error:
            said = str(error).save()
    assert (a, b, rest, c) == (1, 2, [3, 4], 3)
    assert len(kept) == 2
    assert torch.equal(table["a"][0], kept[0] * 2)
    assert out == d
    assert "out of range" in said
    assert tracer.job.phase == "COMPLETED"
