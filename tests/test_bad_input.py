"""Every mistake a user can make, through the command line: one sentence, exit code 2, and nothing damaged."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from mirai import preflight
from mirai.cli import main
from mirai.data import codes as code_module
from mirai.data import folder
from mirai.data.folder import fingerprint
from mirai.errors import UserError
from mirai.experiments import paths, plan
from mirai.experiments.grid_files import RESERVED
from mirai.experiments.plan import Planned
from mirai.experiments.recipe import Data, Sampling
from mirai.experiments.stages import CodesStage, Phase, SamplesStage, Stage, StateStage
from mirai.states import Lock, check_payload, is_published, publish, read_json, sealed, write_json
from mirai.training.journal import Journal
from tests.conftest import WriteGrid
from tests.tokenizers import TRAINED
from tests.training import tiny

Capture = pytest.CaptureFixture[str]
KEPT_ASIDE = {
    "lock",
    "recipe.json",
    "log.jsonl",
    "log.txt",
}  # what a refused command may leave: no result, and no part of one


def contents() -> dict[Path, bytes]:
    """Every file of results/ that is a result or a part of one."""
    files = paths.RESULTS.rglob("*") if paths.RESULTS.is_dir() else []
    return {path: path.read_bytes() for path in files if path.is_file() and path.name not in KEPT_ASIDE}


def refused(arguments: str | list[str], capsys: Capture, *, keeps: bool = True) -> str:
    """The sentence with which a command is refused. `keeps`: it leaves all results as they were."""
    capsys.readouterr()
    before = contents()
    assert main(arguments.split() if isinstance(arguments, str) else arguments) == 2
    assert not keeps or contents() == before
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    sentences = [line for line in printed.splitlines() if line.startswith("mirai: ")]
    assert len(sentences) == 1
    assert printed.rstrip("\n").endswith(sentences[0]), "nothing is said after it"
    return sentences[0].removeprefix("mirai: ")


def frozen(stage: Stage) -> str:
    """The key of a stage whose recipe lies in the store, as Snakemake leaves it."""
    plan.freeze(Planned(stage, "digits"))
    return stage.key


# YAML


GRID, SCALE, SITE = "experiments/own.yaml", "experiments/scales/digits.yaml", "config/site.yaml"
ONE_ROW = "title: t\nrows: [{label: a, arm: baseline}]"
Make = Callable[[Path], None]


def in_grid(text: str) -> Make:
    """A grid of this text."""

    def write(root: Path) -> None:
        (root / GRID).write_text(text)

    return write


def in_scale(old: str, new: str) -> Make:
    """A sound grid, and this replaced in the digits scale."""

    def edit(root: Path) -> None:
        text = (root / SCALE).read_text()
        assert old in text
        (root / SCALE).write_text(text.replace(old, new, 1))
        (root / GRID).write_text(ONE_ROW)

    return edit


def in_site(text: str) -> Make:
    """A sound grid, and a site of this text."""

    def write(root: Path) -> None:
        (root / "config").mkdir()
        (root / SITE).write_text(text)
        (root / GRID).write_text(ONE_ROW)

    return write


MISTAKES = {
    "unknown key": (
        in_grid("title: t\nrows: [{label: a, colour: red}]"),
        f"{GRID} line N: unknown key 'rows.0.colour'; allowed:",
    ),
    "mistyped key": (
        in_grid("title: t\nrows: [{label: a, epoch: 5}]"),
        f"{GRID} line N: unknown key 'rows.0.epoch'; did you mean 'epochs'? allowed:",
    ),
    "mistyped key of the scale": (
        in_scale("learning_rate: 5.0e-3", "learning_rat: 5.0e-3"),
        f"{SCALE} line N: unknown key 'training.learning_rat'; did you mean 'learning_rate'? allowed:",
    ),
    "unknown key of the site": (
        in_site("rank: 2"),
        f"{SITE} line N: unknown key 'rank'; did you mean 'ranks'? allowed:",
    ),
    "impossible value": (
        in_grid("title: t\nrows: [{label: a, epochs: 0}]"),
        f"{GRID} line N: key 'rows.0.epochs' has value 0: input should be greater than 0",
    ),
    "impossible pair of values": (
        in_scale("num_heads: 2", "num_heads: 5"),
        f"{SCALE} line N: key 'sizes.B.model' has value",
    ),
    "number read as text": (
        in_scale("learning_rate: 5.0e-3", "learning_rate: 5e-3"),
        f"{SCALE} line N: key 'training.learning_rate' has value '5e-3': YAML reads 5e-3 as text; write 5.0e-3",
    ),
    "1e-4": (
        in_grid("title: t\nrows: [{label: a, learning_rate: 1e-4}]"),
        f"{GRID} line N: key 'rows.0.learning_rate' has value '1e-4': YAML reads 1e-4 as text; write 1.0e-4",
    ),
    "no YAML": (in_grid("title: [t\nrows: 3"), f"{GRID} line N: not valid YAML"),
    "all rows missing at the scale": (
        in_grid("title: t\nrows: [{label: a, arm: baseline, size: XXL}]"),
        f"{GRID} has no row that scale 'digits' can run: size XXL does not exist at this scale",
    ),
    "a row without an arm": (
        in_grid("title: t\nrows: [{label: + Mirai-E, paper: {fid: 4.49}}]"),
        f"{GRID} line N: row '+ Mirai-E': every run has an arm; give one of baseline, mirai-i, mirai-e, output-level, in",
    ),
    "a role that no scale has": (
        in_grid("title: t\nrows: [{label: a, arm: mirai-i, encoder: clip}]"),
        f"{GRID} line N: row 'a': encoder 'clip' is known at no scale; known are ",
    ),
    "a role nearly that of a scale": (
        in_grid("title: t\nrows: [{label: a, arm: mirai-i, encoder: bas}]"),
        f"{GRID} line N: row 'a': encoder 'bas' is known at no scale; did you mean 'base'? known are ",
    ),
    "mistyped column": (
        in_grid("title: t\ncolumns: [epoch]\nrows: [{label: a}]"),
        f"{GRID} line N: columns names 'epoch', which is no axis; did you mean 'epochs'? axes are arm,",
    ),
    "mistyped scale": (
        in_grid("title: t\nat_scale: {digit: {epochs: 5}}\nrows: [{label: a}]"),
        f"{GRID} line N: at_scale names 'digit', which is no scale; did you mean 'digits'? scales are demo,",
    ),
    "mistyped base": (
        in_grid("extends: dem\nrows: [{label: a}]"),
        f"{GRID}: extends 'dem': experiments/dem.yaml does not exist; did you mean 'demo'? grids are demo,",
    ),
    "octal number": (
        in_grid("title: t\nrows: [{label: a, epochs: 010}]"),
        f"{GRID} line N: YAML reads 010 as 8; write 8, or quote it",
    ),
    "more neighbours to draw than tokens": (
        in_grid("title: t\nfigure: {kind: neighbourhoods, num_tokens: [1, 1000000]}"),
        f"{GRID} line N: figure: num_tokens 1000000 is more than the 16 tokens of an image",
    ),
    "no neighbours to draw": (
        in_grid("title: t\nfigure: {kind: neighbourhoods, num_tokens: []}"),
        f"{GRID} line N: key 'figure.num_tokens' has value '[]'",
    ),
    "no layouts to draw": (
        in_grid("title: t\nfigure: {kind: neighbourhoods, layouts: []}"),
        f"{GRID} line N: key 'figure.layouts' has value '[]'",
    ),
    "scale without seeds": (
        in_scale("sampling:", "seeds: []\nsampling:"),
        f"{SCALE} line N: key 'seeds' has value '[]'",
    ),
    "scale with one seed twice": (
        in_scale("sampling:", "seeds: [0, 0]\nsampling:"),
        f"{SCALE} line N: key 'seeds' has value '[0, 0]': each seed is given once",
    ),
    "tokenizer without levels": (
        in_scale("multipliers: [", "multipliers: []  # ["),
        f"{SCALE} line N: key 'tokenizer.multipliers' has value '[]'",
    ),
    "ranks that do not divide the batch": (
        in_site("ranks: 3"),
        f"{SITE}: ranks 3 does not divide the global batch of 16",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_yaml_is_told_with_file_line_key_and_what_is_allowed(
    name: str, project: Path, capsys: Capture
) -> None:
    make, sentence = MISTAKES[name]
    make(project)
    for command in ("plan", "table"):
        assert re.sub(r"line \d+", "line N", refused(f"{command} own --scale digits", capsys)).startswith(sentence)
    assert not paths.RESULTS.exists()


@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_name_is_refused(name: str, write_grid: WriteGrid, capsys: Capture) -> None:
    write_grid({}, name=name)
    assert refused(f"table {name} --scale digits", capsys).startswith(
        f"experiments/{name}.yaml: '{name}' cannot name a grid, results/{name} has another meaning; taken: "
    )


def test_what_a_scale_has_not_is_told_and_the_other_rows_are_planned(write_grid: WriteGrid, capsys: Capture) -> None:
    assert main(["plan", write_grid({}, {"size": "XXL"}), "--scale", "digits"]) == 0
    assert "not at this scale: row 1 (size XXL does not exist at this scale)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("num_samples: 2000", "num_samples: 200", "scale digits: num_samples 200 do not fill one split"),
        ("is_split_size: 2000", "is_split_size: 3000", "scale digits: num_samples 2000 do not fill one split"),
        (
            "width: 32\n    spatial",
            "width: 201\n    spatial",
            "scale digits: 2000 samples are too few: statistics of 201",
        ),
        ("spatial_channels: 2", "spatial_channels: 13", "scale digits: 2000 samples are too few: statistics of 208"),
    ],
)
def test_numbers_that_would_fail_after_the_trainings_are_refused_before_them(
    old: str, new: str, sentence: str, project: Path
) -> None:
    preflight.check("demo", "demo")
    in_scale(old, new)(project)
    with pytest.raises(UserError, match=rf"^{re.escape(sentence)}"):
        preflight.check("own", "digits")


# Image folders

PETS = Data(name="pets", source="folder", resolution=16, views=2)


@pytest.fixture
def pets(project: Path) -> Path:
    """A folder of twelve pictures that the site names."""
    preflight.check.cache_clear()
    rng = np.random.default_rng(0)
    for index in range(12):
        path = project / "pets" / ("cat", "dog")[index % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    name_pets(project / "pets")
    return project / "pets"


def name_pets(folder: Path) -> None:
    Path("config").mkdir(exist_ok=True)
    Path("config/site.yaml").write_text(yaml.safe_dump({"data": {"pets": str(folder)}}))


def codes_of_pets(**data: Any) -> CodesStage:
    stage = CodesStage(data=PETS.model_copy(update=data), tokenizer=TRAINED)
    frozen(stage)
    frozen(stage.tokenizer_stage())
    return stage


def training_on(codes: CodesStage) -> StateStage:
    state = tiny.stage((Phase(epochs=1),)).model_copy(update={"data": codes.data, "tokenizer": codes.tokenizer})
    frozen(state)
    return state


def truncate(path: Path) -> bytes:
    """Cut a file in half -> what it was."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


