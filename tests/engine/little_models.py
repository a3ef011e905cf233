"""Random little models: every way a module can be called, and what runs in which order.

spec = Spec("sequential", (Spec("linear"), Spec("twice", (Spec("linear"),))))
net = build(spec)
net(torch.rand(2, WIDTH))        # every module takes and gives [row, feature]
events(net, x)                   # [Event(module=0, side=INPUT), Event(1, INPUT), …]
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import nn

WIDTH = 4
OUTPUT, INPUT = 0, 1


@dataclass(frozen=True)
class Spec:
    """A model as data."""

    kind: str
    inner: tuple["Spec", ...] = ()
    hooked: bool = False

    def __repr__(self):
        inside = "".join(f", {spec!r}" for spec in self.inner)
        return f"S({self.kind!r}{inside}{', hooked=True' if self.hooked else ''})"


def S(kind, *inner, hooked=False):
    """A spec as its repr writes it."""
    return Spec(kind, inner, hooked)


class Affine(nn.Linear):
    def __init__(self):
        super().__init__(WIDTH, WIDTH)


class Pair(nn.Module):
    """Gives a tuple, one part of which has no rows."""

    def __init__(self):
        super().__init__()
        self.inner, self.bias = Affine(), nn.Parameter(torch.rand(WIDTH))

    def forward(self, x):
        return self.inner(x), x * 2, self.bias * 1


class Named(nn.Module):
    """Gives a dict."""

    def __init__(self):
        super().__init__()
        self.inner = Affine()

    def forward(self, x):
        return {"kept": x + 1, "more": [self.inner(x), None]}


class Gated(nn.Module):
    """Takes a keyword."""

    def __init__(self):
        super().__init__()
        self.inner = Affine()

    def forward(self, x, *, gate):
        return self.inner(x) * gate


class Cell(nn.Module):
    """Takes two arguments."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, h):
        return torch.tanh(self.inner(x) + h)


class Silent(nn.Module):
    """Gives nothing."""

    def forward(self, x):
        return None


class Risky(nn.Module):
    """Fails after its submodule has run."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        self.inner(x)
        raise LookupError("caught by its caller")


class Holder(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.held = held

    def forward(self, x):
        return self.held(x) + 1


class Composite(nn.Module):
    """Calls others; `variant` 1 calls them in another order, or other ones, than 0."""

    variant = 0

    def __init__(self, *inner):
        super().__init__()
        self.a = inner[0]
        if len(inner) > 1:
            self.b = inner[1]


class Residual(Composite):
    def forward(self, x):
        return x + self.a(x)


class Nested(Composite):
    def forward(self, x):
        return self.a(self.a(x))


class Twice(Composite):
    def forward(self, x):
        x = torch.tanh(self.a(x))
        return self.a(x)


class Flagged(Composite):
    """One of the two never runs."""

    def forward(self, x):
        return self.b(x) if self.variant else self.a(x)


class Swapped(Composite):
    def forward(self, x):
        if self.variant:
            return self.a(self.b(x))
        x = self.a(x)
        return self.b(x)


class Recurrent(Composite):
    """An RNN-like loop, longer in variant 1."""

    def __init__(self, inner):
        super().__init__(Cell(inner))

    def forward(self, x):
        h = torch.zeros_like(x)
        for i in range(1 + 2 * self.variant):
            h = self.a(x + i, h)
        return h


class Sharing(Composite):
    """Two parents hold the same module."""

    def __init__(self, shared):
        super().__init__(Holder(shared), Holder(shared))

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Outside(Composite):
    """Calls a module that stands in another one's tree."""

    def __init__(self, a, b):
        super().__init__(Holder(a), b)

    def forward(self, x):
        x = self.b(self.a(x))
        return self.a.held(x)


class Walked(Composite):
    """Goes through a list, which is itself never called."""

    def __init__(self, *inner):
        nn.Module.__init__(self)
        self.blocks = nn.ModuleList(inner)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class ByLocal(Composite):
    """Calls a module by a name of its own."""

    def forward(self, x):
        call = self.a
        for _ in range(2):
            x = torch.tanh(call(x))
        return x


class ByMethod(Composite):
    def forward(self, x):
        return self.step(x)

    def step(self, x):
        return torch.tanh(self.a(x))


class Unpacked(Composite):
    def __init__(self):
        super().__init__(Pair())

    def forward(self, x):
        h, more, bias = self.a(x)
        return torch.tanh(h + more + bias)


class Unnamed(Composite):
    def __init__(self):
        super().__init__(Named())

    def forward(self, x):
        given = self.a(x)
        return torch.tanh(given["kept"] + given["more"][0])


