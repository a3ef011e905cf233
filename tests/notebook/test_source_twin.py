import re

import pytest

from insitu.twins.source import source_html


def bundle(shell, value):
    return shell.display_formatter.format(value)[0]


def words(html):
    without_sheet = html.partition("<style>")[0] + html.partition("</style>")[2]
    return re.sub(r"<[^>]*>", " ", without_sheet)


def test_a_source_shows_text_and_html(shell, llm):
    shown = bundle(shell, llm.transformer.h[0].attn.source)
    assert "attention_interface_0 " in shown["text/plain"]
    assert "attention_interface_0" in shown["text/html"]


def test_the_table_has_every_line_and_every_name(llm):
    source = llm.transformer.h[0].attn.source
    html = source_html(source)
    assert html.count("<tr") == len(source._plan.definition.lines)
    for operation in source:
        assert f"<code>{operation._name}</code>" in html
    line = source.self_c_proj_0._named.line
    assert re.search(
        rf"self_c_proj_0\s+{line}\s+attn_output = self\.c_proj\(attn_output\)", words(html)
    )
    assert "http" not in html
    assert "var(" not in html.partition("</style>")[2]  # readable where the sheet is taken out


def test_code_is_escaped(llm):
    html = source_html(llm.transformer.h[0].attn.source)
    assert "-&gt; tuple[torch.Tensor" in html
    assert "-> tuple" not in html


def test_an_operation_shows_its_statement(shell, llm):
    shown = bundle(shell, llm.transformer.h[0].attn.source.attention_interface_0)
    assert "--> " in shown["text/plain"]
    assert "attn_output, attn_weights = attention_interface(" in words(shown["text/html"])
    assert "scaling=self.scaling" in words(shown["text/html"])


def test_colours_follow_the_theme(llm):
    html = source_html(llm.transformer.h[0].attn.source)
    assert "--jp-content-font-color1" in html
    assert "prefers-color-scheme:dark" in html


@pytest.mark.parametrize(
    "code", ["model.transformer.h[0].attn.source", "print(model.lm_head.source)"]
)
def test_a_cell_shows_a_source(cell, code):
    shown = cell(code)
    assert shown.error is None
    assert "forward" in (shown.printed or shown.text)


def test_the_card_of_a_written_operation_says_what_it_could_not_measure(cell):
    shown = cell(
        "%%trace model 'The Eiffel Tower is'\n"
        "model.transformer.h[1].attn.source.self_c_proj_0.output[:] = 0\n"
        "logits = model.lm_head.output"
    )
    assert shown.error is None
    assert "transformer.h.1.attn.source.self_c_proj_0.output" in shown.text
    assert "an operation inside a forward was written" in shown.text


CLASS = """
import torch
from insitu import NNsight
class Twice(torch.nn.Module):
    def forward(self, x):
        y = torch.mul(x, 2)
        return torch.neg(y)
net = NNsight(Twice())
with net.trace(torch.ones(1)):
    value = net.source.torch_mul_0.output
"""


def test_a_class_written_in_a_cell_has_operations(cell):
    assert cell(CLASS).error is None
    assert cell.names["value"].item() == 2
    assert cell(CLASS.replace("2)", "3) + x")).error is None
    assert cell.names["value"].item() == 3
    assert "torch.mul(x, 3) + x" in cell("net.source").printed


def test_operations_complete_in_a_shell(shell, llm):
    from IPython.core.completer import provisionalcompleter

    shell.user_ns["model"] = llm
    line = "model.transformer.h[0].attn.source.self_c_"
    with provisionalcompleter():
        found = [c.text for c in shell.Completer.completions(line, len(line))]
    assert found == ["self_c_attn_0", "self_c_attn_1", "self_c_proj_0"]