def test_a_missing_image_folder_is_told_with_the_key_to_write(pets: Path, capsys: Capture) -> None:
    key = codes_of_pets().tokenizer_stage().key
    name_pets(pets.with_name("elsewhere"))
    assert refused(f"tokenizer {key}", capsys) == (
        f"config/site.yaml: 'data.pets' is {pets.with_name('elsewhere')}, which does not exist"
    )
    Path("config/site.yaml").unlink()
    assert refused(f"tokenizer {key}", capsys) == (
        "config/site.yaml: key 'data.pets' is missing; write there a folder with one sub-folder of images per class"
    )


def test_a_corrupt_image_is_refused_by_name_and_once_mended_the_same_command_goes_on(
    pets: Path, capsys: Capture
) -> None:
    stage = codes_of_pets()
    assert main(["tokenizer", stage.tokenizer_stage().key]) == 0
    whole = truncate(pets / "dog/3.jpg")
    sentence = refused(f"codes {stage.key}", capsys, keeps=False)
    assert sentence.startswith(f"{pets}/dog/3.jpg is no readable image (")
    assert sentence.endswith("); replace or remove it, or set the data's `corrupt_images` to skip")
    assert not is_published(paths.manifest("codes", stage.key))
    (pets / "dog/3.jpg").write_bytes(whole)
    assert main(["codes", stage.key]) == 0
    assert read_json(paths.manifest("codes", stage.key))["images"] == 12


