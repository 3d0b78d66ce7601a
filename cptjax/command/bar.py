"""How far a command is: a bar with what is left, on a terminal and nowhere else."""

from tqdm import tqdm


def bar(
    total: float, unit: str = "", what: str = "", *, done: float = 0, leave: bool = False, hidden: bool = False
) -> tqdm:
    """A bar from `done` to `total`, on stderr where that is a terminal; it is a context, and `update(n)` moves it.

    In bytes, or without a unit, numbers are shortened. It is taken away at its end unless it is to be left.
    """
    return tqdm(
        total=total,
        initial=done,
        desc=what or None,
        unit=unit,
        unit_scale=unit in ("", "B"),
        leave=leave,
        disable=True if hidden else None,  # None: on anything but a terminal
        dynamic_ncols=True,
    )
