"""What a view asks and what it gets, as a host would pass it on; every answer is plain JSON."""

import json

import numpy as np
import torch


def ask(widget, name, **given):
    """The answer, with `value` or `trouble`, and its buffers."""
    sent = []
    widget.send = lambda content, buffers=None: sent.append((content, buffers or []))
    try:
        widget._heard(widget, {"ask": 7, "name": name, "given": given}, [])
    finally:
        del widget.send
    ((content, buffers),) = [it for it in sent if "answer" in it[0]]
    assert content["answer"] == 7
    return json.loads(json.dumps(content, allow_nan=False)), buffers


def value_of(widget, name, **given):
    """What is answered, where nothing goes wrong."""
    content, _ = ask(widget, name, **given)
    assert "trouble" not in content, content
    return content["value"]


def trouble_with(widget, name, **given):
    """What, why and what next."""
    return ask(widget, name, **given)[0]["trouble"]


def rows_of(tree):
    """The columns that a tree of modules sends, as lists."""
    sent = tree.nodes
    names = sent["names"].split("\n")
    columns = np.frombuffer(sent["numbers"], "<i4").reshape(3, len(names)).tolist()
    told = dict(zip(("parent", "kind", "output"), columns, strict=True))
    return {**sent, **told, "name": names, "size": np.frombuffer(sent["sizes"], "<f8").tolist()}


def numbers_of(widget, name, **given):
    """What is answered, and its buffers as tensors."""
    content, buffers = ask(widget, name, **given)
    assert "trouble" not in content, content
    return content["value"], [torch.tensor(np.frombuffer(part, "<f4")) for part in buffers]
