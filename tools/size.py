"""Lines of each file and function, against the budgets of the house style.

python tools/size.py            # the table
python tools/size.py --check    # only what is over budget; exit 1 if anything is
"""

import argparse
import ast
import sys
from pathlib import Path

FILE_MAX, FUNCTION_MAX = 400, 40
CORE, CORE_MAX = ("switch", "arming", "interleave", "steps", "trace"), 1500


def functions_over(tree: ast.Module) -> list[tuple[str, int]]:
    """Functions longer than the budget, without their docstrings."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > FUNCTION_MAX:
                found.append((node.name, lines))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    over, total, core = [], 0, 0
    for path in sorted(Path("src").rglob("*.py")):
        text = path.read_text()
        lines = text.count("\n")
        total += lines
        core += lines if path.parent.name == "engine" and path.stem in CORE else 0
        if (
            lines > FILE_MAX
            and "Over 400 lines:" not in text.partition('"""')[2].partition('"""')[0]
        ):
            over.append(f"{path}: {lines} lines, the budget is {FILE_MAX}")
        over += [
            f"{path}: {name} has {n} lines, the budget is {FUNCTION_MAX}"
            for name, n in functions_over(ast.parse(text))
        ]
        if not check:
            print(f"{lines:5}  {path}")
    if core > CORE_MAX:
        over.append(f"the engine's core has {core} lines, the budget is {CORE_MAX}")
    print(f"{total:5}  in all; core of the engine {core} of {CORE_MAX}")
    print("\n".join(over))
    return 1 if check and over else 0


if __name__ == "__main__":
    sys.exit(main())
