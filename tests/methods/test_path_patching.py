import patched_by_hooks as oracle
import pytest
import torch
from patched_by_hooks import GIVING

from insitu import InputError, UsageError
from insitu.errors import MetricError
from insitu.methods.metrics import logit_difference
from insitu.methods.path_patching import path_patching

EVERY = slice(None)


class ByHooks:
    """One path: sender (layer, head) to receivers, everything else held at the clean run."""

    def __init__(self, demo):
        self.net = demo._module
        self.clean, self.corrupt = (oracle.ids_of(demo.tokenizer, text) for text in GIVING)
        self.metric = oracle.last_difference(demo.tokenizer, " Mary", " John")

    def held(self, sender, of, positions=EVERY, mlps=True):
        def still(name, layer):
            value = oracle.values(self.net, self.clean, name, layer)
            if (name, layer) == (of, sender[0]):
                other = oracle.values(self.net, self.corrupt, name, layer)
                at = (EVERY, positions, sender[1]) if name == "heads" else (EVERY, positions)
                value[at] = other[at]
            return value

        names = ("heads", "mlp") if mlps else ("heads",)
        values = {(name, layer): still(name, layer) for layer in range(6) for name in names}
        return {place: lambda _, value=value: value for place, value in values.items()}

    def to_logits(self, sender, of="heads", **how):
        return self.metric(oracle.logits(self.net, self.clean, self.held(sender, of, **how))).item()

    def to_head(self, sender, layer, head, by):
        changes = self.held(sender, "heads")
        del changes["heads", layer]  # the receiver's own layer is read before its output
        seen = []

        def keep(value):
            seen.append(value.clone())
            return value

        oracle.logits(self.net, self.clean, {**changes, (by, layer): keep})
        change = {(by, layer): oracle.patched(seen[0], (EVERY, EVERY, head))}
        return self.metric(oracle.logits(self.net, self.clean, change)).item()


def test_paths_to_the_logits_are_those_of_plain_hooks(demo, mary):
    hooks = ByHooks(demo)
    found = path_patching(demo, *GIVING, mary)
    assert found.names == ("layer", "head")
    for sender in ((0, 0), (2, 3), (5, 3)):
        expected = hooks.to_logits(sender)
        assert found.further["metric"].values[sender] == pytest.approx(expected, abs=1e-4)
    assert found.info["passes"] == 2


def test_paths_from_mlps_and_at_some_positions_are_those_of_plain_hooks(demo, mary):
    hooks = ByHooks(demo)
    found = path_patching(demo, *GIVING, mary, of="mlp")
    assert found.names == ("layer",)
    for layer in (0, 3):
        expected = hooks.to_logits((layer, 0), "mlp")
        assert found.further["metric"].values[layer] == pytest.approx(expected, abs=1e-4)
    last = path_patching(demo, *GIVING, mary, positions=[-1])
    expected = hooks.to_logits((2, 3), positions=[-1])
    assert last.further["metric"].values[2, 3] == pytest.approx(expected, abs=1e-4)


def test_paths_through_later_mlps_are_those_of_plain_hooks(demo, mary):
    found = path_patching(demo, *GIVING, mary, through_mlps=True)
    expected = ByHooks(demo).to_logits((0, 1), mlps=False)
    assert found.further["metric"].values[0, 1] == pytest.approx(expected, abs=1e-4)


def test_an_mlp_sends_through_later_ones(demo, mary):
    found = path_patching(demo, *GIVING, mary, of="mlp", through_mlps=True)
    hooks = ByHooks(demo)
    changes = hooks.held((0, 0), "mlp")
    changes = {place: change for place, change in changes.items() if place[0] == "heads"}
    value = oracle.values(hooks.net, hooks.corrupt, "mlp", 2)
    changes["mlp", 2] = lambda _: value
    expected = hooks.metric(oracle.logits(hooks.net, hooks.clean, changes)).item()
    assert found.further["metric"].values[2] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("by", ["q", "k", "v"])
def test_paths_to_a_head_are_those_of_plain_hooks(demo, mary, by):
    hooks = ByHooks(demo)
    found = path_patching(demo, *GIVING, mary, to=[(2, 3)], by=by)
    for sender in ((0, 0), (1, 1)):
        expected = hooks.to_head(sender, 2, 3, by)
        assert found.further["metric"].values[sender] == pytest.approx(expected, abs=1e-4)
    assert (found.values[2:] == 0).all()  # what runs after the receiver sends nothing to it


def test_several_receivers_are_patched_together_and_in_small_batches(demo, mary):
    both = path_patching(demo, *GIVING, mary, to=[(2, 3), (2, 2), (3, 0)], by="v")
    small = path_patching(demo, *GIVING, mary, to=[(3, 0), (2, 2), (2, 3)], by="v", batch_size=5)
    torch.testing.assert_close(both.values, small.values, atol=1e-5, rtol=1e-4)
    assert both.info["passes"] == 3  # both runs; all senders; all receivers
    assert small.info["passes"] == 1 + 2 * 3


def test_several_pairs_are_averaged(demo):
    each = logit_difference(demo, [" Mary", " John"], [" John", " Mary"])
    both = path_patching(demo, list(GIVING), list(GIVING[::-1]), each)
    one = path_patching(demo, *GIVING, logit_difference(demo, " Mary", " John"))
    other = path_patching(demo, *GIVING[::-1], logit_difference(demo, " John", " Mary"))
    mean = (one.further["metric"].values + other.further["metric"].values) / 2
    torch.testing.assert_close(both.further["metric"].values, mean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"to": "embed"}, "no receivers"), ({"to": [3]}, "no receivers"), ({"to": []}, "no receivers"),
     ({"to": [(6, 0)]}, "layer 6"), ({"to": [(1, 4)]}, "head 4"), ({"of": "q"}, "no sender"),
     ({"to": [(1, 0)], "by": "z"}, "no receivers"), ({"positions": [14]}, "position 14")],
)  # fmt: skip
def test_what_does_not_exist_is_refused(demo, mary, wrong, told):
    with pytest.raises(UsageError, match=told):
        path_patching(demo, *GIVING, mary, **wrong)


def test_unequal_prompts_and_useless_metrics_are_refused(demo, mary):
    with pytest.raises(InputError, match="tokens"):
        path_patching(demo, GIVING[0], "Big Ben is in the city of", mary)
    with pytest.raises(MetricError, match="there is none"):
        path_patching(demo, GIVING[0], GIVING[0], mary)
