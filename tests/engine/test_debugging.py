"""With CONFIG.APP.DEBUG errors keep the engine's own frames; without, the user's alone."""

import os
import traceback

import pytest
import torch

import insitu
from insitu import NNsight

ENGINE = os.path.dirname(insitu.__file__) + os.sep


def ours(error):
    """How many frames of an error's traceback are the engine's."""
    frames = traceback.extract_tb(error.__traceback__)
    return sum(frame.filename.startswith(ENGINE) for frame in frames)


@pytest.mark.parametrize("validate", [False, True])
def test_an_error_shows_the_engine_while_it_is_debugged_alone(net, x, validate, monkeypatch):
    model, shown = NNsight(net), []
    for debug in (False, True):
        monkeypatch.setattr(insitu.CONFIG.APP, "DEBUG", debug)
        with pytest.raises(insitu.WriteError) as caught:
            with model.trace(x, validate=validate):
                model.layer1.output = torch.zeros(1, 3)
        shown.append(ours(caught.value))
    plain, debugged = shown
    assert debugged > plain


def test_the_note_on_backward_is_given_to_its_own_error_alone(net, x):
    model = NNsight(net)
    with pytest.raises(TypeError, match="context manager protocol") as caught:
        with model.trace(x):
            with model.layer1.output:
                pass
    assert not getattr(caught.value, "__notes__", [])
