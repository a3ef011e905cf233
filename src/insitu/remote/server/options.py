"""The words of `insitu serve` and `insitu keys`, apart from what they need to run.

insitu serve demo --trust team --port 8765
insitu keys add ada --expires 30d
"""

import argparse
import os
import re
from pathlib import Path

PORT = 8765
TRUSTS = ("self", "team", "public")
BACKENDS = ("processes", "ray")
_UNITS = {"h": 1 / 24, "d": 1.0, "w": 7.0}
_OPTION = re.compile("--[a-z-]+(=|$)")


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both commands to a command line."""
    _add_serve(commands.add_parser("serve", help="run blocks of others, with the models here"))
    _add_keys(commands.add_parser("keys", help="who may send blocks to a server"))


def parsed(words: list[str]) -> argparse.Namespace:
    """What `serve demo --port 0` means, read apart from the rest of the command line."""
    parser = argparse.ArgumentParser(prog="insitu")
    add_to(parser.add_subparsers(dest="command", required=True))
    return parser.parse_args(keys_kept(words))


def keys_kept(words: list[str]) -> list[str]:
    """The words, in which a random key that begins with `-` is not taken for an option."""
    kept: list[str] = []
    for word in words:
        if kept[-1:] == ["--key"] and word.startswith("-") and not _OPTION.match(word):
            kept[-1] += f"={word}"
        else:
            kept.append(word)
    return kept


def _add_serve(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("models", nargs="+", metavar="MODEL", help="a name, or a folder")
    serve.add_argument(
        "--trust", choices=TRUSTS, default="self",
        help="whose blocks run: your own (default), your team's, or anybody's",
    )  # fmt: skip
    serve.add_argument("--host", default="127.0.0.1", help="an address of this machine")
    serve.add_argument("--port", type=int, default=PORT, help=f"default {PORT}; 0 is a free one")
    serve.add_argument("--device", default="auto", help="where the models are: auto, cpu, cuda:0")
    serve.add_argument(
        "--key", default=os.environ.get("INSITU_SERVER_KEY", ""),
        help="one key that opens everything; better in INSITU_SERVER_KEY, which `ps` does not show",
    )  # fmt: skip
    serve.add_argument(
        "--data", type=Path, metavar="FOLDER", help="where jobs and results are kept"
    )
    _add_places(serve)
    serve.add_argument(
        "--keep", type=days, default=1.0, metavar="TIME", help="how long results stay: 12h, 1d"
    )
    serve.add_argument(
        "--drain", type=float, default=60.0, metavar="S", help="jobs may run so long after SIGTERM"
    )
    loading = serve.add_mutually_exclusive_group()
    loading.add_argument(
        "--preload", action="store_true", default=True, help="load the models now (default)"
    )
    loading.add_argument(
        "--lazy", dest="preload", action="store_false", help="load a model when it is first asked"
    )
    serve.add_argument("--json-logs", action="store_true", help="logs as JSON, a line each")


def _add_places(serve: argparse.ArgumentParser) -> None:
    """Where models compute."""
    serve.add_argument(
        "--apart", action="store_true",
        help="models compute in processes of their own: no job shares memory with the weights "
        "(on a GPU always so, with --trust team and public)",
    )  # fmt: skip
    serve.add_argument("--threads", type=int, metavar="N", help="of a model's forward on the CPU")
    serve.add_argument(
        "--backend", choices=BACKENDS, default=BACKENDS[0],
        help="where models are: processes of this machine (default), or replicas on Ray",
    )  # fmt: skip
    serve.add_argument(
        "--address", default="", metavar="ADDRESS",
        help="of a Ray cluster: auto, host:port, ray://host:port; by default one is started here",
    )  # fmt: skip
    serve.add_argument(
        "--replicas", type=count, default=1, metavar="N", help="of each model, with --backend ray"
    )


def _add_keys(keys: argparse.ArgumentParser) -> None:
    acts = keys.add_subparsers(dest="act", required=True)
    add = acts.add_parser("add", help="make a key and show it, once")
    add.add_argument("name", help="whose it is")
    add.add_argument(
        "--scopes", default="run,read", help="what it opens: run, read, admin (default run,read)"
    )
    add.add_argument("--expires", type=days, metavar="TIME", help="when it ends: 12h, 30d, 4w")
    listed = acts.add_parser("list", help="every key there is or was, without the keys themselves")
    revoke = acts.add_parser("revoke", help="end a user's keys now")
    revoke.add_argument("name", help="whose")
    for it in (add, listed, revoke):
        it.add_argument("--data", type=Path, metavar="FOLDER", help="the server's, if it has one")


def days(text: str) -> float:
    """`12h`, `30d` or `4w` in days."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([hdw]?)", text.strip())
    if found is None or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 12h, 30d or 4w")
    return float(found[1]) * _UNITS[found[2] or "d"]


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def data_folder(said: Path | None) -> Path:
    """Where servers of this user keep what they keep, unless a folder was named."""
    if said is not None:
        return said.expanduser()
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "insitu"
