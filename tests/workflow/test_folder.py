"""Images of one's own, odd files among them, through the whole DAG to a table; and what is refused."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
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

pytestmark = pytest.mark.workflow

ROOT = Path(__file__).parents[2]
TABLE = "results/folder-photos/demo.csv"
PER_CLASS = 70
SQUARE = 70  # int(64 * 1.1)
# class -> number of sample photograph, rows and columns it is cut from. `skyline` is a class of scenes as well.
PLACES = {"flower": (1, (60, 380), (140, 500)), "roofs": (0, (220, 427), (0, 640)), "skyline": (0, (0, 190), (0, 640))}
ODD = {"flower/alpha.png": "RGBA", "roofs/grey.jpg": "L", "roofs/print.jpg": "CMYK"}
TRUNCATED = "skyline/truncated.jpg"


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
    scale["encoders"]["supervised"]["training"] |= {"width": 48, "num_layers": 2, "num_heads": 2, "steps": 30}
    scale["head"]["width"] = 64
    scale["training"] |= {"batch_size": 8, "epoch_images": 8, "ema_decay": 0.5}
    scale["ladder"] = [80]
    scale["sampling"] |= {"num_samples": 160, "batch_size": 160}
    scale["evaluation"] |= {"is_split_size": 160, "halves": 2}
    scale["evaluation"]["features"] |= {"width": 16, "spatial_channels": 1, "steps": 60}
    scale_file.write_text(yaml.safe_dump(scale, sort_keys=False))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working copy in which the table has been made."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("workflow", "experiments", "slurm_profiles"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    (folder / "profiles").symlink_to("slurm_profiles")
    shrink(folder / "experiments/scales/folder.yaml")
    cut_photographs(folder / "photos")
    write_site(folder, photos=folder / "photos")
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def write_site(folder: Path, **data: Path) -> None:
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config/site.yaml").write_text(yaml.safe_dump({"data": {name: str(at) for name, at in data.items()}}))


def snakemake(folder: Path, target: str = TABLE) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = ["snakemake", target, "--cores", "2"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def refused(folder: Path, target: str = TABLE) -> str:
    """The one sentence with which a target is refused, nothing in results/ being touched."""
    before = contents(folder)
    done = snakemake(folder, target)
    assert done.returncode == 2, done.stdout + done.stderr
    assert contents(folder) == before
    assert "Traceback" not in done.stderr
    [sentence] = [line for line in done.stderr.splitlines() if line.startswith("mirai: ")]
    return sentence.removeprefix("mirai: ")


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file of results/."""
    files = [path for path in (folder / "results").rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    """A file with other content, or a new one, for a while."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    yield
    if before is None:
        path.unlink()
    else:
        path.write_bytes(before)


def codes(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and manifest of the code store."""
    [manifest] = (folder / "results/store/codes").glob("*/codes.json")
    return manifest.parent, json.loads(manifest.read_text())


def test_the_table_has_finite_numbers_for_every_arm(project: Path) -> None:
    with (project / TABLE).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["LlamaGen-B", "+ Mirai-I", "+ Mirai-E"]
    for row in rows:
        for metric in ("fid", "sfid", "inception_score", "precision", "recall"):
            assert math.isfinite(float(row[metric])), metric
            assert math.isfinite(float(row[f"{metric}_sd_over_halves"])), metric
        assert row["samples"] == "160"
    assert len({row["fid"] for row in rows}) == 3, "three arms, three models"
    assert not [name for name in rows[0] if "error" in name], "coherence is known of scenes, not of a class of that name"
    assert "folder-photos" in (project / TABLE).with_suffix(".md").read_text()


def test_the_manifest_counts_images_and_names_classes_and_what_was_skipped(project: Path) -> None:
    manifest = codes(project)[1]
    files = 3 * PER_CLASS + len(ODD) + 1
    assert manifest["class_names"] == ["flower", "roofs", "skyline"]
    assert manifest["skipped"] == [TRUNCATED]
    assert (manifest["source_images"], manifest["images"]) == (files, files - 1)
    assert manifest["source"]["files"] == files
    assert manifest["enlarged"] == 0


@pytest.mark.parametrize("kind", ["tokenizer", "codes", "encoder", "features", "reference"])
def test_every_stage_that_reads_the_images_names_the_truncated_one_in_its_log(kind: str, project: Path) -> None:
    [log] = (project / "results/logs" / kind).glob("*.log")
    assert re.search(rf"1 unreadable images? skipped: {TRUNCATED}", log.read_text())


def test_grey_transparent_and_cmyk_images_are_converted_to_rgb(project: Path) -> None:
    folder, manifest = codes(project)
    files = sorted(path.relative_to(project / "photos").as_posix() for path in (project / "photos").rglob("*.*"))
    read = [file for file in files if file.endswith((".jpg", ".png")) and file != TRUNCATED]
    squares = np.fromfile(folder / "squares.bin", np.uint8).reshape(manifest["images"], SQUARE, SQUARE, 3)
    for file, mode in ODD.items():
        with Image.open(project / "photos" / file) as image:
            assert image.mode == mode
            wanted = centre_square(image.convert("RGB"), SQUARE)
        np.testing.assert_array_equal(squares[read.index(file)], wanted)


def test_a_second_call_finds_everything_done(project: Path) -> None:
    before = contents(project)
    done = snakemake(project)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr
    assert contents(project) == before


def test_a_changed_folder_under_the_old_name_is_refused_although_everything_is_done(project: Path) -> None:
    photos, files = project / "photos", 3 * PER_CLASS + len(ODD) + 1
    with changed(photos / "flower/new.jpg", (photos / "flower/001.jpg").read_bytes()):
        sentence = refused(project)
        assert re.fullmatch(
            rf"image folder {photos} has changed since .*\.json was made of it \({files} files of \d+ bytes then, "
            rf"{files + 1} of \d+ now\); give the new contents a new name in config/site\.yaml",
            sentence,
        )
    with changed(photos / "flower/001.jpg", (photos / "flower/001.jpg").read_bytes() + b"\0"):
        assert refused(project).startswith(f"image folder {photos} has changed")
        assert refused(project, "results/folder-photos/demo_samples.png").startswith("image folder")
    assert snakemake(project).returncode == 0, "the old contents are welcome again"


def test_the_images_may_go_once_everything_is_made_of_them(project: Path) -> None:
    (project / "photos").rename(project / "elsewhere")
    try:
        assert snakemake(project).returncode == 0
        [manifest] = (project / "results/store/reference").glob("*/reference.json")
        manifest.rename(manifest.with_suffix(".gone"))
        sentence = refused(project)
        manifest.with_suffix(".gone").rename(manifest)
    finally:
        (project / "elsewhere").rename(project / "photos")
    assert sentence == f"config/site.yaml: 'data.photos' is {project / 'photos'}, which does not exist"


def test_a_folder_that_the_site_does_not_name_is_refused_with_what_to_write(project: Path) -> None:
    assert refused(project, "results/folder-cats/demo.csv") == (
        "config/site.yaml: key 'data.cats' is missing; write there a folder with one sub-folder of images per class"
    )


def test_a_folder_with_too_few_images_is_refused_before_anything_is_trained(project: Path) -> None:
    few = project / "few"
    shutil.copytree(project / "photos/flower", few / "flower")
    write_site(project, photos=project / "photos", few=few)
    try:
        sentence = refused(project, "results/folder-few/demo.csv")
    finally:
        write_site(project, photos=project / "photos")
    assert sentence.startswith(f"image folder {few}: {PER_CLASS + 1} images are too few: statistics of 16 features need 160;")
