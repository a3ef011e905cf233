"""What the package shows, and what importing it leaves alone."""

import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

import insitu


def python(code):
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning:insitu", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_public_names_exist_and_are_sorted():
    assert insitu.__all__ == sorted(insitu.__all__)
    assert len(set(insitu.__all__)) == len(insitu.__all__)
    for name in insitu.__all__:
        assert getattr(insitu, name).__doc__, name


def test_public_names_are_these():
    classes = {"LanguageModel", "NNsight", "Run", "Tracer", "WrappedModule", "InsituWarning"}
    assert classes | {"force", "save"} <= set(insitu.__all__)
    errors = {name for name in insitu.__all__ if name.endswith("Error")}
    assert errors == {n for n in dir(insitu.errors) if n.endswith("Error")}


def test_every_error_is_an_insitu_error():
    for name in insitu.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(insitu, name), insitu.InsituError)


def test_importing_patches_nothing_and_loads_no_heavy_part():
    done = python("""
        import builtins, gc, sys, threading, warnings
        import torch
        from torch import nn
        watched = [torch, torch.Tensor, nn.Module, nn.Linear, torch.autograd, object]
        watched += [sys, builtins, threading]
        before = [dict(vars(it)) for it in watched]
        filters, hooks = list(warnings.filters), dict(sys.modules)
        import insitu
        skip = {"modules", "path_importer_cache", "last_value", "last_type", "last_traceback"}
        for it, was in zip(watched, before):
            now = vars(it)
            changed = {k for k in now.keys() | was.keys() if now.get(k) is not was.get(k)} - skip
            changed = {k for k in changed if not isinstance(now.get(k), type(sys))}
            assert not changed, (it, changed)
        assert warnings.filters == filters
        heavy = {"IPython", "ipykernel", "ray", "vllm", "diffusers", "starlette", "plotly"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        assert not hasattr(object(), "save") and not hasattr([], "save")
    """)
    assert done.returncode == 0, done.stderr


def test_importing_prints_nothing():
    done = python("import insitu")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_importing_seeds_nothing():
    done = python("""
        import random, torch
        torch.manual_seed(1); random.seed(1)
        tensors, numbers = torch.random.get_rng_state(), random.getstate()
        import insitu
        assert torch.equal(torch.random.get_rng_state(), tensors) and random.getstate() == numbers
    """)
    assert done.returncode == 0, done.stderr


def test_the_engine_works_without_the_outer_layers():
    done = python("""
        import sys
        for name in ("insitu.notebook", "IPython", "ipykernel", "plotly", "ipywidgets"):
            sys.modules[name] = None
        import insitu, torch
        model = insitu.NNsight(torch.nn.Linear(2, 2))
        with model.trace(torch.ones(1, 2)):
            out = model.output
        print(tuple(out.shape))
    """)
    assert done.stdout == "(1, 2)\n", done.stderr


def test_the_version_is_a_version():
    major, minor, patch = insitu.__version__.split(".")
    assert major.isdigit()
    assert minor.isdigit()
    assert patch[0].isdigit()


def test_the_docstring_shows_a_program():
    assert "with model.trace(" in insitu.__doc__
    assert (Path(insitu.__file__).parent / "errors.py").is_file()


@pytest.mark.slow
def test_a_wheel_carries_every_bundle_and_every_model_that_ships(tmp_path):
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, root]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for front_end in (root / "labextension" / "src" / "widgets").glob("*.ts"):
        assert f"insitu/widgets/bundles/{front_end.stem}.js" in names
    for weights in (root / "src").rglob("*.safetensors"):
        assert str(weights.relative_to(root / "src")) in names


def test_save_is_insitus_own_though_another_library_gives_every_object_one():
    done = python("import insitu; assert 'save' in vars(insitu)")
    assert done.returncode == 0, done.stderr
