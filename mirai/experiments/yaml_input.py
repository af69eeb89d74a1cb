"""YAML files into typed recipes, with one sentence per mistake: file, key, value, what is allowed."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mirai.errors import UserError

ModelType = TypeVar("ModelType", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML's safe types; a key given twice is a mistake, instead of the last one winning silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError if it is missing, malformed or something else than a mapping."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not valid YAML (the file is not UTF-8 text)") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" line {place.line + 1}" if place is not None else ""
        raise UserError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content


def validate(model: type[ModelType], content: Any, where: str) -> ModelType:
    """Check `content` against a recipe type; UserError tells the first mistake in one sentence."""
    try:
        # Through JSON: strict JSON mode takes a list for a tuple, and still no text for a number.
        return model.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise UserError(f"{where}: {_sentence(model, error)}") from None
    except TypeError as error:
        raise UserError(f"{where}: {error}; quote dates and other special YAML values") from None


def _sentence(model: type[BaseModel], error: ValidationError) -> str:
    # An unknown key first: where `lable` stands for `label`, pydantic misses `label` before it minds `lable`.
    first = min(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in first["loc"])
    value = first["input"]
    if first["type"] == "extra_forbidden":
        allowed = _fields_at(model, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"unknown key '{place}'; {hint}allowed: {', '.join(allowed)}"
    if first["loc"][-1:] == ("[key]",):
        return f"unknown key '{place.removesuffix('.[key]')}'; {first['msg'].replace('Input should be', 'allowed:')}"
    if first["type"] == "missing":
        return f"key '{place}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        mantissa, exponent = re.split("[eE]", value)
        if not re.match("[-+]", exponent):
            exponent = "+" + exponent
        fixed = f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent}"
        message = f"YAML reads {value} as text; write {fixed}"
    shown = value if isinstance(value, str | int | float | bool | type(None)) else json.dumps(value)
    return f"key '{place}' has value {shown!r}: {message}" if place else message


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the recipe type that sits at `location`, found through the JSON schema."""
    schema = model.model_json_schema()
    node: Any = schema
    for part in location:
        node = _resolve(schema, node)
        if isinstance(part, int):
            node = node.get("items", {})
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        else:
            node = node.get("additionalProperties", {})
    return sorted(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    for option in [node, *node.get("anyOf", [])]:
        if "$ref" in option:
            resolved: dict[str, Any] = schema["$defs"][option["$ref"].rsplit("/", 1)[1]]
            return resolved
    return node
