"""The line magics of a shell: put there, and taken away again.

leave = register(ip)
leave()
"""

import inspect
from collections.abc import Callable
from typing import Any

from IPython.core.magic import no_var_expand

from insitu.notebook.magics import cache, jobs, lens, modules, patch, remote, run, sites, source
from insitu.notebook.magics.line import Syntax
from insitu.notebook.shown_errors import show_users_lines

SYNTAXES: dict[str, Syntax] = {
    "modules": modules.SYNTAX,
    "source": source.SYNTAX,
    "cache": cache.SYNTAX,
    "sites": sites.SYNTAX,
    "run": run.SYNTAX,
    "lens": lens.LENS,
    "patch": patch.SYNTAX,
    "attention": lens.ATTENTION,
    "jobs": jobs.SYNTAX,
    "remote": remote.SYNTAX,
}
"""By magic, what its line may hold."""


def register(ip: Any) -> Callable[[], None]:
    """Add the magics; gives what takes them away again, and puts back what was there before."""
    magics = ip.magics_manager.magics["line"]
    theirs = {name: ip.find_line_magic(name) for name in SYNTAXES if name in magics}
    before = {name: magics[name] for name in theirs}  # IPython 9.18 loads its own when asked
    open_cache, forget_caches = cache.register(ip)
    ours: dict[str, Callable[[Any, str], Any]] = {
        "modules": modules.modules,
        "source": source.source,
        "cache": open_cache,
        "sites": sites.sites,
        "run": run.RunMagic(theirs["run"]),
        "lens": lens.lens,
        "patch": patch.patch,
        "attention": lens.attention,
        "jobs": jobs.jobs,
        "remote": remote.remote,
    }
    for name, act in ours.items():
        ip.register_magic_function(_magic(ip, act, theirs.get(name)), "line", name)

    def unregister() -> None:
        forget_caches()
        for name in SYNTAXES:
            magics.pop(name, None)
        magics.update(before)

    return unregister


def _magic(ip: Any, act: Callable[[Any, str], Any], theirs: Any) -> Callable[[str], Any]:
    """A function of a line alone; its help is that of the magic, and of the one it hides."""
    is_object = not inspect.isroutine(act)

    def magic(line: str) -> Any:
        __tracebackhide__ = True
        try:
            return act(ip, line)
        except BaseException as error:
            if not is_object or line.partition(" ")[0] in run.WORDS:
                show_users_lines(error, ip)
            raise

    doc = inspect.getdoc(type(act).__call__ if is_object else act) or ""
    theirs_doc = inspect.getdoc(theirs) if theirs is not None else ""
    magic.__doc__ = f"{doc}\n\n{theirs_doc}" if theirs_doc else doc
    return no_var_expand(magic)  # type: ignore[no-any-return]
