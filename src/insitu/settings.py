"""Settings, in one place: `insitu.CONFIG`.

    CONFIG.APP.DEBUG = True                # tracebacks show Insitu's own frames too
    CONFIG.APP.REMOTE_LOGGING = False      # jobs run without their log
    CONFIG.set_default_api_key("…")        # for this process
    CONFIG.save()                          # and for those to come
    print(CONFIG)                          # every setting, its value, what it is for

A name that does not exist, or a value of another type, is refused when it is written. `DEBUG`
begins as False: a traceback then ends at the user's own line. `python -d script.py` and
`script.py --debug` turn it on.

`save()` writes `insitu/config.json` in the user's config folder ($XDG_CONFIG_HOME, else ~/.config;
%APPDATA% on Windows), readable by nobody else. INSITU_API_KEY comes before a key that was set or
saved, and is itself never saved. NDIF_API_KEY, of older documents, is read where there is neither:
it may have been set for another program's server, so whatever is meant for ours comes before it.
"""

import difflib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from insitu.errors import InsituWarning, UnknownSettingError, UsageError

KEY_VARIABLE = "INSITU_API_KEY"
OLDER_KEY_VARIABLE = "NDIF_API_KEY"

_TAKES: dict[Any, str] = {bool: "True or False", str | None: "text or None"}


def _asked_to_debug() -> bool:
    return bool(sys.flags.debug) or "--debug" in sys.argv[1:]


class _Checked:
    """Attributes with fixed names and types. Abstract."""

    def __setattr__(self, name: str, value: Any) -> None:
        setting = next((it for it in _settings(self) if it.name == name), None)
        if setting is None:
            raise _unknown(self, name)
        if not isinstance(value, setting.type):  # type: ignore[arg-type]
            takes = _TAKES.get(setting.type, "nothing: its settings are written one by one")
            raise UsageError(
                f"the setting {_label(self)}.{name} was given {type(value).__name__}.",
                f"it takes {takes}; it is there for this: {setting.metadata['about']}.",
                "print(CONFIG) shows every setting and its value.",
            )
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:  # asked only for what is not there
        if name.startswith("_"):
            raise AttributeError(name)
        raise _unknown(self, name)

    @contextmanager
    def override(self, **values: Any) -> Iterator[None]:
        """Other settings for the length of a block: `with CONFIG.APP.override(DEBUG=True):`."""
        before = {name: getattr(self, name) for name in values}
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)


@dataclass(repr=False)
class App(_Checked):
    """`CONFIG.APP`: how Insitu behaves on this machine."""

    DEBUG: bool = field(
        default_factory=_asked_to_debug,
        metadata={"about": "show Insitu's own frames in tracebacks", "saved": False},
    )
    REMOTE_LOGGING: bool = field(
        default=True, metadata={"about": "show what a server reports while a job runs"}
    )

    def __repr__(self) -> str:
        return _table(_rows(self))


@dataclass(repr=False)
class Api(_Checked):
    """`CONFIG.API`: the server that remote blocks run on."""

    HOST: str | None = field(default=None, metadata={"about": "the server that remote=True means"})
    KEY: str | None = field(
        default=None, metadata={"about": f"the key sent to it, unless {KEY_VARIABLE} is set"}
    )

    def __repr__(self) -> str:
        return _table(_rows(self))


@dataclass(repr=False)
class Config(_Checked):
    """Every setting of Insitu; there is one, `insitu.CONFIG`.

    CONFIG.APP.DEBUG = True
    CONFIG.set_default_api_key("…")
    """

    APP: App = field(default_factory=App, metadata={"about": "how Insitu behaves on this machine"})
    API: Api = field(
        default_factory=Api, metadata={"about": "the server that remote blocks run on"}
    )

    @property
    def api_key(self) -> str | None:
        """The key a server is sent: INSITU_API_KEY, else the one set here, else NDIF_API_KEY."""
        own = os.environ.get(KEY_VARIABLE) or self.API.KEY
        return own or os.environ.get(OLDER_KEY_VARIABLE) or None

    def set_default_api_key(self, key: str) -> None:
        """Use a key in this process; `save()` keeps it for later ones."""
        if not isinstance(key, str) or not key.strip():
            raise UsageError(
                f"set_default_api_key() was given {_kind_of_key(key)}.",
                "a server knows its users by the key they send, a piece of text.",
                f"give the key as text, or set the environment variable {KEY_VARIABLE}.",
            )
        self.API.KEY = key.strip()

    def save(self) -> Path:
        """Keep the settings for later processes, but for DEBUG; gives the file they are in."""
        place = config_file()
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=place.parent)  # made with 0600
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(_saved(self), file, indent=2)
            os.replace(unfinished, place)
        except BaseException:
            Path(unfinished).unlink(missing_ok=True)
            raise
        return place

    def __repr__(self) -> str:
        return _table(_rows(self.APP) + _rows(self.API))


def _kind_of_key(key: Any) -> str:
    return "an empty key" if isinstance(key, str) else type(key).__name__


def config_file() -> Path:
    """Where settings are saved."""
    if sys.platform == "win32":
        folder = os.environ.get("APPDATA") or os.path.expanduser("~")
    else:
        folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(folder) / "insitu" / "config.json"


def load(place: Path) -> Config:
    """The settings that a file holds over the defaults; one that cannot be used is warned about."""
    config = Config()
    try:
        for group, values in json.loads(place.read_text()).items():
            for name, value in values.items():
                setattr(getattr(config, group), name, value)
    except FileNotFoundError:
        return config
    except (OSError, ValueError, AttributeError) as error:
        warnings.warn(
            f"the settings in {place} were not all read: {str(error).splitlines()[0]} "
            "Mend or remove the file; CONFIG.save() writes it anew.",
            InsituWarning,
            stacklevel=2,
        )
    return config


def _saved(config: Config) -> dict[str, dict[str, Any]]:
    return {
        group.name: {
            it.name: getattr(getattr(config, group.name), it.name)
            for it in _settings(getattr(config, group.name))
            if it.metadata.get("saved", True)
        }
        for group in fields(config)
    }


def _settings(group: Any) -> tuple[Field[Any], ...]:
    return fields(group)


def _label(group: _Checked) -> str:
    return "CONFIG" if isinstance(group, Config) else f"CONFIG.{type(group).__name__.upper()}"


def _unknown(group: _Checked, name: str) -> UnknownSettingError:
    label = _label(group)
    names = [it.name for it in _settings(group)]
    close = difflib.get_close_matches(name.upper(), names, n=1, cutoff=0.5)
    return UnknownSettingError(
        f"{label} has no setting called {name!r}.",
        f"it has {' and '.join(names)}.",
        f"did you mean {label}.{close[0]}?" if close else "print(CONFIG) shows every setting.",
    )


def _rows(group: _Checked) -> list[tuple[str, str, str]]:
    return [
        (
            f"{_label(group)}.{it.name}",
            _shown(it.name, getattr(group, it.name)),
            it.metadata["about"],
        )
        for it in _settings(group)
    ]


def _shown(name: str, value: Any) -> str:
    """A value as it is printed; of a key only what tells it from another."""
    if name == "KEY" and value:
        return f"…{value[-4:]}" if len(value) > 12 else "…"
    return repr(value)


def _table(rows: list[tuple[str, str, str]]) -> str:
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{name:{first}}  {value:{second}}  {about}" for name, value, about in rows)


CONFIG = load(config_file())
