"""Which calls and assignments of a forward are operations, and what each is called."""

import linecache
import textwrap

import pytest
import torch
from torch import nn

from insitu import NNsight, SourceError
from insitu.engine.source import listing
from insitu.engine.source.kept import plan_of
from insitu.engine.source.text import define


def names(function):
    return [operation.name for operation in plan_of(function).operations]


class Forward:
    def calls(self, x):
        y = self.act(self.gate(x)) * self.up(x)
        y = torch.nn.functional.softmax(y, dim=-1)
        return self.layers[0](self.layers[-1](self.layers[i](y)))  # noqa: F821

    def chains(self, x):
        q = self.q(x).view(2, 3).transpose(0, 1)
        k = x.view(2, 3).transpose(0, 1)
        return q.t().t() + (q + k).sum() + "".join(x) + x[:, None].expand(3)

    def equal_callees(self, x):
        return f(f(x), f(x))  # noqa: F821

    def assignments(self, x, y: int = 3):
        a = b = x  # noqa: F841
        c, (d, *e) = x  # noqa: RUF059
        self.kept = x + 1
        x[:, 0] = y
        f: int = 3
        g: int  # noqa: F842
        a += y
        self.count += f(x)
        x[self.pick()] += 1
        if (n := len(x)) and (m := n + 1):
            return m
        h = self.act(x)
        return h

    def left_alone(self, x):
        super().__init__()
        logger.warning("no")  # noqa: F821
        warnings.warn("no", stacklevel=2)  # noqa: F821
        both = locals(), globals(), vars(), vars(x), dir(x)
        assert isinstance(x, str), str(x)
        if not x:
            raise ValueError(f"{len(x)}")
        later = lambda: len(x)  # noqa: E731

        def inner():
            return len(x)

        return both, later, inner, f"{x!r}"

    def comprehensions(self, xs):
        a = [self.act(x) for x in self.all(xs) if self.ok(x)]
        return {k(x): v(x) for x in a}, tuple(g(x) for x in a)  # noqa: F821

    def statements(self, xs):
        with torch.no_grad() as grad, self.mode():
            for x in enumerate(xs):
                while self.going(x):
                    try:
                        x = self.step(x)
                    except self.error():
                        x = self.recover(x)
                    finally:
                        self.close()
        match self.kind(xs):
            case 1 if self.guard(xs):
                return self.one()
        return grad


def test_calls_are_named_by_their_callee_as_one_reads():
    assert names(Forward.calls) == [
        "assign_y_0", "self_act_0", "self_gate_0", "self_up_0", "torch_nn_functional_softmax_0",
        "self_layers_0_0", "self_layers_1_0", "self_layers_i_0",
    ]  # fmt: skip


def test_what_is_called_before_a_callee_is_left_out_of_its_name():
    assert names(Forward.chains) == [
        "self_q_0", "view_0", "transpose_0", "x_view_0", "transpose_1", "q_t_0", "t_0", "sum_0",
        "join_0", "x_expand_0",
    ]  # fmt: skip


def test_equal_callees_are_counted_as_one_reads():
    plan = plan_of(Forward.equal_callees)
    outer, first, second = plan.operations
    assert [it.name for it in plan.operations] == ["f_0", "f_1", "f_2"]
    assert first.node in outer.node.args
    assert second.node in outer.node.args


def test_assignments_of_what_is_no_call_are_named_by_their_target():
    assert names(Forward.assignments) == [
        "assign_a_b_0", "assign_c_d_e_0", "assign_self_kept_0", "assign_x_0", "assign_f_0",
        "assign_a_0", "assign_self_count_0", "f_0", "self_pick_0", "len_0", "assign_m_0",
        "self_act_0",
    ]  # fmt: skip


def test_calls_that_look_at_their_frame_or_may_run_later_stay_as_they_are():
    assert names(Forward.left_alone) == [
        "__init___0", "assign_both_0", "vars_0", "dir_0", "assign_later_0",
    ]  # fmt: skip


def test_calls_in_comprehensions_are_named():
    assert names(Forward.comprehensions) == [
        "assign_a_0", "self_act_0", "self_all_0", "self_ok_0", "k_0", "v_0", "tuple_0", "g_0",
    ]  # fmt: skip


def test_every_kind_of_statement_is_looked_into():
    assert names(Forward.statements) == [
        "torch_no_grad_0", "self_mode_0", "enumerate_0", "self_going_0", "self_step_0",
        "self_error_0", "self_recover_0", "self_close_0", "self_kind_0", "self_guard_0",
        "self_one_0",
    ]  # fmt: skip


