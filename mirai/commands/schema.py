"""JSON schemas for editors."""

from __future__ import annotations

import argparse

from mirai.commands.parsing import Commands, add_command


def add(commands: Commands) -> None:
    """schema."""
    command = add_command(
        commands,
        "schema",
        "write the JSON schemas that complete and check grids, scales and the site file in an editor",
        "Reads nothing; writes grid, scale and site.schema.json into workflow/schemas/. Example: mirai schema",
    )
    command.set_defaults(run=write_schemas)


def write_schemas(options: argparse.Namespace) -> None:
    """Write the schemas of all YAML files."""
    from mirai.experiments import paths
    from mirai.experiments.schema import schemas
    from mirai.states import write_json

    paths.refuse_elsewhere()
    for path, schema in schemas().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, schema)
        print(path)
