"""`%cache [NAME] [OTHER]`: what a cache holds; with another one, how far they are apart.

%cache
%cache clean corrupted
"""

from collections.abc import Callable
from typing import Any

from insitu.engine.cache.activations import ActivationCache
from insitu.errors import UsageError
from insitu.notebook.magics.line import Syntax, taken
from insitu.notebook.magics.names import value
from insitu.notebook.magics.widgets import made

SYNTAX = Syntax("%cache", "%cache [NAME] [OTHER]")


class Latest:
    """Knows which cache was made last, by looking at the notebook's variables after each cell."""

    def __init__(self, ip: Any) -> None:
        self._ip = ip
        self._seen: dict[str, int] = {}
        self.name = ""

    def hear(self, _: Any) -> None:
        """A cell has ended."""
        for name, thing in tuple(self._ip.user_ns.items()):
            if isinstance(thing, ActivationCache) and not name.startswith("_"):
                if self._seen.get(name) != id(thing):
                    self.name = name
                self._seen[name] = id(thing)

    def there(self) -> str:
        """The name of the last cache that is still there; empty when there is none."""
        names = self._ip.user_ns
        caches = [name for name, it in names.items() if isinstance(it, ActivationCache)]
        caches = [name for name in caches if not name.startswith("_")]
        return self.name if self.name in caches else (caches[-1] if caches else "")


def register(ip: Any) -> tuple[Callable[[Any, str], Any], Callable[[], None]]:
    """The magic of a shell, and what ends its attention."""
    latest = Latest(ip)
    ip.events.register("post_run_cell", latest.hear)

    def cache(ip: Any, line: str) -> Any:
        """Open what a cache holds: a table of its tensors, a map and a histogram of one.

            %cache                  the cache that was made last
            %cache clean            a cache, or any tensor, dict or list of tensors
            %cache clean corrupted  the same, compared by name

        The view is a widget: `view = %cache`, then `view.tensor` is the one clicked last.
        """
        words = taken(SYNTAX, line).words
        if len(words) > 2:
            raise UsageError(
                f"%cache was given {len(words)} words: {' '.join(words)}.",
                "it shows one cache, or compares two.",
                f"the line is {SYNTAX.usage}",
            )
        names = words or [latest.there()]
        if not names[0]:
            raise UsageError(
                "%cache found no cache in this notebook.",
                "it looks for a variable that holds what tracer.cache() gave.",
                'keep one: %%trace model "Hello" --cache transformer.h.*',
            )
        things = [value(SYNTAX, name, "name", ip.user_ns) for name in names]
        return made("cache_inspector:CacheInspector", *things)

    return cache, lambda: ip.events.unregister("post_run_cell", latest.hear)
