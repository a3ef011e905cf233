"""Patterns of module paths: `*` is one name, `**` any number."""

import pytest

from insitu.engine.cache.globs import folded, is_pattern, matching, resolved

KEYS = ["model", "model.h", "model.h.0", "model.h.0.mlp", "model.h.1.mlp", "model.h.10.mlp.act",
        "model.a+b", "model.model", "model.model.h"]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", ["model.h", "model.a+b", "model.model"]),
        ("h.*", ["model.h.0"]),
        ("model.h.*", ["model.h.0"]),
        ("h.*.mlp", ["model.h.0.mlp", "model.h.1.mlp"]),
        ("h.?.mlp", ["model.h.0.mlp", "model.h.1.mlp"]),
        ("h.[1-9].mlp", ["model.h.1.mlp"]),
        ("h.[!1].mlp", ["model.h.0.mlp"]),
        ("**.mlp", ["model.h.0.mlp", "model.h.1.mlp"]),
        ("**.h", ["model.h", "model.model.h"]),
        ("h.**", ["model.h.0", "model.h.0.mlp", "model.h.1.mlp", "model.h.10.mlp.act"]),
        ("**", KEYS),
        ("model.*", ["model.h", "model.a+b", "model.model"]),
        ("model.*.h", ["model.model.h"]),
        ("a+*", ["model.a+b"]),
        ("x.*", []),
    ],
)
def test_a_pattern_names(pattern, found):
    assert is_pattern(pattern)
    assert matching(pattern, KEYS) == found


def test_a_path_is_found_with_and_without_the_root():
    assert resolved("h.0", KEYS) == resolved("model.h.0", KEYS) == "model.h.0"
    assert resolved("", KEYS) == resolved("model", KEYS) == "model"
    assert resolved("model.model.h", KEYS) == "model.model.h"
    assert resolved("h.2", KEYS) is None
    assert not is_pattern("h.0")


def test_numbers_fold():
    assert folded("model.h.12.mlp") == "model.h.*.mlp"
