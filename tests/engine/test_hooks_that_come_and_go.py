"""A pass arms a hooked module while another thread's pass puts its hook there, or takes it out."""

import torch

from insitu import NNsight
from insitu.engine import arming


def test_a_hook_that_goes_while_a_module_is_armed_is_no_error(monkeypatch):
    net = torch.nn.Sequential(torch.nn.Linear(5, 2))
    plain = torch.nn.Linear(5, 2)
    plain.load_state_dict(net[0].state_dict())
    net[0].register_forward_hook(lambda module, args, output: output * 2)
    net[0].register_forward_hook(lambda module, args, output: output + 1)

    def while_it_comes_and_goes(hook):
        net[0].register_forward_hook(lambda *_: None).remove()  # as a pass of another thread does
        return True  # they only record: the pass goes before them, and all of them are asked

    monkeypatch.setattr(arming, "is_recorder", while_it_comes_and_goes)
    model, x = NNsight(net), torch.rand(1, 5)
    with model.trace(x):
        h, out = model[0].output, model.output
    assert torch.equal(h, plain(x))
    assert torch.equal(out, plain(x) * 2 + 1)
