"""Run the tutorial notebooks and keep their outputs as a page shows them: no widget state.

python tools/notebooks.py [notebooks/01_tour.ipynb …]

A widget's output keeps its static twin (HTML and text); its live view and its state stay out, so
that a notebook is small, and reads the same on a page without a kernel.
"""

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient

LIVE = "application/vnd.jupyter.widget-view+json"
SIZE_MAX_KB = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    chosen = parser.parse_args().notebooks or sorted(Path("notebooks").glob("*.ipynb"))
    for path in chosen:
        book = nbformat.read(path, as_version=4)
        NotebookClient(
            book, timeout=120, resources={"metadata": {"path": str(path.parent)}}
        ).execute()
        strip(book)
        nbformat.write(book, path)
        size_kb = path.stat().st_size // 1000
        assert size_kb <= SIZE_MAX_KB, f"{path} has {size_kb} kB, the budget is {SIZE_MAX_KB}"
        print(f"{path}  {size_kb} kB")


def strip(book: nbformat.NotebookNode) -> None:
    """Take out what only a live kernel has a use for."""
    book.metadata.pop("widgets", None)
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            if "data" in output:
                output.data.pop(LIVE, None)


if __name__ == "__main__":
    main()
