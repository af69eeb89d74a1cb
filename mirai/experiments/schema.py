"""JSON schemas of the YAML files, generated from the recipe types: completion and errors while one writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mirai.experiments import paths
from mirai.experiments.grid_files import GridFile
from mirai.experiments.points import Point
from mirai.experiments.scale import Scale
from mirai.experiments.site import Site


def schemas() -> dict[Path, dict[str, Any]]:
    """The schema of experiments/*.yaml, of experiments/scales/*.yaml and of config/site.yaml, by the file it goes to."""
    found = {"grid": _grid(), "scale": _scale(), "site": Site.model_json_schema()}
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {paths.SCHEMAS / f"{name}.schema.json": dialect | schema for name, schema in found.items()}


def _grid() -> dict[str, Any]:
    schema = GridFile.model_json_schema()
    schema["required"] = []
    schema["anyOf"] = [{"required": ["title"]}, {"required": ["extends"]}]  # which brings the other grid's title
    axes = schema["$defs"]["Point"]["properties"]
    assert set(axes) == set(Point.model_fields)
    del schema["$defs"]["Schedule"]["properties"]["warmup_epochs"]  # an axis of its own
    row = schema["$defs"]["RowFile"]["properties"]
    for lists in (row["vary"], row["zip"]):
        lists["properties"] = {name: {"type": "array", "items": axis, "minItems": 1} for name, axis in axes.items()}
        lists["additionalProperties"] = False
    return schema


def _scale() -> dict[str, Any]:
    schema = Scale.model_json_schema()
    schema["$defs"]["Data"]["required"].remove("name")  # which the folder scale takes from the target
    return schema
