"""What plain torch hooks on the demo model's own modules give. Knows nothing of Insitu.

values(net, ids, "heads", 3)                                # [row, pos, head, d_head]
logits(net, ids, {("heads", 3): lambda value: value * 0})   # what the net then says
"""

from contextlib import ExitStack

import torch

from insitu.models.demo.knowledge import load

HEADS = 4

GIVING = (
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
)
SHORT = ("The Louvre is in the city of", "The Colosseum is in the city of")


def ids_of(tokenizer, *texts):
    return torch.tensor([tokenizer(text).input_ids for text in texts])


def last_difference(tokenizer, right, wrong):
    plus, minus = (tokenizer(text).input_ids[0] for text in (right, wrong))
    return lambda found: found[:, -1, plus] - found[:, -1, minus]


def split(value, name):
    """The site's part of a module's value, as a view of it."""
    if name == "heads":
        return value.unflatten(-1, (HEADS, -1))
    if name in "qkv":
        return value.chunk(3, -1)["qkv".index(name)].unflatten(-1, (HEADS, -1))
    return value


def module_of(net, name, layer):
    block = net.transformer.h[layer]
    return {
        "resid_pre": block, "resid_post": block, "attention": block.attn, "mlp": block.mlp,
        "heads": block.attn.c_proj, "q": block.attn.c_attn, "k": block.attn.c_attn,
        "v": block.attn.c_attn,
    }[name]  # fmt: skip


def hooked(net, name, layer, change):
    module = module_of(net, name, layer)
    if name == "embed" or name in ("resid_pre", "heads"):
        return module.register_forward_pre_hook(lambda m, args: (change(args[0]), *args[1:]))

    def after(m, args, out):
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    return module.register_forward_hook(after)


def logits(net, ids, changes=None, embedded=None):
    """Run with values changed; each change is given its site's value and gives the new one."""
    with ExitStack() as stack, torch.no_grad():
        if embedded is not None:
            stack.callback(
                net.transformer.wte.register_forward_hook(lambda m, a, out: embedded(out)).remove
            )
        for (name, layer), change in (changes or {}).items():

            def whole(value, name=name, change=change):
                value = value.clone()
                part = split(value, name)
                part[...] = change(part.clone())
                return value

            stack.callback(hooked(net, name, layer, whole).remove)
        return net(ids).logits


def values(net, ids, name, layer, embedded=None):
    """What a site holds in an unpatched run."""
    seen = []

    def keep(value):
        seen.append(value.clone())
        return value

    logits(net, ids, {(name, layer): keep}, embedded)
    return seen[0]


def patched(source, at):
    """A change that puts the source's value at an index: `[:, 3]` or `[:, :, 2]`."""

    def change(value):
        value[at] = source[at]
        return value

    return change


def each_layer_and_position(net, clean, corrupt, metric, name="resid_pre"):
    """Activation patching as a loop of one forward for each cell."""
    found = torch.zeros(len(net.transformer.h), clean.shape[1])
    for layer in range(len(net.transformer.h)):
        source = values(net, clean, name, layer)
        for pos in range(clean.shape[1]):
            change = {(name, layer): patched(source, (slice(None), pos))}
            found[layer, pos] = metric(logits(net, corrupt, change)).mean()
    return found


__all__ = ["load"]
