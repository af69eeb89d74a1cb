"""Plans, tables, figures and summaries of a grid."""

from __future__ import annotations

import argparse
from pathlib import Path

from mirai.commands.parsing import Commands, add_command, add_grid, add_log
from mirai.errors import UserError


def add(commands: Commands) -> None:
    """plan, table, figure, summary, page."""
    plan = add_command(
        commands,
        "plan",
        "print the tree of states behind a grid, and what is left of it costs",
        "Reads experiments/ and results/; writes nothing but the --figure. TARGET is a grid's name, a table or figure "
        "(results/demo/table2.csv), or all of the paper (results/demo/all). Example: mirai plan results/all --gpu a100",
    )
    plan.add_argument("target", metavar="TARGET", help="a grid's name, results/[SCALE/]GRID.csv or results/[SCALE/]all")
    plan.add_argument("--scale", default="imagenet256", help="of a grid's name; a path says its own")
    plan.add_argument("--gpu", help="count hours of this one, say a100; else of what was measured here, or of an h100")
    plan.add_argument("--figure", type=Path, help="draw the tree: a .png, with a .pdf beside it")
    plan.set_defaults(run=print_plan)
    table = add_command(
        commands,
        "table",
        "write a grid's table",
        "Reads metrics.json of all rows; writes results/[SCALE/]GRID.csv, .md, .tex and .html. "
        "Example: mirai table demo --scale demo",
    )
    figure = add_command(
        commands,
        "figure",
        "draw the figure of a grid",
        "Reads metrics, samples or states, as the grid's `figure` says; writes results/[SCALE/]GRID.png and .pdf, and its "
        "data as .csv. Example: mirai figure demo_samples --scale demo",
    )
    summary = add_command(
        commands,
        "summary",
        "say where a grid's results are, what they show and how long they took",
        "Reads results/; writes nothing. Example: mirai summary demo --scale demo",
    )
    for command, run in ((table, write_table), (figure, draw_figure), (summary, print_summary)):
        add_grid(command)
        add_log(command)
        command.set_defaults(run=run)
    page = add_command(
        commands,
        "page",
        "write the page with all that there is of a scale",
        "Reads tables and figures that are made; writes results/[SCALE/]index.html. Example: mirai page --scale demo",
    )
    page.add_argument("--scale", default="imagenet256", help="demo, digits, folder-<name>, imagenet256 (default)")
    add_log(page)
    page.set_defaults(run=write_page)


def print_plan(options: argparse.Namespace) -> None:
    """Print the tree of states of a target, and draw it if asked."""
    from mirai.experiments import overview, paths

    paths.refuse_elsewhere()
    if options.figure is not None and options.figure.suffix not in (".png", ".pdf"):
        raise UserError(f"--figure {options.figure} is no .png or .pdf; both are written")
    tree = overview.print_plan(*overview.targets(options.target, options.scale), options.gpu)
    if options.figure is not None:
        from mirai.analysis.tree_figure import draw_tree

        draw_tree(tree, options.figure)


def write_table(options: argparse.Namespace) -> None:
    """Write a grid's table."""
    from mirai.analysis import tables
    from mirai.experiments.plan import plan_grid

    tables.write_table(plan_grid(options.grid, options.scale))


def draw_figure(options: argparse.Namespace) -> None:
    """Draw the figure of a grid."""
    from mirai.experiments.plan import figure_key, plan_grid
    from mirai.launch.slots import held_for

    grid = plan_grid(options.grid, options.scale)
    figure_key(options.grid, options.scale)  # refuses a grid without a figure
    with held_for("figure", options.scale):
        from mirai.analysis.report import draw

        draw(grid)


def print_summary(options: argparse.Namespace) -> None:
    """Say where a grid's results are."""
    from mirai.experiments import overview

    overview.print_summary(options.grid, options.scale)


def write_page(options: argparse.Namespace) -> None:
    """Write the page of a scale."""
    from mirai.analysis import page

    print(page.write_page(options.scale))
