"""No dead fields: whatever a recipe, scale, grid or site can say is read by something that computes or prints.

Reading is attribute access on a name that may hold the recipe type: a name annotated with it, assigned from it, looped
over it. Keys hash every field, so hashing, canonical forms and a type's own validators do not count.
"""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from mirai.experiments import canonical, figures, grid, plan, recipe, scale, site, stages
from mirai.experiments.recipe import Recipe

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "mirai").rglob("*.py"))
NO_READERS = {Path(module.__file__ or "") for module in (canonical, recipe)}
NO_READING = {"content", "hashed"}  # functions that hash

EXCEPTIONS = {  # "Type.field", with its reason
    "GridFile.extends",  # read from the file before its content is one whole grid
    *(f"{figure.__name__}.kind" for figure in get_args(get_args(figures.Figure)[0])),  # by it pydantic chooses the type
}

Types = dict[str, set[str]]  # recipe type -> its fields
Holders = dict[str, set[str]]  # recipe type -> names that may hold one


def recipe_types() -> Types:
    """All recipe types of the package with their fields; importing `plan` and `site` has imported their modules."""
    assert plan.load_site is site.load_site

    def below(kind: type[Recipe]) -> Iterator[type[Recipe]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    kinds = [kind for kind in below(Recipe) if kind.__module__.startswith("mirai.")]
    assert {scale.Scale, grid.Point, stages.Phase, site.Site, recipe.Run} <= set(kinds)
    assert issubclass(grid.RowFile, grid.Point)
    inherited = {
        kind: {name for base in kind.__bases__ for name in getattr(base, "model_fields", {})} for kind in kinds
    }
    return {kind.__name__: set(kind.model_fields) - inherited[kind] for kind in kinds}


def identifiers(node: ast.AST | None) -> set[str]:
    """Last names of what an expression may give: `x.training` for `run.training`, `stage` for `list(stage)[0]`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return {name}
        case ast.Call(func=function, args=arguments):
            return identifiers(function).union(*(identifiers(argument) for argument in arguments))
        case ast.Subscript(value=value) | ast.Starred(value=value) | ast.NamedExpr(value=value):
            return identifiers(value)
        case ast.IfExp(body=first, orelse=second):
            return identifiers(first) | identifiers(second)
        case ast.BoolOp(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
            return set().union(*(identifiers(part) for part in parts))
    return set()


def mentioned(annotation: ast.AST | None, types: Types) -> set[str]:
    """Recipe types in an annotation."""
    nodes = () if annotation is None else ast.walk(annotation)
    return {name for node in nodes for name in identifiers(node)} & set(types)


def declared(tree: ast.Module, types: Types, *, public: bool) -> Holders:
    """Names annotated with a recipe type: fields and functions, known to every file (public), or arguments."""
    found: Holders = defaultdict(set)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and not public:
            for kind in mentioned(node.annotation, types):
                found[kind].add(node.arg)
        if isinstance(node, ast.AnnAssign) and public:
            for kind in mentioned(node.annotation, types):
                found[kind] |= identifiers(node.target)
        if isinstance(node, ast.FunctionDef) and public:
            for kind in mentioned(node.returns, types):
                found[kind].add(node.name)
        if isinstance(node, ast.Call) and identifiers(node.func) == {"isinstance"} and not public:
            for kind in mentioned(node.args[1], types):
                found[kind] |= identifiers(node.args[0])
    return found


def spread(tree: ast.Module, holders: Holders) -> Holders:
    """Add the names that assignments and loops give to what a holder holds -> those that are attributes, for others."""
    bindings: list[tuple[ast.expr, set[str]]] = []
    for node in ast.walk(tree):
        match node:
            case (
                ast.Assign(targets=[target], value=value)
                | ast.NamedExpr(target=target, value=value)
                | ast.For(target=target, iter=value)
                | ast.comprehension(target=target, iter=value)
            ):
                bindings.append((target, identifiers(value)))
    attributes: Holders = defaultdict(set)
    for kind, names in holders.items():
        size = -1
        while size != len(names):
            size = len(names)
            for target, values in bindings:
                if values & names:
                    names |= identifiers(target)
                    attributes[kind] |= identifiers(target) if isinstance(target, ast.Attribute) else set()
    return attributes


def readings(tree: ast.Module) -> Iterator[tuple[set[str], str, str]]:
    """What is read of what, inside which class: ({"run"}, "epochs", "") for `run.epochs`, and names for getattr."""

    def visit(node: ast.AST, inside: str) -> Iterator[tuple[set[str], str, str]]:
        if isinstance(node, ast.ClassDef):
            inside = node.name
        if isinstance(node, ast.FunctionDef):
            decorators = set().union(*(identifiers(decorator) for decorator in node.decorator_list))
            if "model_validator" in decorators or node.name in NO_READING:
                return
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and identifiers(call.func) >= {"getattr"}:
                    yield from ((identifiers(call.args[0]), str(text), inside) for text in texts)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield identifiers(node.value), node.attr, inside
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return visit(tree, "")


@functools.cache
def parsed() -> dict[Path, ast.Module]:
    """The package's files."""
    return {path: ast.parse(path.read_text()) for path in FILES}


def unread_fields(types: Types) -> set[str]:
    """Type and name of all fields that nothing reads."""
    trees = parsed()
    everywhere: Holders = defaultdict(set)
    for tree in trees.values():
        for kind, names in declared(tree, types, public=True).items():
            everywhere[kind] |= names
    for _ in range(2):  # attributes that are given in one file and read in another
        holders = {path: declared(tree, types, public=False) for path, tree in trees.items()}
        for path, tree in trees.items():
            for kind in types:
                holders[path][kind] |= everywhere[kind]
            for kind, names in spread(tree, holders[path]).items():
                everywhere[kind] |= names
    unread = {(kind, name) for kind, fields in types.items() for name in fields}
    for path in set(trees) - NO_READERS:
        for bases, name, inside in readings(trees[path]):
            unread -= {
                (kind, name)
                for kind in types
                if (kind, name) in unread and (bases & holders[path][kind] or (bases == {"self"} and inside == kind))
            }
    return {f"{kind}.{name}" for kind, name in unread}


def test_every_field_is_read_by_something() -> None:
    assert unread_fields(recipe_types()) == EXCEPTIONS


def test_a_field_that_nothing_reads_is_found_even_if_another_type_has_its_name() -> None:
    types = recipe_types()
    dead = {"Model": "guidance", "Sampling": "betas", "Numerics": "learning_rate", "Site": "nonsense"}
    for kind, name in dead.items():
        types[kind] = types[kind] | {name}
    assert {f"{kind}.{name}" for kind, name in dead.items()} <= unread_fields(types)
