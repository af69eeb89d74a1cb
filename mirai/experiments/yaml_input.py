"""YAML files into typed recipes, with one sentence per mistake: file, line, key, value, what is allowed."""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mirai.errors import UserError

ModelType = TypeVar("ModelType", bound=BaseModel)
Location = tuple[int | str, ...]


class Mapping(dict[Any, Any]):
    """A mapping of a YAML file that knows where each of its keys is written."""

    marks: dict[Any, yaml.Mark]


class Sequence(list[Any]):
    """A list of a YAML file that knows where each of its items is written."""

    marks: dict[int, yaml.Mark]


# Plans read hundreds of files, which libyaml does ten times faster than the same code in Python.
BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Text(io.StringIO):
    """The text of a file, by whose name marks call it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.read_text(encoding="utf-8"))
        self.name = str(path)


class _Loader(BASE):
    """YAML's safe types; a key given twice is a mistake, instead of the last one winning silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def marked_mapping(self, node: yaml.MappingNode) -> Mapping:
        mapping = Mapping(self.construct_mapping(node, deep=True))
        mapping.marks = {self.construct_object(key, deep=True): key.start_mark for key, _ in node.value}
        return mapping

    def marked_sequence(self, node: yaml.SequenceNode) -> Sequence:
        sequence = Sequence(self.construct_sequence(node, deep=True))
        sequence.marks = {number: item.start_mark for number, item in enumerate(node.value)}
        return sequence

    def plain_number(self, node: yaml.ScalarNode) -> int | float:
        whole = node.tag.endswith(":int")
        number: int | float = self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)
        if re.match(r"[-+]?0[\d_]+$", node.value) or ":" in node.value:  # YAML 1.1: 010 is 8, and 1:30 is 90
            mark = node.start_mark
            raise UserError(
                f"{mark.name} line {mark.line + 1}: YAML reads {node.value} as {number}; write {number}, or quote it"
            )
        return number

    yaml_constructors = {
        **yaml.SafeLoader.yaml_constructors,
        "tag:yaml.org,2002:int": plain_number,
        "tag:yaml.org,2002:float": plain_number,
        "tag:yaml.org,2002:map": marked_mapping,
        "tag:yaml.org,2002:seq": marked_sequence,
    }


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError if it is missing, malformed or something else than a mapping."""
    try:
        content = _Loader(_Text(path)).get_single_data()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not valid YAML (the file is not UTF-8 text)") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" line {place.line + 1}" if place is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", error)
        raise UserError(f"{path}{line}: not valid YAML ({problem})") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else "list" if isinstance(content, list) else type(content).__name__
        raise UserError(f"{path}: expected keys and values, found {found}")
    return content


def overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two mappings as one, the second one's values over the first one's; each key stays marked where it is written."""
    merged = Mapping({**below, **above})
    merged.marks = {**getattr(below, "marks", {}), **getattr(above, "marks", {})}
    return merged


def joined(first: list[Any], second: list[Any]) -> list[Any]:
    """Two lists as one; each item stays marked where it is written."""
    both = Sequence([*first, *second])
    marks = [mark for part in (first, second) for mark in getattr(part, "marks", {}).values()]
    both.marks = dict(enumerate(marks))
    return both


def place(content: Any, location: Location, otherwise: str) -> str:
    """File and line of the innermost part of a location that was read from a file."""
    found = otherwise
    for part in location:
        mark = getattr(content, "marks", {}).get(part)
        if mark is None:
            break
        found, content = f"{mark.name} line {mark.line + 1}", content[part]
    return found


def validate(model: type[ModelType], content: Any, where: str) -> ModelType:
    """Check `content` against a recipe type; UserError tells the first mistake in one sentence.

    `where` says what is checked, for what does not come from a file that `read_yaml` read.
    """
    try:
        # Through JSON: strict JSON mode takes a list for a tuple, and still no text for a number.
        return model.model_validate_json(json.dumps(content))
    except ValidationError as error:
        location, sentence = _told(model, error.errors())
        raise UserError(f"{place(content, location, where)}: {sentence}") from None
    except TypeError as error:
        raise UserError(f"{where}: {error}; quote dates and other special YAML values") from None


