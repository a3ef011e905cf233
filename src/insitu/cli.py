"""The command line: `python -m insitu demo`.

python -m insitu demo --html demo.html     # look inside the demo model
python -m insitu serve demo                # blocks of others run here
python -m insitu keys add ada              # who may send them
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from insitu import __version__
from insitu.errors import InsituError, MissingPackageError
from insitu.remote.server import options as server_options


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="insitu", description="Look inside a running neural network, and change it there."
    )
    parser.add_argument("--version", action="version", version=f"insitu {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="look inside the demo model, which needs no download")
    demo.add_argument(
        "--html", type=Path, metavar="FILE", help="write what was found to a page too"
    )
    server_options.add_to(commands)
    words = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(server_options.keys_kept(words))
    if options.command == "demo":
        _demo(options.html)
        return
    try:
        status = _server(options)
    except InsituError as error:
        sys.exit(str(error))
    if status:
        sys.exit(status)


def _demo(page: Path | None) -> None:
    from insitu import LanguageModel, tour  # torch: a server's process has none

    found = tour.explore(LanguageModel("demo"))
    print(tour.as_text(found))
    if page is not None:
        page.write_text(tour.as_html(found), encoding="utf-8")
        print(f"\nThe same as a page: {page}")


def _server(options: argparse.Namespace) -> int:
    """`serve` and `keys`, whose packages are asked for only here.

    Raises:
        MissingPackageError: starlette or uvicorn is not installed.
    """
    if options.command == "keys":
        importlib.import_module("insitu.remote.server.keys_command").run(options)
        return 0
    try:
        serve: Any = importlib.import_module("insitu.remote.server.serve")
    except ModuleNotFoundError as error:
        if error.name in ("starlette", "uvicorn", "httptools", "anyio"):
            raise MissingPackageError(
                f"the package {error.name} is not installed.",
                "insitu serve answers with starlette and uvicorn; nothing else here needs them.",
                'Install them: pip install "insitu[serve]".',
            ) from error
        raise
    status: int = serve.run(options)
    return status