def test_a_corrupt_image_to_be_skipped_is_named_and_counted(pets: Path, capsys: Capture) -> None:
    truncate(pets / "dog/3.jpg")
    stage = codes_of_pets(corrupt_images="skip")
    for command, key in (("tokenizer", stage.tokenizer_stage().key), ("codes", stage.key)):
        capsys.readouterr()
        assert main([command, key]) == 0
        assert "1 unreadable images skipped: dog/3.jpg\n" in capsys.readouterr().err
    manifest = read_json(paths.manifest("codes", stage.key))
    assert (manifest["source_images"], manifest["images"], manifest["skipped"]) == (12, 11, ["dog/3.jpg"])


def test_training_refuses_a_changed_folder_under_an_old_name(pets: Path, capsys: Capture) -> None:
    stage = codes_of_pets()
    for command, key in (("tokenizer", stage.tokenizer_stage().key), ("codes", stage.key)):
        assert main([command, key]) == 0
    state = training_on(stage)
    (pets / "dog/3.jpg").rename(pets / "dog/three.jpg")
    sentence = refused(f"train {state.key}", capsys)
    assert sentence.startswith("the folder for data set pets has changed since its codes were made (12 files of ")
    assert sentence.endswith("give the new contents a new name")
    assert not is_published(paths.manifest("state", state.key))
    (pets / "dog/three.jpg").rename(pets / "dog/3.jpg")
    assert main(["train", state.key]) == 0


