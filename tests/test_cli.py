"""The command line: what its help promises, exit codes, logs, and that it costs no torch before there is work."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from mirai import cli
from mirai.cli import build_parser, main
from mirai.commands import reports, stages
from mirai.experiments import paths, plan
from mirai.experiments.grid_files import grid_names
from mirai.experiments.plan import Planned
from mirai.experiments.stages import Phase, Stage, StateStage
from mirai.states import is_published
from tests.conftest import ROOT
from tests.training import tiny

SCALES = ("demo", "digits", "imagenet256", "folder-photos")


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    (action,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(action.choices)


def frozen(stage: Stage) -> str:
    """The key of a stage whose recipe lies in the store, as Snakemake leaves it."""
    plan.freeze(Planned(stage, "digits"))
    return stage.key


@pytest.fixture
def state(project: Path, monkeypatch: pytest.MonkeyPatch) -> StateStage:
    """A training of eight steps, ready to be started by its key."""
    monkeypatch.setenv("TQDM_MININTERVAL", "10")  # set by --log; put back after the test
    tiny.make_codes()
    state = tiny.stage((Phase(epochs=2),))
    frozen(state)
    return state


# Help


@pytest.mark.parametrize("name", commands())
def test_the_help_of_every_command_says_what_it_does_its_inputs_outputs_and_an_example_that_parses(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main([name, "--help"])
    assert exited.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    description = text.split("positional arguments:")[0].split("options:")[0].lower()
    assert "reads " in description
    assert "writes " in description or "deletes " in description
    example = (commands()[name].description or "").split("Example: ")[1]
    program, *arguments = shlex.split(example)
    assert (program, arguments[0]) == ("mirai", name)
    build_parser().parse_args(arguments)


def test_the_help_lists_every_command_with_its_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    wanted = (
        "plan tokenizer codes encoder features reference train evaluate sample table figure summary export gc import"
    )
    assert set(wanted.split()) <= set(commands())
    for name, parser in commands().items():
        purpose = (parser.description or "").split(". ")[0]
        assert f"{name} {purpose[0].lower()}{purpose[1:]}" in text


def test_every_rule_of_the_workflow_runs_a_command_that_exists() -> None:
    rules = "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    called = [line.split('"mirai ')[1].split()[0] for line in rules.splitlines() if '"mirai ' in line]
    assert len(called) >= 10
    assert set(called) <= set(commands())


@pytest.mark.parametrize("arguments", ["--help", "train --help", "plan demo --scale demo", "plan table2", "gc"])
def test_help_plan_and_gc_import_no_torch(arguments: str, project: Path) -> None:
    code = (
        "import contextlib, sys; from mirai.cli import main\n"
        "with contextlib.suppress(SystemExit): main(sys.argv[1:])\n"
        "print('heavy:', *{'torch', 'numpy', 'PIL', 'snakemake'} & {name.split('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", code, *arguments.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy:"
    assert not (project / "results").exists()


# Plan


@pytest.mark.full
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("grid", ["demo", "table2", "table5"])
def test_plan_prints_the_tree_of_every_grid_at_every_scale(
    grid: str, scale: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert grid in grid_names()
    assert main(["plan", grid, "--scale", scale]) == 0
    states, others = capsys.readouterr().out.split("other stages:\n")
    first, *lines, last = states.splitlines()
    for line in others.partition("\n\n")[0].splitlines():  # what it costs follows: test_plan_command.py
        kind, key, done = line.split(maxsplit=2)
        assert (plan.lookup(key).stage.kind, done) == (kind, "to do")
    assert f"runs at scale {scale}, results in {paths.product(scale, grid)}" in first
    tree = {line.split()[0]: line for line in lines if "not at this scale" not in line}
    alone = 0
    for row in plan.plan_grid(grid, scale).available():
        for stage in plan.row_metrics(row):
            assert row.label in tree[stage.samples.state.key]
            alone += stage.samples.state.epoch
    for key, line in tree.items():
        assert "to do" in line
        parent = plan.lookup(key).parent
        indent = 0 if parent is None else 2 + tree[parent].index(parent)
        assert line.index(key) == indent, "what grows out of a state is indented below it"
    assert last.endswith(" epochs to train")
    assert 0 < int(last.split()[0]) <= alone
    assert not (project / "results").exists()


def test_plan_marks_what_is_done(state: StateStage, capsys: pytest.CaptureFixture[str]) -> None:
    planned = plan.plan_grid("demo", "digits")
    first = plan.row_metrics(planned.available()[0])[0].samples.state
    manifest = paths.manifest("state", first.key)
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    assert main(["plan", "demo", "--scale", "digits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if " done" in line] == [first.key]


# Exit codes


def test_a_finished_command_exits_with_zero_and_its_repetition_does_nothing(
    state: StateStage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", state.key]) == 0
    weights = paths.manifest("state", state.key)
    assert is_published(weights)
    payload = weights.with_name("weights.safetensors")
    before = payload.stat().st_mtime_ns
    assert main(["train", state.key]) == 0
    assert capsys.readouterr().out == f"mirai: state {state.key} is there already\n"
    assert payload.stat().st_mtime_ns == before


def _raise(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "mirai: interrupted; the same command goes on from what is saved\n"),
        (KeyboardInterrupt("stopped at step 3"), 130, "mirai: stopped at step 3\n"),
        (AssertionError("a bug"), 1, "Traceback (most recent call last):\n"),
        (OSError(5, "Input/output error"), 1, "Traceback (most recent call last):\n"),
    ],
)
def test_the_exit_code_tells_an_interruption_from_a_bug(
    error: BaseException, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "gc", lambda options: _raise(error))
    assert main(["gc"]) == code
    assert capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize("arguments", [[], ["paint"], ["train"], ["plan", "demo", "--skale", "demo"]])
def test_a_mistyped_command_exits_with_two_and_its_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    assert capsys.readouterr().err.startswith("usage: mirai")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence a command refuses with."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mirai: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("mirai: ").rstrip()


def test_a_key_of_another_kind_of_stage_is_refused(state: StateStage, capsys: pytest.CaptureFixture[str]) -> None:
    codes = frozen(state.codes_stage())
    assert refused(["train", codes], capsys) == f"{codes} is a codes stage, not a state one"
    assert refused(["evaluate", state.key], capsys) == f"{state.key} is a state stage, not a metrics one"
    assert refused(["sample", state.key], capsys) == f"{state.key} is a state stage, not a samples one"
    assert refused(["export", codes, "--npz", "x.npz"], capsys) == f"{codes} is a codes stage, not a samples stage"
    picture = ["sample", "--state", codes, "--classes", "0", "--grid", "x.png"]
    assert refused(picture, capsys) == f"{codes} is a codes stage, not a state"


@pytest.mark.full
def test_a_key_that_nobody_planned_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refused(["train", "0123456789abcdef"], capsys)
    assert sentence.startswith(
        "no grid in experiments/ and no recipe in results/store/ has a stage with key 0123456789"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("", "mirai sample takes one of: the key of a samples stage; --state KEY with --classes and --grid; "),
        ("0123456789abcdef --state 0123456789abcdef", "mirai sample takes one of: "),
        ("--state 0123456789abcdef --grid x.png", "mirai sample takes one of: "),
        ("--state 0123456789abcdef --classes 1", "mirai sample takes one of: "),
        ("--state 0123456789abcdef --num-samples 5 --out x", "mirai sample takes one of: "),
        ("--state 0123456789abcdef --classes 1 --grid x.jpg", "--grid x.jpg: the picture is written as PNG"),
    ],
)
def test_sample_says_which_options_go_together(
    arguments: str, sentence: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(["sample", *arguments.split()], capsys).startswith(sentence)


def test_a_picture_of_an_untrained_state_is_refused(state: StateStage, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refused(["sample", "--state", state.key, "--classes", "0", "--grid", "x.png"], capsys)
    assert sentence == f"state {state.key} is not trained yet; `mirai train {state.key}` or Snakemake does that"


def test_a_class_that_the_data_have_not_is_refused(state: StateStage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", state.key]) == 0
    sentence = refused(["sample", "--state", state.key, "--classes", "3", "10", "--grid", "x.png"], capsys)
    assert sentence == "--classes 10: classes go from 0 to 9"


# Logs


def test_a_log_gets_what_is_printed_with_progress_as_lines(
    state: StateStage, capsys: pytest.CaptureFixture[str]
) -> None:
    log = paths.RESULTS / "logs/state/x.log"
    assert main(["train", state.key, "--log", str(log)]) == 0
    assert main(["train", state.key, "--log", str(log)]) == 0
    text = log.read_text()
    assert "\r" not in text
    progress = [line for line in text.splitlines() if line.startswith(f"train {state.key} ")]
    assert len(progress) >= 2
    assert "0%" in progress[0]
    assert "8/8" in progress[-1]
    assert "loss=" in progress[-1]
    assert text.endswith(f"mirai: state {state.key} is there already\n"), "a second call adds to the log"
    captured = capsys.readouterr()
    assert captured.err + captured.out == text


@pytest.mark.full
def test_a_mistake_and_a_traceback_are_in_the_log_too(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "0123456789abcdef", "--log", "a.log"]) == 2
    assert Path("a.log").read_text().startswith("mirai: no grid in experiments/")
    monkeypatch.setattr(reports, "write_table", lambda options: _raise(AssertionError("a bug")))
    assert main(["table", "demo", "--log", "a.log"]) == 1
    assert Path("a.log").read_text().endswith("AssertionError: a bug\n")


def test_a_bar_becomes_a_line_each_time_it_is_drawn() -> None:
    shown, log = io.StringIO(), io.StringIO()
    tee = cli._Tee(shown, log)
    for text in ("plain\n", "\r 10%", "\r 50%", "\r100%", "\n", "done\n"):
        tee.write(text)
    assert shown.getvalue() == log.getvalue()
    assert [line for line in log.getvalue().splitlines() if line] == ["plain", " 10%", " 50%", "100%", "done"]
    assert not tee.isatty()


# Garbage


def test_gc_says_what_would_go_and_then_deletes_optimisers_only(
    state: StateStage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", state.key]) == 0
    resume, folder = paths.resume(state.key), paths.folder("state", state.key)
    size = resume.with_suffix(".safetensors").stat().st_size
    before = sorted(path.name for path in folder.iterdir())
    capsys.readouterr()
    assert main(["gc", "--dry-run"]) == 0
    payload = resume.with_suffix(".safetensors")
    told = f"would delete {payload} ({size / 1e6:.1f} MB)\n{size / 1e6:.1f} MB to free\n"
    assert capsys.readouterr().out == told
    assert sorted(path.name for path in folder.iterdir()) == before
    assert main(["gc"]) == 0
    assert capsys.readouterr().out == told.replace("would delete", "deleted").replace("to free", "freed")
    gone = {"resume.json", ".resume.json", "resume.safetensors"}
    assert sorted(path.name for path in folder.iterdir()) == sorted(set(before) - gone)
    assert is_published(paths.manifest("state", state.key))
    assert main(["gc"]) == 0
    assert capsys.readouterr().out == "0.0 MB freed\n"
