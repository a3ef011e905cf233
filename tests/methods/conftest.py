"""What the tests of most methods begin with: the demo model, and two questions it can answer."""

import pytest

from insitu import LanguageModel
from insitu.methods.metrics import logit_difference


@pytest.fixture(scope="session")
def demo_parts():
    model = LanguageModel("demo")
    return model._module, model.tokenizer


@pytest.fixture(scope="module")
def demo(demo_parts):
    """The demo model: weights that are read once, in a wrapper of each file's own."""
    module, tokenizer = demo_parts
    return LanguageModel(module, tokenizer=tokenizer)


@pytest.fixture
def paris(demo):
    """How much likelier Paris is than Rome."""
    return logit_difference(demo, " Paris", " Rome")


@pytest.fixture
def mary(demo):
    """How much likelier Mary is than John."""
    return logit_difference(demo, " Mary", " John")
