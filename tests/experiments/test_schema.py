"""JSON schemas for editors: current, and of one mind with the types that read the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from mirai.cli import main
from mirai.experiments.schema import schemas
from mirai.states import read_json

ROOT = Path(__file__).parents[2]
FILES = [
    *sorted((ROOT / "experiments").glob("*.yaml")),
    *sorted((ROOT / "experiments/scales").glob("*.yaml")),
    ROOT / "config/site.example.yaml",
]


def mistakes(content: Any, schema: Any) -> list[str]:
    """What a validator minds, each with its place."""
    found = jsonschema.Draft202012Validator(schema).iter_errors(json.loads(json.dumps(content)))
    return [f"{error.json_path}: {error.message}" for error in found]


def grid_mistakes(**row: Any) -> list[str]:
    (schema,) = (schema for path, schema in schemas().items() if path.name == "grid.schema.json")
    return mistakes({"title": "A test's grid", "rows": [{"label": "row", **row}]}, schema)


def test_the_committed_schemas_are_current() -> None:
    for path, schema in schemas().items():
        assert read_json(ROOT / path) == schema, "run `mirai schema`"


def test_the_command_writes_what_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["schema"]) == 0
    for path in schemas():
        jsonschema.Draft202012Validator.check_schema(read_json(tmp_path / path))
        assert (tmp_path / path).read_bytes() == (ROOT / path).read_bytes()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_every_file_names_its_schema_and_is_valid(file: Path) -> None:
    first = file.read_text().splitlines()[0]
    schema = file.parent / first.removeprefix("# yaml-language-server: $schema=")
    assert schema.is_file()
    assert mistakes(yaml.safe_load(file.read_text()), read_json(schema)) == []


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ({"lable": "x"}, "$.rows[0]: "),
        ({"arm": "mirai"}, "$.rows[0].arm: "),
        ({"vary": {"arms": ["baseline"]}}, "$.rows[0].vary: "),
        ({"vary": {"guidance": [2.0, "x"]}}, "$.rows[0].vary.guidance[1]: "),
        ({"zip": {"epochs": []}}, "$.rows[0].zip.epochs: "),
        ({"paper": {"fdi": 1.0}}, "$.rows[0].paper: "),
        ({"schedule": {"kind": "constant", "values": [1.0], "warmup_epochs": 5}}, "$.rows[0].schedule: "),
    ],
)
def test_a_mistake_in_a_row_is_marked_where_it_is(row: dict[str, Any], place: str) -> None:
    (found,) = grid_mistakes(**row)
    assert found.startswith(place)


def test_a_grid_needs_a_title_unless_it_extends_another() -> None:
    (schema,) = (schema for path, schema in schemas().items() if path.name == "grid.schema.json")
    assert mistakes({"extends": "demo"}, schema) == []
    assert mistakes({"title": "all"}, schema) == []
    assert mistakes({"rows": []}, schema) != []


def test_what_the_types_document_is_shown_by_an_editor() -> None:
    for schema in schemas().values():
        assert schema["description"]
        assert all(kind.get("description") for kind in schema.get("$defs", {}).values())
