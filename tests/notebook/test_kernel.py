"""What only a real kernel shows: tracebacks, files of cells, names across cells, completion."""

import re

import pytest

from insitu.notebook.hint import HINT

manager = pytest.importorskip("jupyter_client.manager")

PATIENCE_S = 120
MODEL = """\
%load_ext insitu
import torch
from insitu import NNsight
net = NNsight(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4)))
x = torch.ones(1, 2)
"""


@pytest.fixture(scope="module")
def client():
    kernel, client = manager.start_new_kernel(kernel_name="python3")
    yield client
    client.stop_channels()
    kernel.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def hinted(client):
    """What the kernel's first cells print, before the extension is loaded."""
    cells = ("import insitu\nprint('body')", "import insitu\nprint('next')")
    return [runner(client)(code)[0] for code in cells]


@pytest.fixture(scope="module")
def run(client, hinted):
    run = runner(client)
    assert run(MODEL)[:1] + run("1")[:1] == ("", "")
    return run


def runner(client):
    def run(code):
        printed, shown, errors = [], [], []

        def hear(message):
            content = message["content"]
            if message["msg_type"] == "stream":
                printed.append(content["text"])
            elif message["msg_type"] in ("display_data", "execute_result"):
                shown.append(content["data"])
            elif message["msg_type"] == "error":
                errors.append("\n".join(content["traceback"]))

        client.execute_interactive(code, output_hook=hear, timeout=PATIENCE_S)
        return "".join(printed), shown, "".join(errors)

    return run


def test_an_import_alone_is_followed_by_one_hint(hinted):
    assert hinted == [f"body\n{HINT}\n", "next\n"]


def test_a_cell_shows_its_last_value_then_its_card_and_its_names_survive(run):
    _, shown, error = run("%%trace net x\nh = net[0].output\nh.shape")
    assert error == ""
    value, card = shown
    assert value["text/plain"] == "torch.Size([1, 3])"
    assert "0.output" in card["text/plain"]
    assert run("print(h.shape, tracer.result.shape)")[0] == (
        "torch.Size([1, 3]) torch.Size([1, 4])\n"
    )


def test_a_traceback_shows_the_cells_own_line_and_nothing_of_ours(run):
    _, _, error = run("%%trace net x\nlate = net[1].output\n\nearly = net[0].output  # too late")
    assert "too late" in error
    assert "line 4" in error
    assert "insitu/notebook" not in error
    assert "run_cell_magic" not in error


def test_a_traceback_names_the_cell_by_its_number(run):
    number = int(run("print(get_ipython().displayhook.exec_result.execution_count)")[0])
    _, _, error = run("%%trace net x\nnet[0].output\n1 / 0  # here")
    assert f"In[{number + 1}]" in re.sub(r"\x1b\[[\d;]*m", "", error)


def test_the_body_belongs_to_the_whole_cells_file_as_the_debugger_knows_it(run):
    cell = (
        "%%trace net x --quiet\nimport sys\n"
        "here = sys._getframe()\nat = here.f_code.co_filename, here.f_lineno"
    )
    assert run(cell)[2] == ""
    printed, _, error = run(
        "from ipykernel.compiler import get_file_name\nimport linecache\n"
        f"cell = {cell!r}\n"
        "print(at == (get_file_name(cell), 4))\nprint(linecache.getline(*at)[:4] == 'at =')"
    )
    assert error == ""
    assert printed == "True\nTrue\n"


def test_after_an_error_the_next_cell_traces(run):
    assert "ZeroDivisionError" in run("%%trace net x\nnet[0].output\n1 / 0")[2]
    assert run("%%trace net x\nout = net.output")[2] == ""


def test_hover_reaches_a_module(client, run):
    for code, said in (("x = net[0].output", "Linear"), ("net", "Sequential"), ("len", "built")):
        reply = client.inspect(code, cursor_pos=len(code), reply=True, timeout=PATIENCE_S)
        assert said in reply["content"]["data"]["text/plain"]


def test_ordinary_completion_still_works_after_a_trace(client, run):
    assert run("with net.trace(x):\n    pass\nword = 'a'")[2] == ""
    reply = client.complete("word.upp", cursor_pos=8, reply=True, timeout=PATIENCE_S)
    assert [match.rpartition(".")[2] for match in reply["content"]["matches"]] == ["upper"]
    reply = client.complete("net[0].o", cursor_pos=8, reply=True, timeout=PATIENCE_S)
    assert reply["content"]["matches"] == ["output"]
