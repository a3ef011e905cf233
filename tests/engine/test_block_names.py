"""Which tensors the block of a `with` names: found from its code, before it runs."""

import contextlib
import gc
import sys
import weakref

import torch

from insitu.engine import block_names

GLOBAL = torch.ones(1)


class Looks:
    """Notes the names of the block it is entered for."""

    def __enter__(self):
        frame = sys._getframe(1)
        self.names = set(block_names.names(frame.f_code, frame.f_lasti))
        self.tensors = block_names.tensors(frame, frame.f_lasti)
        self.frame, self.at = frame, frame.f_lasti
        return self

    def __exit__(self, *_):
        del self.frame
        return False


def named_in(look, among):
    return look.names & set(among.split())


def test_names_before_and_after_the_block_are_not_its_names():
    a = b = c = torch.ones(1)
    a.sum()
    with Looks() as look:
        b.sum()
    c.sum()
    assert named_in(look, "a b c") == {"b"}


def test_branches_loops_handlers_and_inner_blocks_belong_to_it():
    a, b, c, d, e, f, g = range(7)
    with Looks() as look:
        if a:
            b
        for _ in range(1):
            try:
                c
            except ValueError:
                d
            finally:
                e
        with contextlib.nullcontext():
            f
    g
    assert named_in(look, "a b c d e f g") == set("abcdef")


def test_a_block_in_a_loop_and_one_that_leaves_it():
    a = b = c = d = 0
    for _ in range(2):
        a
        with Looks() as look:
            b
            if not b:
                c
                break
        d
    assert named_in(look, "a b c d") == {"b", "c"}


def test_the_later_of_two_managers_in_one_with_is_entered_for_the_same_block():
    a = 0
    with Looks() as first, Looks() as second:
        a
    assert named_in(first, "a") == named_in(second, "a") == {"a"}


def test_a_comprehension_names_what_it_walks_over():
    many = [torch.ones(1), torch.zeros(1)]
    with Looks() as look:
        [t.sum() for t in many]
    assert [t is m for t, m in zip(look.tensors, many, strict=True)] == [True, True]


def test_a_function_made_in_the_block_names_for_it():
    a, b = torch.ones(1), torch.ones(1)
    with Looks() as look:
        work = lambda: [(lambda: a.sum())() for _ in range(2)]  # noqa: E731
    work()
    b.sum()
    assert [t is a for t in look.tensors] == [True]
    space = {"Looks": Looks, "t": torch.ones(1)}
    exec("with Looks() as look:\n    def work(): return t.grad", space)
    assert [t is space["t"] for t in space["look"].tensors] == [True]


def test_globals_closures_and_module_level_code_count():
    shared = torch.ones(1)

    def inner():
        with Looks() as look:
            shared.sum()
            GLOBAL.sum()
        return look

    look = inner()
    assert {id(t) for t in look.tensors} == {id(shared), id(GLOBAL)}
    space = {"Looks": Looks, "t": torch.ones(1), "u": torch.ones(1)}
    exec("with Looks() as look:\n    t.sum()\nu.sum()", space)
    assert [id(t) for t in space["look"].tensors] == [id(space["t"])]


def test_without_a_with_there_are_no_names():
    a = 0
    look = Looks()
    look.__enter__()
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(Looks())
        a
    assert not named_in(look, "a")
    assert not named_in(other, "a")


def test_a_tensor_is_called_as_the_block_calls_it():
    alone, many, table = torch.ones(1), [torch.ones(1), torch.ones(1)], {"x": torch.ones(1)}
    other = torch.ones(1)
    with Looks() as look:
        alone, many, table
        called = [
            block_names.name_of(t, look.frame, look.at)
            for t in (alone, many[1], table["x"], look.__dict__.get("tensor", None))
        ]
    assert called == ["alone", "many[1]", "table['x']", None]
    del other


def test_looking_keeps_no_tensor_alive_that_the_function_deletes():
    gc.disable()
    try:
        t = torch.ones(1)
        alive = weakref.ref(t)
        with Looks() as look:
            t.sum()
        look.tensors = None
        del t
        assert alive() is None
    finally:
        gc.enable()


def test_what_was_found_out_about_a_code_goes_with_it():
    code = compile("with Looks() as look:\n    look", "<cell>", "exec")
    key = id(code)
    exec(code, {"Looks": Looks})
    assert [dies() is code for (known, _), (_, dies) in known_names() if known == key] == [True]
    del code
    gc.collect()
    assert not [known for (known, _), _ in known_names() if known == key]


def known_names():
    return list(block_names._names.items())