def _told(model: type[BaseModel], mistakes: list[ErrorDetails]) -> tuple[Location, str]:
    """Where the mistake to tell sits, and the sentence."""
    # An unknown key first: where `lable` stands for `label`, pydantic misses `label` before it minds `lable`.
    first = min(mistakes, key=lambda mistake: mistake["type"] != "extra_forbidden")
    location, allowed = _walk(model, first["loc"])
    # Of a union, pydantic tells what every alternative minds: one that minds something inside has come closest.
    within = {_walk(model, one["loc"])[0]: one for one in mistakes}
    deeper = [one for inner, one in within.items() if inner[: len(location)] == location and inner != location]
    if deeper and first["type"] != "extra_forbidden":
        return _told(model, deeper)
    key = ".".join(str(part) for part in location)
    match first["type"]:
        case "extra_forbidden":
            return location, _unknown(key, allowed)
        case "missing":
            return location, f"key '{key}' is missing"
        case "union_tag_not_found":
            return location, f"key '{key}.{_tag(first)}' is missing"
        case "union_tag_invalid":
            sentence = (
                f"key '{key}.{_tag(first)}' has value '{first['ctx']['tag']}': allowed: {first['ctx']['expected_tags']}"
            )
            return (*location, _tag(first)), sentence
    if first["loc"][-1:] == ("[key]",):
        return location, _unknown(key, re.findall(r"'([^']+)'", first["msg"]))
    same = [one for one in mistakes if _walk(model, one["loc"])[0] == location]
    told = [one["msg"] for one in same if not one["type"].endswith("_type")] or [one["msg"] for one in same]
    return location, _wrong(key, first["input"], told)


def _tag(mistake: ErrorDetails) -> str:
    return str(mistake["ctx"]["discriminator"]).strip("'")


def _unknown(key: str, allowed: list[str]) -> str:
    return f"unknown key '{key}'; {hint(key.rpartition('.')[2], allowed)}allowed: {', '.join(allowed)}"


def hint(name: str, allowed: Iterable[str]) -> str:
    """A question for the nearest of the allowed names, to stand before all of them; empty where none is near."""
    near = difflib.get_close_matches(name, list(allowed), n=1)
    return f"did you mean '{near[0]}'? " if near else ""


def _wrong(key: str, value: Any, messages: list[str]) -> str:
    messages = [message.removeprefix("Value error, ") for message in messages]
    message = ", or ".join(dict.fromkeys(message[0].lower() + message[1:] for message in messages))
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        mantissa, exponent = re.split("[eE]", value)
        if not re.match("[-+]", exponent):
            exponent = "+" + exponent
        fixed = f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent}"
        message = f"YAML reads {value} as text; write {fixed}"
    shown = value if isinstance(value, str | int | float | bool | type(None)) else json.dumps(value)
    return f"key '{key}' has value {shown!r}: {message}" if key else message


def _walk(model: type[BaseModel], location: Location) -> tuple[Location, list[str]]:
    """A location without pydantic's names of alternatives, and the fields of the recipe type around its last part."""
    schema = model.model_json_schema()
    node: dict[str, Any] = schema
    keys: list[int | str] = []
    fields: list[str] = []
    for part in location:
        options = _options(schema, node)
        if len(options) > 1:  # the name of one of them
            named = [option for name, option in options.items() if name in str(part)]
            node = (named or list(options.values()))[0]
            continue
        (node,) = options.values()
        if part == "[key]":
            break
        fields = sorted(node.get("properties", {}))
        keys.append(part)
        if isinstance(part, int):
            node = node.get("items") or dict(enumerate(node.get("prefixItems", []))).get(part, {})
        else:
            node = node.get("properties", {}).get(part, node.get("additionalProperties", {}))
        node = node if isinstance(node, dict) else {}
    return tuple(keys), fields


def _options(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What may stand at a place of a JSON schema, beside null, by the name that pydantic's locations have for it."""
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[1]
        return {name: schema["$defs"][name]}
    if "discriminator" in node:
        mapping = node["discriminator"]["mapping"]
        return {tag: _options(schema, {"$ref": ref})[ref.rsplit("/", 1)[1]] for tag, ref in mapping.items()}
    found: dict[str, dict[str, Any]] = {}
    for alternative in node.get("anyOf", []):
        if alternative.get("type") != "null":
            for name, option in _options(schema, alternative).items():
                found[name or f"#{len(found)}"] = option
    return found or {"": node}
