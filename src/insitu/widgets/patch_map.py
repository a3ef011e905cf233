"""A map of what each patch would do: estimated for all cells, then run for those that are brushed.

patches = patch_map(model, clean, corrupt, logit_difference(model, " Mary", " John"))
patches                        # brush cells: exactly those patches are run
patches.run([2, 3], [10, 11])  # the same from Python: layers, positions (or heads)
patches.exact                  # a Result; NaN where nothing was run
patches.code                   # the program that does what was brushed
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import traitlets

from insitu.errors import UsageError
from insitu.methods.activation_patching import activation_patching
from insitu.methods.attribution_patching import attribution_patching
from insitu.methods.axes import Axis
from insitu.methods.metrics import Metric
from insitu.methods.result import Result
from insitu.models.language import LanguageModel
from insitu.twins.results import patches_text
from insitu.widgets import main_thread, numbers, patch_code
from insitu.widgets.base import Widget
from insitu.widgets.in_sight import in_sight
from insitu.widgets.places import chooses
from insitu.widgets.trouble import trouble_of

Run = Callable[[int, list[int]], Any]
"""Runs the patches of one layer at some places of the other axis, and gives a number for each."""


class PatchMap(Widget):
    """An estimate over layers and positions or heads, and the exact numbers of brushed cells.

    PatchMap(estimate, run)

    Args:
        estimate: a result of two axes, the first of them layers.
        run: of a layer and places on the other axis, the exact numbers there.
        code: of layers and places, the program that runs those patches.
    """

    front_end = "patch_map"
    title = traitlets.Unicode().tag(sync=True)
    rows = traitlets.List().tag(sync=True)
    columns = traitlets.List().tag(sync=True)
    names = traitlets.List().tag(sync=True)
    chooses = traitlets.List().tag(sync=True)
    """What rows and columns select, and by which numbers (`insitu.widgets.places`)."""
    quantity = traitlets.Unicode().tag(sync=True)
    estimated = traitlets.Bytes().tag(sync=True)
    first = traitlets.List([0, 0]).tag(sync=True)
    """The first row and column that are shown, where there are too many for a view."""
    note = traitlets.Unicode().tag(sync=True)
    ran = traitlets.Bytes().tag(sync=True)
    """The exact numbers; NaN where no patch was run."""
    state = traitlets.Dict().tag(sync=True)
    """How far a run is: done, of; how it ended, when not well: stopped at, trouble."""
    code = traitlets.Unicode().tag(sync=True)
    """The program of the last run, for a cell of its own."""

    def __init__(
        self,
        estimate: Result,
        run: Run,
        code: Callable[[list[int], list[int]], str] | None = None,
    ) -> None:
        if len(estimate.axes) != 2 or estimate.names[0] != "layer":
            raise UsageError(
                f"a patch map has the axes (layer, pos) or (layer, head), not {estimate.names}.",
                "a brush chooses a rectangle of layers and places.",
                'choose on the others first, as in estimate.sel(pos="all").',
            )
        self.estimate = estimate = numbers.shown(estimate)
        self._part = part = in_sight(estimate)
        self._run = run
        self._code = code
        self._exact = torch.full(tuple(estimate.shape), math.nan)
        super().__init__(
            title=estimate.title,
            names=list(estimate.names),
            chooses=chooses(estimate.axes, part.first),
            first=part.first,
            note=part.note,
            rows=part.rows,
            columns=part.columns,
            quantity=estimate.quantity,
            estimated=numbers.buffer(part.of(numbers.plain(estimate.values)[0])),
            ran=numbers.buffer(part.of(self._exact)),
        )

    @property
    def exact(self) -> Result:
        """The numbers that were run; NaN elsewhere."""
        quantity = self.estimate.quantity.removesuffix(", estimated")
        return replace(
            self.estimate, values=self._exact.clone(), quantity=quantity, texts=None, further={}
        )

    def run(self, layers: Sequence[int], places: Sequence[int]) -> Result:
        """Run the patches of a rectangle of cells, a layer at a time.

        Args:
            layers: their numbers on the map, from 0.
            places: positions or heads, by their numbers.
        """
        layers, places = list(layers), list(places)
        if self._code is not None:
            self.code = self._code(layers, places)
        done = 0
        try:
            for done, layer in enumerate(layers):
                self.state = {"done": done, "of": len(layers)}
                self._exact[layer, places] = numbers.plain(self._run(layer, places))[0].flatten()
                self.ran = numbers.buffer(self._part.of(self._exact))
        except KeyboardInterrupt:
            self.state = {"stopped": [done, len(layers)]}
            raise
        except BaseException as error:
            self.state = {"trouble": trouble_of(error)}
            raise
        self.state = {}
        return self.exact

    def text(self) -> str:
        """The estimates as a grid, the exact numbers beside them."""
        return patches_text(self.estimate, self._exact, self.state)

    def html(self) -> str:
        """The estimate, and what was run exactly, as tables of colours without scripts."""
        ran = ~self._exact.isnan()
        if not ran.any():
            return self.estimate._repr_html_()
        places = [ran.any(1 - axis).nonzero().flatten().tolist() for axis in (0, 1)]
        axes = tuple(
            Axis(axis.name, [axis.labels[it] for it in there])
            for axis, there in zip(self.estimate.axes, places, strict=True)
        )
        exact = replace(self.exact, values=self._exact[places[0]][:, places[1]], axes=axes)
        return self.estimate._repr_html_() + exact._repr_html_()

    def answer_run(self, given: dict[str, Any]) -> None:
        """Run what was brushed when the kernel's main thread is free."""
        names = "layers", "places"
        layers, places = (
            [start + int(number) for number in given[name]]
            for start, name in zip(self.first, names, strict=True)
        )
        self.state = {"done": 0, "of": len(layers)}
        main_thread.call(
            lambda: self.run(layers, places),
            failed=lambda _: None,  # the state tells it
        )


def patch_map(
    model: LanguageModel, clean: Any, corrupt: Any, metric: Metric, of: str = "resid_pre"
) -> PatchMap:
    """Estimate what every patch would do, and open the map of it; brushed cells are run exactly.

        patch_map(model, clean, corrupt, logit_difference(model, " Mary", " John"), of="heads")

    Args:
        model, clean, corrupt, metric, of: as for `insitu.methods.activation_patching`.

    Raises:
        InputError: the prompts differ in their number of tokens.
        MetricError: it gives not one number a row, or the same for both sides.
    """
    estimate = attribution_patching(model, clean, corrupt, metric, of)
    by_head = estimate.names[1] == "head"

    axis = "heads" if by_head else "positions"

    def run(layer: int, places: list[int]) -> Any:
        where: Any = {axis: places, "layers": [layer]}
        return activation_patching(model, clean, corrupt, metric, of, **where).values[0]

    def code(layers: list[int], places: list[int]) -> str:
        where = {axis: places, "layers": layers}
        return patch_code.code(model, (clean, corrupt), metric, of, **where)

    return PatchMap(estimate, run, code)