def folder_scale_of(pets: Path, *, width: int) -> StateStage:
    """The baseline of the demo at the folder scale, with feature statistics of this width."""
    file = Path("experiments/scales/folder.yaml")
    scale = yaml.safe_load(file.read_text())
    scale["evaluation"]["features"] |= {"width": width, "spatial_channels": 1}
    file.write_text(yaml.safe_dump(scale))
    row = plan.plan_grid("demo", "folder-pets").available()[0]
    return plan.row_metrics(row)[0].samples.state


@pytest.mark.parametrize("kind", ["tokenizer", "codes"])
def test_a_changed_folder_is_noticed_before_a_run_by_whatever_was_made_of_it(
    kind: str, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "PER_FEATURE", 0)
    codes = folder_scale_of(pets, width=1).codes_stage()
    preflight.check("demo", "folder-pets")
    source = asdict(fingerprint(pets))
    stage: Stage = codes if kind == "codes" else codes.tokenizer_stage()
    manifest = paths.manifest(kind, stage.key)
    publish(manifest, {"source": source} if kind == "codes" else {"report": {"source": source}})
    preflight.check.cache_clear()
    preflight.check("demo", "folder-pets")
    (pets / "cat/new.jpg").write_bytes(b"12345")
    preflight.check.cache_clear()
    with pytest.raises(UserError) as caught:
        preflight.check("demo", "folder-pets")
    size = source["bytes"]
    assert str(caught.value) == (
        f"image folder {pets} has changed since {manifest} was made of it (12 files of {size} bytes then, 13 of "
        f"{size + 5} now); give the new contents a new name in config/site.yaml"
    )


def test_a_folder_with_too_few_images_is_refused_before_a_run(pets: Path) -> None:
    folder_scale_of(pets, width=2)
    with pytest.raises(UserError) as caught:
        preflight.check("demo", "folder-pets")
    assert str(caught.value) == (
        f"image folder {pets}: 12 images are too few: statistics of 16 features need 160; give more, or narrow "
        "evaluation.features of the scale"
    )


