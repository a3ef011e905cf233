def test_hover_says_path_class_size_shape_and_source(shell, llm):
    shell.user_ns["model"] = llm
    with llm.trace("The Eiffel Tower"):
        shape = list(llm.transformer.h[0].mlp.output.shape)
    shown = shell.object_inspect_mime("model.transformer.h[0].mlp")
    for said in ("transformer.h.0.mlp", "GPT2MLP", "8,352", f"float32{shape}", "modeling_gpt2.py:"):
        assert said in shown["text/plain"]
        assert said in shown["text/html"]


def test_hover_says_the_text_and_the_place_of_an_operation(shell, llm):
    shell.user_ns["model"] = llm
    shown = shell.object_inspect_mime("model.lm_head.source.F_linear_0")
    for said in ("lm_head.source.F_linear_0", "F.linear(", "Linear.forward", "linear.py:"):
        assert said in shown["text/plain"]
        assert said in shown["text/html"]


def test_hover_runs_nothing_before_the_first_pass(shell, llm):
    shell.user_ns["model"] = llm
    shown = shell.object_inspect_mime("model")
    assert "GPT2LMHeadModel" in shown["text/plain"]
    assert "Output" not in shown["text/plain"]
    assert llm._orders == {}


def test_other_objects_are_described_as_before(shell):
    shell.user_ns["number"] = 3
    shown = shell.object_inspect_mime("number")["text/plain"]
    assert "int" in shown
    assert "Parameters" not in shown


def test_a_hook_that_was_there_before_is_kept(bare_shell, llm):
    bare_shell.user_ns.update(model=llm, number=3)
    hooks = bare_shell.inspector.mime_hooks
    hooks["text/plain"] = theirs = lambda data: [("Theirs", "yes")]
    try:
        bare_shell.run_line_magic("load_ext", "insitu")
        assert "Theirs" in bare_shell.object_inspect_mime("number")["text/plain"]
        assert "GPT2LMHeadModel" in bare_shell.object_inspect_mime("model")["text/plain"]
        bare_shell.run_line_magic("unload_ext", "insitu")
        assert hooks == {"text/plain": theirs}
    finally:
        hooks.clear()
