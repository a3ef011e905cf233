import pytest

from insitu.notebook.spoken import path_at, resolve


@pytest.fixture
def names(llm):
    return {"model": llm, "number": 3}


def test_a_path_is_resolved_without_reading_a_value(names, monkeypatch):
    monkeypatch.setattr(type(names["model"]), "output", property(lambda self: 1 / 0))
    assert resolve("model", ".transformer.h[1].mlp", names)._path == "transformer.h.1.mlp"
    assert resolve("model", ".transformer.output", names) is None
    assert resolve("number", "", names) is None


@pytest.mark.parametrize(
    ("code", "path"),
    [
        ("x = mod|el.transformer.h[0].attn.output[:, 0]", "model"),
        ("x = model.trans|former.h[0].attn.output[:, 0]", "model.transformer"),
        ("x = model.transformer.h[0|].attn.output[:, 0]", "model.transformer.h[0]"),
        ("x = model.transformer.h[0].at|tn.output[:, 0]", "model.transformer.h[0].attn"),
        ("x = model.transformer.h[0].attn.out|put[:, 0]", "model.transformer.h[0].attn"),
        ("f(a, model.lm_head|)", "model.lm_head"),
        ("model.lm_head.source.F_linear_|0.output", "model.lm_head.source.F_linear_0"),
        ("model.lm_head.source.F_linear_0.out|put", "model.lm_head.source.F_linear_0"),
        ("model.lm_head.sour|ce.F_linear_0", "model.lm_head"),
        ("model.lm_head.source.noth|ing", "model.lm_head"),
        ("num|ber.real", None),
        ("number = 3 |", None),
        ("a.mod|el.transformer", None),
    ],
)
def test_the_path_under_the_cursor_ends_at_the_part_it_is_in(names, code, path):
    assert path_at(code.replace("|", ""), code.index("|"), names) == path
