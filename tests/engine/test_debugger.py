"""A debugger stops inside a block, steps through it and shows its names."""

import subprocess
import sys
import textwrap

import pytest
import torch

from insitu import NNsight

PROGRAM = """
    import torch
    from insitu import NNsight

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 2))
    model = NNsight(net)
    with model.trace(torch.ones(1, 5)) as tracer:
        h = model[0].output
        doubled = h * 2
        model[0].output = doubled
        out = model.output
    print("out", tuple(out.shape))
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM).lstrip())
    return path


def line_of(program, text):
    return next(n for n, line in enumerate(program.read_text().splitlines(), 1) if text in line)


def debug(program, *commands):
    return subprocess.run(
        [sys.executable, "-m", "pdb", str(program)], input="\n".join([*commands, "q", ""]),
        capture_output=True, text=True, timeout=60, check=False,
    ).stdout  # fmt: skip


def test_pdb_stops_inside_a_block_and_steps_line_by_line(program):
    line = line_of(program, "h = model[0]")
    said = debug(
        program, f"b {line}", "c", "n", "n", "p tuple(h.shape)", "p doubled is not h", "n", "c"
    )
    assert f"program.py({line})<module>()" in said
    assert f"program.py({line + 1})<module>()" in said
    assert f"program.py({line + 2})<module>()" in said
    assert f"program.py({line + 3})<module>()" in said
    assert "(1, 3)" in said
    assert "True" in said
    assert "out (1, 2)" in said
    assert "greenlet.error" not in said
    assert "insitu/engine" not in said  # `n` never lands inside the engine


def test_pdb_stops_inside_a_forward_reached_from_a_block(program):
    said = debug(
        program, "import torch", "b torch.nn.Linear.forward", f"b {line_of(program, 'doubled =')}",
        "c", "w", "c", "p tuple(h.shape)", "c", "c",
    )  # fmt: skip
    assert "linear.py" in said
    assert "(1, 3)" in said
    assert "out (1, 2)" in said


def test_a_breakpoint_call_in_a_block(program):
    program.write_text(
        program.read_text().replace("    doubled = h", "    breakpoint()\n    doubled = h")
    )
    done = subprocess.run(
        [sys.executable, str(program)], input="p tuple(h.shape)\nn\nn\np tuple(doubled.shape)\nc\n",
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.count("(1, 3)") == 2
    assert "out (1, 2)" in done.stdout
    assert done.returncode == 0, done.stderr


def test_a_tracing_function_sees_every_line_of_the_block_and_of_the_model(net, x):
    model, lines, modules = NNsight(net), [], []

    def look(frame, event, argument):
        if frame.f_code.co_filename == __file__ and event == "line":
            lines.append(frame.f_lineno)
        if event == "call" and frame.f_code.co_name == "forward":
            modules.append(frame.f_code.co_filename)
        return look

    def block():
        with model.trace(x):
            hidden = model.layer1.output
            doubled = hidden * 2
            model.layer1.output = doubled
            out = model.output
        return out

    before = sys.gettrace()
    sys.settrace(look)
    try:
        out = block()
    finally:
        sys.settrace(before)
    first = block.__code__.co_firstlineno
    assert [line - first for line in lines if first < line <= first + 6] == [1, 2, 3, 4, 5, 1, 6]
    assert len([m for m in modules if m.endswith("linear.py")]) == 2
    assert torch.equal(out, net.layer2(net.layer1(x) * 2))