class Gating(Composite):
    """Calls with keywords, once with nothing else."""

    def __init__(self):
        super().__init__(Gated(), Gated())

    def forward(self, x):
        x = self.a(x, gate=torch.sigmoid(x))
        return self.b(x=x, gate=torch.cos(x))


class Guarded(Composite):
    """Catches what the first one raises and goes on with the second."""

    def __init__(self, a, b):
        super().__init__(Risky(a), b)

    def forward(self, x):
        try:
            return self.a(x)
        except LookupError:
            return self.b(x)


class Quiet(Composite):
    def __init__(self, inner):
        super().__init__(inner, Silent())

    def forward(self, x):
        self.b(x)
        return self.a(x)


LEAVES = {
    "linear": Affine,
    "tanh": nn.Tanh,
    "relu": lambda: nn.ReLU(inplace=True),
    "norm": lambda: nn.LayerNorm(WIDTH),
    "unpacked": Unpacked,
    "unnamed": Unnamed,
    "gating": Gating,
}
ONE = {
    "residual": Residual, "nested": Nested, "twice": Twice, "recurrent": Recurrent,
    "sharing": Sharing, "by method": ByMethod, "by local": ByLocal, "quiet": Quiet,
}  # fmt: skip
TWO = {
    "sequential": nn.Sequential, "flagged": Flagged, "swapped": Swapped, "walked": Walked,
    "guarded": Guarded, "outside": Outside,
}  # fmt: skip
KINDS = {**LEAVES, **ONE, **TWO}


def build(spec):
    """The model of a spec; the same weights every time."""
    net = _build(spec).requires_grad_(False)
    numbers = torch.Generator().manual_seed(0)  # torch.manual_seed takes a millisecond
    for weight in net.parameters():
        weight.uniform_(-1, 1, generator=numbers)
    return net


def _build(spec):
    module = KINDS[spec.kind](*map(_build, spec.inner))
    if spec.hooked:
        module.register_forward_hook(lambda m, args, output: output * 1.25)
        module.register_forward_pre_hook(lambda m, args: tuple(a * 0.75 for a in args))
    return module


def set_variant(net, variant):
    for module in net.modules():
        if isinstance(module, Composite):
            module.variant = variant


class Event(NamedTuple):
    """A module is called, or has returned."""

    module: int
    """Its place in `list(net.modules())`."""
    side: int
    end: int
    """Of a call: how many events later it returns; 0 if it never does."""


@dataclass(frozen=True)
class Facts:
    """What a plain run of a model shows."""

    events: tuple[Event, ...]
    paths: tuple[tuple[str, ...], ...]
    """Every name of each module."""
    outputs: dict
    """What each module returned, the last time."""
    plain: tuple[int, ...]
    """Modules that take one tensor and give one."""


@functools.lru_cache(maxsize=512)
def observed(spec, variant, rows=1):
    """The facts of a spec's model, by hooks."""
    net = build(spec)
    set_variant(net, variant)
    number = {module: i for i, module in enumerate(net.modules())}
    seen, outputs, stack, plain = [], {}, [], set(number.values())

    def enter(module, args, kwargs):
        stack.append(len(seen))
        seen.append([number[module], INPUT, 0])
        if kwargs or len(args) != 1:
            plain.discard(number[module])

    def leave(module, args, output):
        start = stack.pop()
        while seen[start][0] != number[module]:
            start = stack.pop()
        seen[start][2] = len(seen) - start
        seen.append([number[module], OUTPUT, 0])
        outputs[number[module]] = output
        if not isinstance(output, torch.Tensor):
            plain.discard(number[module])

    for module in number:
        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave)
    net(torch.ones(rows, WIDTH))
    names = [[] for _ in number]
    for path, module in net.named_modules(remove_duplicate=False):
        names[number[module]].append(path)
    return Facts(
        tuple(Event(*each) for each in seen), tuple(map(tuple, names)), outputs,
        tuple(sorted(plain & outputs.keys())),
    )  # fmt: skip


_leaves = st.builds(Spec, st.sampled_from(list(LEAVES)))


def _around(inner):
    hooked = st.sampled_from([False] * 4 + [True])
    return st.one_of(
        st.builds(Spec, st.sampled_from(list(ONE)), st.tuples(inner), hooked),
        st.builds(Spec, st.sampled_from(list(TWO)), st.tuples(inner, inner), hooked),
    )


_flat = _around(_leaves)
_deeper = _around(_leaves | _flat)
specs = _flat | _deeper | _around(_leaves | _flat | _deeper)
"""Models of up to three levels."""
