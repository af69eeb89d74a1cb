"""The shape of the package: which part may know which, what an import costs, and how long a file may be."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "mirai").rglob("*.py"))

# part of the package -> the parts it may import, inside functions too. Everything may import `errors`.
BASE = {"experiments", "randomness", "states"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "randomness": set(),
    "states": set(),
    "released": set(),
    "numerics": set(),
    "ranks": set(),
    "experiments": {"states"},  # to say what is published, and to freeze recipes
    "data": BASE,
    "tokenizer": BASE | {"data", "numerics", "released"},
    "models": BASE | {"released"},
    "foresight": BASE | {"data", "released"},  # models are handed in
    "training": BASE | {"data", "tokenizer", "models", "foresight", "ranks"},
    "sampling": BASE | {"models", "tokenizer"},
    "evaluation": BASE | {"data", "numerics", "tokenizer"},
    # what puts the parts together
    "store": BASE | {"data", "tokenizer", "models", "foresight", "sampling", "evaluation"},
    "analysis": BASE | {"data", "tokenizer", "models", "foresight", "sampling", "evaluation", "store"},
    "make": BASE | {"data", "tokenizer", "models", "foresight", "sampling", "evaluation", "ranks", "store", "training"},
    "measure": BASE | {"store", "evaluation", "sampling"},
    "export": BASE | {"evaluation", "sampling", "store", "tokenizer"},
    "preflight": BASE | {"data", "evaluation"},
    "imports": BASE | {"models", "ranks", "released", "sampling", "tokenizer"},
    "launch": BASE | {"make", "ranks"},  # inside functions only: planning imports it, and needs no torch
    "costs": BASE | {"launch"},
    "doctor": BASE,
    "downloads": BASE,
    "commands": BASE
    | {"analysis", "costs", "doctor", "downloads", "export", "imports", "launch", "make", "measure", "ranks"},
    "cli": {"commands", "states"},
    "__main__": {"cli"},
}

# Longer than the rest, with reason. Files by path, functions by path and name.
FILE_LINES, FUNCTION_LINES = 330, 75
LONGER = {
    "mirai/experiments/recipe.py": 400,  # one field a line: every value that decides a result, in one place
    "mirai/training/loop.py train": 100,  # a training from top to bottom
}


def name_of(path: Path) -> str:
    """Dotted name of a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The part of the package that a module belongs to; the package itself belongs to none."""
    return module.split(".")[1] if "." in module else ""


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Modules of this package that a file imports, inside functions and for typing too."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {module, *(f"{module}.{name.name}" for name in node.names)}
    modules = {name_of(file) for file in FILES}
    return frozenset(found & modules)


def reached(start: str) -> set[str]:
    """All modules that importing one can ever import."""
    by_name = {name_of(path): path for path in FILES}
    found: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        waiting += imports(by_name[module])
        if "." in module:
            waiting.append(module.rsplit(".", 1)[0])
    return found


def fresh(code: str, folder: Path) -> str:
    """What a new interpreter prints, started in an empty folder, where it must leave nothing."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir()), "importing or planning wrote files"
    return done.stdout


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_imports_only_what_its_part_may_know(path: Path) -> None:
    part = part_of(name_of(path))
    known = {part_of(module) for module in imports(path)} - {part, "errors", ""}
    assert part in ALLOWED or part == "", f"say in ALLOWED what the new part '{part}' may import"
    assert known <= ALLOWED.get(part, set())


def test_the_parts_of_the_package_have_an_order() -> None:
    """No part can know itself through others."""
    for part, known in ALLOWED.items():
        seen: set[str] = set()
        waiting = list(known)
        while waiting:
            other = waiting.pop()
            if other not in seen:
                seen.add(other)
                waiting += ALLOWED[other]
        assert part not in seen


@pytest.mark.parametrize("part", ["models", "sampling"])
def test_inference_knows_nothing_of_foresight_by_any_path(part: str) -> None:
    for path in FILES:
        if part_of(name_of(path)) == part:
            parts = {part_of(module) for module in reached(name_of(path))}
            assert not parts & {"foresight", "training", "make", "analysis"}, path


def test_foresight_reaches_no_model_and_no_training() -> None:
    for path in FILES:
        if part_of(name_of(path)) == "foresight":
            assert not {part_of(module) for module in reached(name_of(path))} & {"models", "training", "sampling"}, path


def test_importing_models_and_sampling_loads_no_foresight(tmp_path: Path) -> None:
    """The same as above, asked of Python itself."""
    modules = [name_of(path) for path in FILES if part_of(name_of(path)) in ("models", "sampling")]
    printed = fresh(f"import sys, {', '.join(modules)}; print(*sys.modules)", tmp_path).split()
    assert set(modules) <= set(printed)
    assert not [name for name in printed if name.startswith(("mirai.foresight", "mirai.training"))]


HEAVY = ("torch", "torchvision", "timm", "pandas", "matplotlib", "sklearn", "scipy", "snakemake")


@pytest.mark.parametrize(
    "code",
    [
        "import "
        + ", ".join(
            name_of(path) for path in FILES if part_of(name_of(path)) in ("experiments", "states", "randomness")
        ),
        "import mirai.cli; mirai.cli.build_parser().format_help()",
        "import mirai.costs, mirai.launch.resources, mirai.launch.slurm, mirai.launch.task, mirai.preflight",
        f"import os; os.chdir({str(ROOT)!r}); from mirai.experiments import plan; plan.plan_grid('table2', 'demo')",
    ],
    ids=["experiments", "cli", "launch", "plan"],
)
def test_planning_and_the_command_lines_help_need_no_torch(code: str, tmp_path: Path) -> None:
    printed = fresh(f"{code}\nimport sys; print(*sys.modules)", tmp_path).split()
    assert not [name for name in printed if name in HEAVY]


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "__main__.py"], ids=name_of)
def test_importing_a_module_only_defines_things(path: Path) -> None:
    for node in tree(path).body:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.ClassDef() | ast.AnnAssign():
                continue
            case ast.Expr(value=ast.Constant(value=str())):
                continue
            case ast.Assign(targets=[ast.Name() | ast.Tuple()]):
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                continue
        pytest.fail(f"{path.relative_to(ROOT)} line {node.lineno} does something when it is imported")


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length of all functions of a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_can_be_read_in_one_sitting(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    assert len(path.read_text().splitlines()) <= LONGER.get(place, FILE_LINES)
    for name, length in functions(path):
        assert length <= LONGER.get(f"{place} {name}", FUNCTION_LINES), name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_says_what_it_is_for_in_a_few_lines(path: Path) -> None:
    docstring = ast.get_docstring(tree(path))
    assert docstring
    assert len(docstring.splitlines()) <= 8
