import pytest
import torch
from random_llama import tiny_llama

from insitu.methods.recording import rows_max
from insitu.methods.sites import site_of
from insitu.methods.sweep import Cells, Sweep

IDS = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 9, 4, 6]])


def metric(logits):
    return logits[:, -1, 5]


@pytest.fixture
def sweep():
    return Sweep(tiny_llama()[0], site_of("resid_pre"), metric)


def test_cells_are_every_pattern_at_every_window():
    cells = Cells.each([range(1), range(2)], torch.eye(2, dtype=torch.bool))
    assert cells.layers == [range(1), range(1), range(2), range(2)]
    assert cells.masks.tolist() == [[True, False], [False, True]] * 2


def test_only_cells_that_change_something_are_live(sweep):
    both = sweep.record(IDS)
    cells = Cells.each([range(1), range(2, 3)], torch.eye(5, dtype=torch.bool))
    live = cells.live(both.part(0, 1), both.part(1, 2))
    # embeddings differ at 2 and 4; two layers later position 3 does as well
    assert live == [2, 4, 5 + 2, 5 + 3, 5 + 4]


def test_a_pass_takes_no_more_rows_than_it_may(sweep):
    sizes = []
    hook = sweep.model._module.register_forward_pre_hook(
        lambda m, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    sweep.batch_size = 3
    both = sweep.record(IDS)
    cells = Cells.each([range(layer, layer + 1) for layer in range(3)], torch.eye(5).bool())
    found = sweep.run(both.part(0, 1), both.part(1, 2), cells)
    hook.remove()
    assert found.shape == (15, 1)
    assert max(sizes[1:]) == 3  # two cells, and the copy without a patch
    assert len(sizes) == sweep.cost.passes


def test_the_whole_stream_of_the_source_gives_the_source(sweep):
    both = sweep.record(IDS)
    cells = Cells.each([range(layer, layer + 1) for layer in range(3)], torch.ones(1, 5).bool())
    found = sweep.run(both.part(0, 1), both.part(1, 2), cells)
    torch.testing.assert_close(found, metric(both.logits[1:]).expand(3, 1), atol=1e-4, rtol=1e-4)


def test_rows_are_bounded_by_memory():
    stream, logits = torch.zeros(2, 100, 64), torch.zeros(2, 1, 1000)
    assert rows_max(stream, logits) == (1 << 30) // (4 * (24 * 6400 + 2000))
    assert rows_max(stream, logits, layers=12) < rows_max(stream, logits) / 11
    assert rows_max(*(torch.zeros(1).expand(1, 4096, n) for n in (16384, 128000))) == 1
