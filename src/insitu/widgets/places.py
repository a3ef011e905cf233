"""What the axes of a result choose of the selection that all views share.

    chooses((Axis("layer", [2, 5]), Axis("pos", ["The", " Eiffel"])))
    # [["layer", [2, 5]], ["token", 0]]

A click on a cell selects the layer it is labelled with, not the row it stands in.
"""

from collections.abc import Sequence

from insitu.methods.axes import Axis

SELECTS = {
    "layer": "layer", "head": "head", "step": "step",
    "pos": "token", "query_pos": "token", "key_pos": "token",
}  # fmt: skip

Chooses = list[str | int | list[int]]
"""A name of the selection, or none; and the numbers of the places there, or the first of a row."""


def chooses(axes: Sequence[Axis], first: Sequence[int] = ()) -> list[Chooses]:
    """What each axis chooses, and by which numbers.

    Labels that are numbers are those; words stand for their places. Of two axes that choose the
    same, as queries and keys do, the first does.

    Args:
        axes: of a result.
        first: from which place on each of them is shown.
    """
    found: list[Chooses] = []
    for number, axis in enumerate(axes):
        start = first[number] if number < len(first) else 0
        name = SELECTS.get(axis.name, "")
        is_taken = any(name == other for other, _ in found)
        found.append([name, _numbers(axis, start)] if name and not is_taken else ["", 0])
    return found


def _numbers(axis: Axis, start: int) -> int | list[int]:
    labels = axis.labels[start:]
    numbers = [label for label in labels if isinstance(label, int) and not isinstance(label, bool)]
    if not labels or len(numbers) < len(labels):
        return start
    in_a_row = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return numbers[0] if in_a_row else numbers