def test_names_are_unique_and_identifiers():
    for function in vars(Forward).values():
        if callable(function):
            found = names(function)
            assert len(set(found)) == len(found)
            assert all(name.isidentifier() for name in found)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    @torch.no_grad()
    def forward(self, x):
        """Say

            text that begins
        at another margin."""
        h = self.act(x).neg() * 2
        return h  # the end


def test_the_listing_shows_the_text_with_names_and_the_files_line_numbers():
    net = NNsight(Small())
    first = Small.forward.__wrapped__.__code__.co_firstlineno
    shown = repr(net.source).splitlines()
    assert shown[0] == f"model.source: Small.forward, {__file__}:{first}"
    assert shown[1] == f"              {first}  @torch.no_grad()"
    assert f"assign_h_0 -> {first + 6}      h = self.act(x).neg() * 2" in shown
    assert "self_act_0 ->   +" in shown
    assert "neg_0      ->   +" in shown
    assert shown[-1].endswith("return h  # the end")
    assert "text that begins" in repr(net.source)


def test_an_operation_shows_its_statement():
    text = repr(NNsight(Small()).source.self_act_0)
    line = Small.forward.__wrapped__.__code__.co_firstlineno + 6
    assert text.splitlines() == [
        f"model.source.self_act_0: line {line} of Small.forward",
        f"--> {line}      h = self.act(x).neg() * 2",
    ]


def in_file(tmp_path, text, name="forward"):
    """A function of a file of its own, which can be changed afterwards."""
    path = tmp_path / "made.py"
    path.write_text(textwrap.dedent(text))
    space = {"__name__": "made"}
    exec(compile(path.read_text(), str(path), "exec"), space)
    return space[name], path


def test_a_statement_of_several_lines_is_shown_whole(tmp_path):
    text = """
    def forward(x):
        if len(x) > 2:
            return max(
                x,
                default=abs(3),
            )
        return x
    """
    forward, _ = in_file(tmp_path, text)
    plan = plan_of(forward)
    assert [row.number for row in listing.rows(plan)] == list(range(2, 9))
    assert listing.rows(plan)[0].text == "def forward(x):"
    shown = listing.excerpt("head", plan, plan.by_name["abs_0"]).splitlines()
    assert [line[:5] for line in shown[1:]] == ["    4", "    5", "--> 6", "    7"]
    assert listing.excerpt("", plan, plan.by_name["len_0"]).endswith("--> 3      if len(x) > 2:")


PLAIN = """
    def forward(x):
        y = abs(x)
        return y + 1
"""


def test_a_file_edited_since_it_was_imported_is_refused(tmp_path):
    forward, path = in_file(tmp_path, PLAIN)
    path.write_text(path.read_text().replace("+ 1", "+ 2"))
    with pytest.raises(SourceError, match="has changed since it was imported"):
        define(forward)


def test_lines_put_above_since_are_refused_too(tmp_path):
    forward, path = in_file(tmp_path, PLAIN)
    path.write_text("import os\n" + path.read_text())
    with pytest.raises(SourceError, match="has changed since it was imported"):
        define(forward)


def test_a_file_seen_before_it_was_edited_keeps_answering(tmp_path):
    forward, path = in_file(tmp_path, PLAIN)
    linecache.getlines(str(path))
    path.write_text("")
    assert define(forward).tree.name == "forward"


def test_code_without_text_is_refused():
    space = {}
    exec("def forward(x):\n    return abs(x)", space)
    with pytest.raises(SourceError, match="has no text"):
        define(space["forward"])


def test_a_lambda_is_refused():
    with pytest.raises(SourceError, match="it is a lambda"):
        define(lambda x: abs(x))


def test_a_function_that_ends_in_closing_brackets_is_found_whole(tmp_path):
    text = """
    def forward(x):
        y = {
            "a": [abs(x),
    ]
    }
        # a comment

        'a string that is no instruction'
        return (
            y
    )

    z = 3
    """
    forward, _ = in_file(tmp_path, text)
    assert define(forward).lines[-1] == ")"


def test_text_is_found_for_code_with_future_flags(tmp_path):
    text = """
    from __future__ import annotations
    def forward(x: Unheard) -> Of:
        y: Thing = abs(x)
        return y
    """
    forward, _ = in_file(tmp_path, text)
    assert [it.name for it in plan_of(forward).operations] == ["abs_0"]
