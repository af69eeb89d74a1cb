"""Images of one's own, odd files among them, through the whole DAG to a table; and what is refused."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_sample_images

from mirai.data.crops import centre_square
from mirai.data.scenes import CLASS_NAMES
from mirai.states import sealed
from tests.workflow.project import Project

pytestmark = pytest.mark.workflow

TABLE = "results/folder-photos/demo.csv"
PER_CLASS = 70
SQUARE = 70  # int(64 * 1.1)
# class -> number of sample photograph, rows and columns it is cut from. `skyline` is a class of scenes as well.
PLACES = {"flower": (1, (60, 380), (140, 500)), "roofs": (0, (220, 427), (0, 640)), "skyline": (0, (0, 190), (0, 640))}
ODD = {"flower/alpha.png": "RGBA", "roofs/grey.jpg": "L", "roofs/print.jpg": "CMYK"}
TRUNCATED = "skyline/truncated.jpg"
FILES = len(PLACES) * PER_CLASS + len(ODD) + 1


def cut_photographs(folder: Path) -> None:
    """Class folders of JPEGs of 72 to 96 pixels, always the same ones."""
    photographs = load_sample_images().images
    rng = np.random.default_rng(0)
    for name, (number, rows, columns) in PLACES.items():
        (folder / name).mkdir(parents=True)
        for index in range(PER_CLASS):
            height, width = rng.integers(72, 97, 2)
            top, left = rng.integers(rows[0], rows[1] - height), rng.integers(columns[0], columns[1] - width)
            crop = Image.fromarray(photographs[number][top : top + height, left : left + width])
            crop.save(folder / name / f"{index:03d}.jpg", quality=90)
    for file, mode in ODD.items():
        with Image.open(folder / file.split("/")[0] / "000.jpg") as image:
            odd = image.convert(mode)
        if mode == "RGBA":
            odd.putalpha(Image.linear_gradient("L").resize(odd.size))
        odd.save(folder / file)
    whole = (folder / "skyline/000.jpg").read_bytes()
    (folder / TRUNCATED).write_bytes(whole[: len(whole) // 2])
    (folder / "skyline/notes.txt").write_text("no image")


def shrink(scale_file: Path) -> None:
    """The folder scale at a size whose stages take seconds."""
    scale = yaml.safe_load(scale_file.read_text())
    scale["tokenizer"] |= {"channels": 8, "z_channels": 32, "codebook_size": 64}
    scale["tokenizer"]["training"] |= {"steps": 40, "batch_size": 8, "restart_every": 10}
    scale["sizes"]["B"]["model"] |= {"num_heads": 2, "width": 32}
    scale["encoders"]["base"]["training"] |= {"width": 48, "num_layers": 2, "num_heads": 2, "steps": 30}
    scale["head"]["width"] = 64
    scale["training"] |= {"batch_size": 8, "epoch_images": 8, "ema_decay": 0.5}
    scale["ladder"] = [80]
    scale["sampling"] |= {"num_samples": 160, "batch_size": 160}
    scale["evaluation"] |= {"is_split_size": 160, "halves": 2}
    scale["evaluation"]["features"] |= {"width": 16, "spatial_channels": 1, "steps": 60}
    scale_file.write_text(yaml.safe_dump(scale, sort_keys=False))


@pytest.fixture(scope="module")
def project(empty: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A working copy in which the table has been made. Tests leave it as they find it."""
    project = empty.copy(tmp_path_factory.mktemp("photos") / "project")
    shrink(project.root / "experiments/scales/folder.yaml")
    cut_photographs(project.root / "photos")
    project.write_yaml("config/site.yaml", {"data": {"photos": "photos"}})
    project.make(TABLE)
    return project


