import subprocess
import sys


def state(shell):
    """Everything of a shell that the extension touches."""
    formatters = shell.display_formatter.formatters
    return {
        "magics": dict(shell.magics_manager.magics["cell"]),
        "line magics": dict(shell.magics_manager.magics["line"]),
        "events": {name: list(calls) for name, calls in shell.events.callbacks.items()},
        "displays": {mime: dict(f.type_printers) for mime, f in formatters.items()},
        "matchers": list(shell.Completer.custom_matchers),
        "hooks": dict(shell.inspector.mime_hooks),
    }


def test_unloading_leaves_ipython_as_it_was(bare_shell):
    bare_shell.find_line_magic("run")  # IPython 9.18 loads it when it is first asked for
    before = state(bare_shell)
    bare_shell.run_line_magic("load_ext", "insitu")
    loaded = state(bare_shell)
    assert all(loaded[part] != before[part] for part in before)
    bare_shell.run_line_magic("unload_ext", "insitu")
    assert state(bare_shell) == before


def test_loading_twice_changes_nothing(shell):
    import insitu

    loaded = state(shell)
    insitu.load_ipython_extension(shell)
    assert state(shell) == loaded


def test_a_trace_magic_that_was_there_before_comes_back(bare_shell):
    def theirs(line, cell):
        pass

    bare_shell.register_magic_function(theirs, "cell", "trace")
    try:
        bare_shell.run_line_magic("load_ext", "insitu")
        assert bare_shell.find_cell_magic("trace") is not theirs
        bare_shell.run_line_magic("unload_ext", "insitu")
        assert bare_shell.find_cell_magic("trace") is theirs
    finally:
        del bare_shell.magics_manager.magics["cell"]["trace"]


def test_importing_insitu_imports_no_ipython():
    code = "import sys, insitu; assert 'IPython' not in sys.modules; insitu.load_ipython_extension"
    subprocess.run([sys.executable, "-c", code], check=True)
