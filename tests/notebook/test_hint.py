from IPython.utils.capture import capture_output

from insitu.notebook import hint


def printed(shell, code):
    with capture_output() as caught:
        shell.run_cell(code)
    return caught.stdout


def offered(shell):
    """A cell that imports insitu for the first time in a shell."""
    hint._hints.pop(shell, None)
    return "from insitu.notebook import hint; hint.offer(); print('body')"


def waiting(shell):
    """The hints that are still to come; others, such as matplotlib and views, wait there too."""
    heard = shell.events.callbacks["post_run_cell"]
    return [it for it in heard if isinstance(getattr(it, "__self__", None), hint._Hint)]


def test_the_hint_comes_once_after_the_cell(bare_shell):
    assert printed(bare_shell, offered(bare_shell)) == f"body\n{hint.HINT}\n"
    assert not waiting(bare_shell)
    assert printed(bare_shell, "hint.offer(); print('body')") == "body\n"


def test_a_cell_that_loads_the_extension_gets_no_hint(bare_shell):
    try:
        said = printed(bare_shell, offered(bare_shell) + "\n%load_ext insitu\nprint('end')")
        assert said == "body\nend\n"
        assert not waiting(bare_shell)
    finally:
        bare_shell.run_line_magic("unload_ext", "insitu")


def test_a_first_import_by_the_extension_gets_no_hint(bare_shell):
    hint._hints.pop(bare_shell, None)
    try:
        assert printed(bare_shell, "%load_ext insitu") == ""
        assert printed(bare_shell, "import insitu") == ""
    finally:
        bare_shell.run_line_magic("unload_ext", "insitu")


def test_without_a_shell_nothing_is_said(monkeypatch, capsys):
    monkeypatch.setattr(hint, "get_ipython", lambda: None)
    hint.offer()
    assert capsys.readouterr().out == ""