def refused(project: Project, target: str) -> str:
    """The sentence with which a target is refused, nothing in the store being touched."""
    before = project.files()
    sentence = project.refused("snakemake", target, "--cores", "2")
    assert project.files() == before
    return sentence


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    """A file with other content, or a new one, for a while."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        yield
    finally:
        path.unlink()
        if before is not None:
            path.write_bytes(before)


def codes(project: Project) -> tuple[Path, dict[str, Any]]:
    """Folder and manifest of the code store."""
    (folder,) = project.stored("codes").values()
    return folder, json.loads((folder / "codes.json").read_text())


def test_the_table_has_finite_numbers_for_every_arm(project: Project) -> None:
    rows = project.table(TABLE)
    assert [row["model"] for row in rows] == ["LlamaGen-B", "+ Mirai-I", "+ Mirai-E"]
    for row in rows:
        for metric in ("fid", "sfid", "inception_score", "precision", "recall"):
            assert math.isfinite(float(row[metric])), metric
            assert math.isfinite(float(row[f"{metric}_sd_over_halves"])), metric
        assert row["samples"] == "160"
    assert len({row["fid"] for row in rows}) == 3, "three arms, three models"
    assert "folder-photos" in (project.root / TABLE).with_suffix(".md").read_text()


def test_coherence_is_measured_of_scenes_and_not_of_a_class_with_the_name_of_one(project: Project) -> None:
    assert "skyline" in CLASS_NAMES
    assert not [column for column in project.table(TABLE)[0] if "error" in column]


def test_the_manifest_counts_images_and_names_classes_and_what_was_skipped(project: Project) -> None:
    manifest = codes(project)[1]
    assert manifest["class_names"] == sorted(PLACES)
    assert manifest["skipped"] == [TRUNCATED]
    assert (manifest["source_images"], manifest["images"], manifest["enlarged"]) == (FILES, FILES - 1, 0)
    assert manifest["converted"] == {"L": 1, "RGBA": 1, "CMYK": 1}
    assert manifest["source"]["files"] == FILES


@pytest.mark.parametrize("kind", ["tokenizer", "codes", "encoder", "features", "reference"])
def test_every_stage_that_reads_the_images_names_the_truncated_one_in_its_log(kind: str, project: Project) -> None:
    (log,) = (project.root / "results/logs" / kind).glob("*.log")
    assert f"1 unreadable images skipped: {TRUNCATED}\n" in log.read_text()


def test_grey_transparent_and_cmyk_images_are_converted_to_rgb(project: Project) -> None:
    folder, manifest = codes(project)
    photos = project.root / "photos"
    files = sorted(path.relative_to(photos).as_posix() for path in photos.glob("*/*.[jp][pn]g"))
    squares = np.fromfile(folder / "squares.bin", np.uint8).reshape(manifest["source_images"], SQUARE, SQUARE, 3)
    for file, mode in ODD.items():
        with Image.open(photos / file) as image:
            assert image.mode == mode
            wanted = centre_square(image.convert("RGB"), SQUARE)
        np.testing.assert_array_equal(squares[files.index(file)], wanted)


def test_a_changed_folder_under_the_old_name_is_refused_although_everything_is_done(project: Project) -> None:
    photos = project.root / "photos"
    one = photos / "flower/001.jpg"
    with changed(photos / "flower/new.jpg", one.read_bytes()):
        assert re.fullmatch(
            rf"image folder photos has changed since results/store/\w+/\w+/\w+\.json was made of it \({FILES} files of "
            rf"\d+ bytes then, {FILES + 1} of \d+ now\); give the new contents a new name in config/site\.yaml",
            refused(project, TABLE),
        )
    with changed(one, one.read_bytes() + b"\0"):
        assert refused(project, TABLE).startswith("image folder photos has changed")
        assert refused(project, "results/folder-photos/demo_samples.png").startswith("image folder photos has changed")
    assert project.plan(TABLE) == {}, "the old contents are welcome, and nothing is made again"


def test_the_images_may_go_once_everything_is_made_of_them_and_are_asked_for_when_needed(project: Project) -> None:
    made = [path / f"{kind}.json" for kind in ("reference", "metrics") for path in project.stored(kind).values()]
    made += [sealed(manifest) for manifest in made]
    made.append(project.root / TABLE)
    (project.root / "photos").rename(project.root / "elsewhere")
    try:
        assert project.plan(TABLE) == {}
        hidden = [path.rename(path.with_name(f"{path.name}.hidden")) for path in made]
        sentence = refused(project, TABLE)
    finally:
        for path in hidden:
            path.rename(path.with_name(path.name.removesuffix(".hidden")))
        (project.root / "elsewhere").rename(project.root / "photos")
    assert sentence.startswith(
        "config/site.yaml must say where these are, before any job starts: data.photos (photos does"
    )


def test_a_folder_that_the_site_does_not_name_is_refused_with_what_to_write(project: Project) -> None:
    assert refused(project, "results/folder-cats/demo.csv") == (
        "config/site.yaml must say where these are, before any job starts: data.cats (not given); "
        "config/site.example.yaml shows how"
    )


def test_a_folder_with_too_few_images_is_refused_before_anything_is_trained(project: Project) -> None:
    shutil.copytree(project.root / "photos/flower", project.root / "few/flower")
    project.write_yaml("config/site.yaml", {"data": {"photos": "photos", "few": "few"}})
    assert refused(project, "results/folder-few/demo.csv") == (
        f"image folder few: {PER_CLASS + 1} images are too few: statistics of 16 features need 160; give more, or narrow "
        "evaluation.features of the scale"
    )
