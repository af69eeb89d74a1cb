"""The tree of states as a figure: epochs to the right, a line per branch in the colours of its methods, forks upright."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mirai.analysis.style import DPI, FAINT, INK, METHOD_COLOURS, NOTE_SIZE, TEXT_WIDTH, look, save_figure, text_pixels
from mirai.experiments import paths
from mirai.experiments.arms import arm_of
from mirai.experiments.savings import size_of
from mirai.experiments.scale import load_scale
from mirai.experiments.tree import Tree
from mirai.states import is_published

ROW, TOP, BOTTOM = 0.15, 0.30, 0.42  # inches: of a branch, and above and below all of them
LEFT, AXIS = 0.35, 4.0  # inches: left of epoch 0, and along the epochs; labels have the rest
TYPE = NOTE_SIZE - 0.5  # points
LINES = {"baseline": "next-token", "mirai-i": "Mirai-I", "mirai-e": "Mirai-E", "output-level": "output level"}


@dataclass(frozen=True)
class Branch:
    """States that follow one another on one line, from the state (None: the start) that they grow out of."""

    origin: str | None
    keys: tuple[str, ...]


def draw_tree(tree: Tree, path: Path) -> None:
    """Write the tree as PNG and PDF: dots are rows' results and teachers, full ones are done."""
    lines = branches(tree)
    row_of = {key: row for row, branch in enumerate(lines) for key in branch.keys}
    last = max((node.state.epoch for node in tree.nodes.values()), default=1)
    height = TOP + BOTTOM + ROW * max(len(lines), 1)
    with look():
        figure = Figure(figsize=(TEXT_WIDTH, height))
        area = (LEFT / TEXT_WIDTH, BOTTOM / height, AXIS / TEXT_WIDTH, 1 - (TOP + BOTTOM) / height)
        axes = figure.add_axes(area, xlim=(0, last), ylim=(len(lines) - 0.5, -0.5), yticks=[], xlabel="epochs")
        axes.spines["left"].set_visible(False)
        for row, branch in enumerate(lines):
            start = row if branch.origin is None else row_of[branch.origin]
            _draw_branch(axes, tree, branch, row, start)
            end = tree.nodes[branch.keys[-1]].state.epoch
            room = (TEXT_WIDTH - LEFT - AXIS * end / last) * DPI - 8 / 72 * DPI
            _write(axes, (end, row), (6, 0), _cut(label(tree, branch), room))
            if branch.origin is None:
                _write(axes, (0, row), (-6, 0), _size(tree, branch.keys[0]), align="right", colour=FAINT)
        _legend(figure, tree)
    save_figure(path, figure)


def branches(tree: Tree) -> list[Branch]:
    """The tree's lines from top to bottom. What forks off late stands nearest, so that no fork crosses another line."""
    found: list[Branch] = []

    def follow(key: str, origin: str | None) -> None:
        keys, aside = [key], []
        while children := tree.children[keys[-1]]:
            ahead = max(children, key=lambda child: (_same_arm(tree, keys[-1], child), _reach(tree, child)))
            aside.append((keys[-1], [child for child in children if child != ahead]))
            keys.append(ahead)
        found.append(Branch(origin, tuple(keys)))
        for fork, others in reversed(aside):
            for child in others:
                follow(child, fork)

    sizes, arms, planned = list(load_scale(tree.grids[0].scale).sizes), list(METHOD_COLOURS), list(tree.nodes)

    def place(root: str) -> tuple[int, ...]:
        return sizes.index(_size(tree, root)), arms.index(arm_of(tree.nodes[root].phase.foresight)), planned.index(root)

    for root in sorted(tree.children[None], key=place):
        follow(root, None)
    return found


def label(tree: Tree, branch: Branch) -> str:
    """What a branch is for: its last row's name, the epochs where it serves several, and of several grids their names."""
    served = [node for node in map(tree.nodes.__getitem__, branch.keys) if node.users or node.teaches]
    rows = [user for node in served for user in node.users]
    if not rows:
        return "teacher" if served else ""
    last = next(node for node in reversed(served) if node.users)
    names = dict.fromkeys(user.row.partition(" epochs=")[0] for user in last.users)
    text = ", ".join(names) if len(tree.grids) == 1 else max(names, key=len)  # the longest says most
    if len(served) > 1:
        text += f" at {', '.join(str(node.state.epoch) for node in served)}"
    text += ", teacher" if any(node.teaches for node in served) else ""
    if len(tree.grids) == 1:
        return text
    grids = {user.grid for user in rows}
    return f"{text} ({' '.join(_short(grid.name) for grid in tree.grids if grid.name in grids)})"


def _short(grid: str) -> str:
    """T1 of table1, F1 of figure1; an own grid's name as it is."""
    return re.sub(r"^(table|figure)(?=\d)", lambda kind: kind[0][0].upper(), grid)


def _size(tree: Tree, key: str) -> str:
    return size_of(tree.nodes[key].state.model, load_scale(tree.grids[0].scale))


def _same_arm(tree: Tree, key: str, child: str) -> bool:
    return arm_of(tree.nodes[key].phase.foresight) == arm_of(tree.nodes[child].phase.foresight)


def _reach(tree: Tree, key: str) -> int:
    """The last epoch of what grows out of a state."""
    return max([tree.nodes[key].state.epoch, *(_reach(tree, child) for child in tree.children[key])])


def _draw_branch(axes: Axes, tree: Tree, branch: Branch, row: int, start: int) -> None:
    first = tree.nodes[branch.keys[0]]
    axes.plot([first.start] * 2, [start, row], color=FAINT, linewidth=0.5, zorder=1)
    for key in branch.keys:
        node = tree.nodes[key]
        colour = METHOD_COLOURS[arm_of(node.phase.foresight)]
        axes.plot([node.start, node.state.epoch], [row] * 2, color=colour, linewidth=1.4, zorder=2)
        if node.users or node.teaches:
            face = colour if is_published(paths.manifest("state", key)) else "white"
            axes.plot(
                node.state.epoch, row, "o", color=colour, markerfacecolor=face, markersize=3.2, zorder=3, clip_on=False
            )


def _write(
    axes: Axes,
    at: tuple[float, float],
    shift: tuple[float, float],
    text: str,
    *,
    align: str = "left",
    colour: str = INK,
) -> None:
    axes.annotate(
        text,
        at,
        shift,
        textcoords="offset points",
        horizontalalignment=align,
        verticalalignment="center_baseline",
        fontsize=TYPE,
        color=colour,
        annotation_clip=False,
        parse_math=False,
    )


def _cut(text: str, room: float) -> str:
    """A text that fits into so many pixels, with an ellipsis where it has been cut."""
    if text_pixels(text, TYPE) <= room:
        return text
    while text and text_pixels(text + "…", TYPE) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def _legend(figure: Figure, tree: Tree) -> None:
    there = {arm_of(node.phase.foresight) for node in tree.nodes.values()}
    handles = [Line2D([], [], color=METHOD_COLOURS[arm], label=name) for arm, name in LINES.items() if arm in there]
    for face, name in ((FAINT, "a row's result, done"), ("white", "to do")):
        dot = Line2D([], [], linestyle="", marker="o", markersize=3.2, color=FAINT, markerfacecolor=face, label=name)
        handles.append(dot)
    figure.legend(handles=handles, loc="upper left", ncols=len(handles), fontsize=NOTE_SIZE, borderaxespad=0.3)
