import pytest

from insitu import UsageError
from insitu.notebook.request import Request, parse


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ("model 'a b'", Request("model", "'a b'")),
        ("model", Request("model")),
        ("models['a b'] prompts[0] + ' x'", Request("models['a b']", "prompts[0] + ' x'")),
        ("model ['a', 'b'] --generate 3", Request("model", "['a', 'b']", generate="3")),
        ("--time model 'a' --quiet", Request("model", "'a'", time=True, quiet=True)),
        ("model --generate=n 'a'", Request("model", "'a'", generate="n")),
        ("model 'it\\'s --time' ", Request("model", "'it\\'s --time'")),
        ("load(a, b) '''it's'''", Request("load(a, b)", "'''it's'''")),
    ],
)
def test_a_line_is_taken_apart(line, request_):
    assert parse(line) == request_


def test_an_unknown_option_names_the_near_one():
    with pytest.raises(UsageError) as caught:
        parse("model 'a' --genrate 3")
    assert caught.value.what == "%%trace has no option --genrate."
    assert caught.value.next == "did you mean --generate?"


def test_generate_needs_its_number():
    for line in ("model 'a' --generate", "model 'a' --generate --time"):
        with pytest.raises(UsageError, match="--generate was given no number"):
            parse(line)


def test_a_line_without_a_model_says_how_to_write_one():
    with pytest.raises(UsageError, match="no model") as caught:
        parse("--time")
    assert "%%trace MODEL PROMPT" in caught.value.next


@pytest.mark.parametrize("option", ["--time", "--cache all", "--view lens", "--generate 3"])
def test_an_edit_without_a_prompt_takes_no_option_of_a_run(option):
    with pytest.raises(UsageError, match="nothing runs"):
        parse(f"model --edit edited {option}")
    assert parse(f"model 'a' --edit edited {option}").edit == "edited"
