"""The server computes nothing: what its process imports has no torch in it."""

import subprocess
import sys

PROGRAM = """
import sys
import insitu.cli
import insitu.remote.server.serve
heavy = {"torch", "numpy", "transformers", "safetensors", "requests"} & sys.modules.keys()
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


def test_insitu_serve_does_without_torch():
    """33 MB and 0.4 s, where 229 and 3.8 would be needed."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr


def test_every_name_of_the_package_is_there_when_it_is_named():
    names = "import insitu\nfor name in insitu.__all__: assert name in dir(insitu)\n"
    program = f"{names}from insitu import *\nassert NNsight is insitu.NNsight"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
