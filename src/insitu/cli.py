"""The command line: `python -m insitu demo`.

python -m insitu demo --html demo.html     # look inside the demo model
"""

import argparse
from pathlib import Path

from insitu import __version__, tour
from insitu.models.language import LanguageModel


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
    options = parser.parse_args(arguments)
    _demo(options.html)


def _demo(page: Path | None) -> None:
    found = tour.explore(LanguageModel("demo"))
    print(tour.as_text(found))
    if page is not None:
        page.write_text(tour.as_html(found), encoding="utf-8")
        print(f"\nThe same as a page: {page}")