def test_a_folder_that_is_not_there_and_the_papers_own_are_left_to_the_stages_that_read_them(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_pets(pets / "nowhere")
    preflight.check("demo", "folder-pets")
    monkeypatch.setattr(folder, "fingerprint", lambda path: pytest.fail("listing 1.28 million files takes minutes"))
    Path("config/site.yaml").write_text(yaml.safe_dump({"data": {"imagenet": str(pets)}}))
    preflight.check("demo", "imagenet256")


# States


@pytest.fixture
def state(project: Path) -> StateStage:
    """A training of eight steps, ready to be started by its key."""
    tiny.make_codes()
    state = tiny.stage((Phase(epochs=2),))
    frozen(state)
    return state


def no_room(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, files with this in their name find no room on the disk."""
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: no_room() if name in os.readlink(f"/proc/self/fd/{file}") else fsync(file)
    )


@pytest.mark.parametrize(
    ("file", "kept"),
    [
        ("progress-000000006.safetensors", "progress-000000003.json"),
        ("progress-000000006.json", "progress-000000003.json"),
        ("resume.safetensors", "progress-000000006.json"),
        ("weights.safetensors", "resume.json"),
    ],
)
def test_a_disk_that_is_full_while_saving_leaves_the_last_resume_point_and_room_lets_it_go_on(
    file: str, kept: str, state: StateStage, capsys: Capture
) -> None:
    folder = paths.folder("state", state.key)
    with pytest.MonkeyPatch.context() as patch:
        full_disk_for(file, patch)
        sentence = refused(f"train {state.key} --save-every-steps 3", capsys, keeps=False)
    assert sentence == f"cannot write {folder / file}: the disk is full; what was there before is unchanged"
    assert not is_published(paths.manifest("state", state.key))
    check_payload(folder, read_json(folder / kept)["payloads"]["state"])
    assert not list(folder.glob(".*.tmp")), "no half-written file takes room that is missing already"
    assert main(["train", state.key]) == 0
    interrupted = tiny.tensors(state)
    folder.rename(folder.with_name("interrupted"))
    assert tiny.same_bits(tiny.run(state), interrupted)


def test_a_disk_that_is_full_for_a_line_of_the_journal_is_told_as_such(
    state: StateStage, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(Journal, "write", no_room)
    assert refused(f"train {state.key}", capsys) == (
        "the disk is full; mend that, and the same command goes on from what is saved"
    )
    monkeypatch.undo()


def test_a_disk_that_is_full_while_codes_are_extracted_is_told_and_the_same_command_goes_on(
    pets: Path, capsys: Capture
) -> None:
    stage = codes_of_pets()
    assert main(["tokenizer", stage.tokenizer_stage().key]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_module.os, "fsync", no_room)
        assert refused(f"codes {stage.key}", capsys, keeps=False).startswith("the disk is full; ")
    assert not is_published(paths.manifest("codes", stage.key))
    assert main(["codes", stage.key]) == 0


def test_a_log_without_room_does_not_stop_the_work(state: StateStage) -> None:
    assert main(["train", state.key, "--log", "/dev/full"]) == 0
    assert is_published(paths.manifest("state", state.key))


@pytest.fixture
def trained(state: StateStage) -> StateStage:
    assert main(["train", state.key]) == 0
    return state


def samples_of(state: StateStage) -> str:
    return frozen(SamplesStage(state=state, sampling=Sampling(num_samples=4, batch_size=4, dtype="float32")))


@pytest.mark.parametrize("command", ["sample {samples}", "sample --state {state} --classes 1 --grid x.png"])
def test_sampling_refuses_altered_weights_by_name(command: str, trained: StateStage, capsys: Capture) -> None:
    samples = samples_of(trained)
    weights = paths.folder("state", trained.key) / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert refused(command.format(samples=samples, state=trained.key), capsys) == (
        f"{weights} was altered: its SHA-256 is not the one in its manifest; delete {weights.parent} and run the same "
        "command again"
    )
    assert not Path("x.png").exists()


def test_truncated_weights_count_as_not_made(trained: StateStage, capsys: Capture) -> None:
    samples, manifest = samples_of(trained), paths.manifest("state", trained.key)
    weights = manifest.with_name("weights.safetensors")
    whole = truncate(weights)
    assert refused(f"sample {samples}", capsys) == (
        f"{weights} is truncated: {len(whole) // 2} bytes, its manifest says {len(whole)}; delete {weights.parent} and "
        "run the same command again"
    )
    assert main(["train", trained.key]) == 0, "what is damaged is made again"
    assert manifest.with_name("weights.safetensors").read_bytes() == whole


def test_a_damaged_trunk_is_named_and_its_child_is_trained_without_it_to_the_same_bits(
    state: StateStage, capsys: Capture
) -> None:
    child = tiny.stage((Phase(epochs=3),))
    wanted = tiny.run(child)
    paths.folder("state", child.key).rename(paths.folder("state", "alone"))
    assert main(["train", state.key]) == 0
    frozen(child)
    recipe = paths.frozen("state", child.key)
    write_json(recipe, read_json(recipe) | {"parent_epoch": 2})
    trunk = paths.resume(state.key).with_suffix(".safetensors")
    content = bytearray(trunk.read_bytes())
    content[-1] ^= 1
    trunk.write_bytes(content)
    assert main(["train", child.key]) == 0
    assert f"{trunk} was altered" in capsys.readouterr().err
    assert tiny.same_bits(tiny.tensors(child), wanted)


def test_codes_of_another_tokenizer_are_refused(state: StateStage, capsys: Capture) -> None:
    stage = state.codes_stage()
    for manifest in (paths.manifest("codes", stage.key), sealed(paths.manifest("codes", stage.key))):
        write_json(manifest, read_json(manifest) | {"tokenizer": "another"})
    folder = paths.folder("codes", stage.key)
    assert refused(f"train {state.key}", capsys) == (
        f"the codes in {folder} were made by tokenizer another, not by {stage.tokenizer_stage().key}; delete {folder} "
        "and run the same command again"
    )


def test_a_second_trainer_of_a_state_is_refused_with_the_first_ones_name(state: StateStage, capsys: Capture) -> None:
    folder = paths.folder("state", state.key)
    with Lock(folder / "lock"):
        sentence = refused(f"train {state.key}", capsys)
        assert f"process {os.getpid()} " in (folder / "lock").read_text(), "the first one keeps its lock"
    assert sentence.startswith(f"{folder} is being written by process {os.getpid()} on ")
    assert sentence.endswith("wait for it or stop it, then run the same command again")
    assert main(["train", state.key]) == 0


# Folders that take no files


def test_a_file_in_place_of_the_results_folder_is_told(pets: Path, capsys: Capture) -> None:
    stage = plan.register(CodesStage(data=PETS, tokenizer=TRAINED).tokenizer_stage(), "digits").stage
    paths.RESULTS.write_text("mine")
    sentence = f"cannot write {paths.frozen('tokenizer', stage.key)}: a file is where its folder should be; "
    assert refused(f"tokenizer {stage.key}", capsys).startswith(sentence)
    assert main(["plan", "demo", "--scale", "digits"]) == 0
    assert refused(f"tokenizer {stage.key} --log results/a.log", capsys).startswith(
        "cannot write the log results/a.log: "
    )
    assert paths.RESULTS.read_text() == "mine"


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the file system refuse every write with an error number. (The administrator may write everywhere.)"""

    def protect(number: int) -> None:
        opened = Path.open

        def refusing(self: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            if set(mode) & set("wax+"):
                raise OSError(number, os.strerror(number), str(self))
            return opened(self, mode, *arguments, **keywords)

        monkeypatch.setattr(Path, "open", refusing)

    return protect


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("command", ["train {state}", "sample {samples}", "gc", "tokenizer {fresh}"])
def test_a_results_folder_that_cannot_be_written_is_told_by_every_command(
    command: str, number: int, trained: StateStage, read_only: Callable[[int], None], capsys: Capture
) -> None:
    samples = samples_of(trained)
    fresh = plan.register(CodesStage(data=tiny.DATA, tokenizer=TRAINED).tokenizer_stage(), "digits").stage.key
    read_only(number)
    sentence = refused(command.format(state=trained.key, samples=samples, fresh=fresh), capsys)
    assert re.match(
        rf"cannot write results/store/\S+: ({os.strerror(number)}|the file system is|this folder is)", sentence
    )


@pytest.mark.parametrize(
    "command",
    [
        *("jobs", "cancel --all", "gc", "schema", "page", "costs", "show 0cc8", "diff 0cc8 5f1e"),
        *("plan table2", "plan all", "plan results/demo/all", "table table2", "summary demo --scale demo"),
    ],
)
def test_another_folder_is_no_project_where_all_is_well(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(command, capsys) == "there is no experiments/ here: run this where the project lies"
    assert not list(tmp_path.iterdir())


def test_a_grid_without_a_figure_is_told_so(project: Path, capsys: Capture) -> None:
    assert refused("figure table2 --scale digits", capsys) == (
        "experiments/table2.yaml has no `figure`, so table2 is a table only"
    )


def test_a_read_only_folder_keeps_no_one_from_looking(trained: StateStage, read_only: Callable[[int], None]) -> None:
    read_only(errno.EROFS)
    assert main(["plan", "demo", "--scale", "digits"]) == 0
    assert main(["gc", "--dry-run"]) == 0


def test_a_damaged_manifest_or_recipe_is_named(trained: StateStage, capsys: Capture) -> None:
    recipe = paths.frozen("state", trained.key)
    whole = recipe.read_text()
    plan._planned.clear()
    recipe.write_text(whole[:30])
    mend = "is damaged (no valid JSON); delete it and run the same command again"
    assert refused(f"train {trained.key}", capsys) == f"{recipe} {mend}"
    changed = json.loads(whole)
    changed["recipe"]["training"]["seed"] = 5
    recipe.write_text(json.dumps(changed))
    assert refused(f"train {trained.key}", capsys).startswith(f"{recipe} was made by another revision of mirai: ")


def test_a_finished_state_is_trained_again_only_when_its_collected_optimiser_is_asked_for(
    trained: StateStage, capsys: Capture
) -> None:
    resume = paths.resume(trained.key)
    whole = resume.with_suffix(".safetensors").read_bytes()
    assert main(["gc"]) == 0
    assert main(["train", trained.key]) == 0
    assert "is there already" in capsys.readouterr().out
    assert not resume.exists()
    assert main(["train", trained.key, "--restore"]) == 0
    assert resume.with_suffix(".safetensors").read_bytes() == whole


def test_an_optimiser_that_a_begun_state_goes_on_from_is_not_collected(trained: StateStage) -> None:
    child = trained.model_copy(update={"timeline": (*trained.timeline, trained.timeline[-1])})
    frozen = plan.freeze(plan.Planned(child, "digits"))
    frozen.write_text(json.dumps(json.loads(frozen.read_text()) | {"parent_epoch": trained.epoch}))
    plan._planned.clear()
    assert main(["gc"]) == 0
    assert paths.resume(trained.key).exists()
    shutil.rmtree(frozen.parent)
    assert main(["gc"]) == 0
    assert not paths.resume(trained.key).exists()


def test_a_finished_stage_is_published_again_although_what_it_was_made_from_is_gone(
    trained: StateStage, capsys: Capture
) -> None:
    samples = samples_of(trained)
    assert main(["sample", samples]) == 0
    paths.manifest("samples", samples).unlink()  # as Snakemake does before a rerun
    shutil.rmtree(paths.folder("state", trained.key))
    assert main(["sample", samples]) == 0
    assert paths.manifest("samples", samples).exists()
