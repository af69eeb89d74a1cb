"""Where results lie, and the one file that says where this machine keeps data and weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.places import refuse_missing_places
from mirai.experiments.plan import plan_grid, row_metrics
from mirai.experiments.public_files import public_files
from mirai.experiments.site import Site, load_site
from mirai.experiments.stages import STAGES, Stage

ROOT = Path(__file__).parents[2]
DINOV2 = "vit_base_patch14_dinov2.lvd142m"


@pytest.fixture
def site_file(project: Path) -> Path:
    path = project / "config/site.yaml"
    path.parent.mkdir(exist_ok=True)
    return path


@pytest.fixture
def listed(project: Path) -> None:
    """The committed list of what can be downloaded."""
    (project / "config").mkdir(exist_ok=True)
    shutil.copy(ROOT / "config/downloads.yaml", project / "config")


@pytest.fixture
def paper(project: Path, write_grid: Callable[..., str]) -> list[Stage]:
    """All stages behind one run of Mirai-I at the paper's scale."""

    def needed(stage: Stage) -> Iterator[Stage]:
        yield stage
        for other in stage.needs():
            yield from needed(other)

    rows = plan_grid(write_grid({"arm": "mirai-i", "epochs": 10}), "imagenet256").rows
    return [stage for row in rows for metrics in row_metrics(row) for stage in needed(metrics)]


def test_the_papers_scale_owns_results_and_every_other_one_a_folder() -> None:
    assert paths.product("imagenet256", "table2") == Path("results/table2.csv")
    assert paths.product("demo", "table2", ".md") == Path("results/demo/table2.md")
    assert paths.product("folder-cats", "demo_samples", ".png") == Path("results/folder-cats/demo_samples.png")


@pytest.mark.parametrize("scale", ["imagenet256", "demo", "folder-my-cats"])
def test_a_scale_is_found_again_from_its_prefix(scale: str) -> None:
    assert paths.scale_of(paths.prefix(scale)) == scale


def test_every_kind_of_stage_has_a_manifest_in_a_folder_of_its_own() -> None:
    assert set(paths.MANIFESTS) == set(STAGES)
    manifests = [paths.manifest(kind, "0" * 16) for kind in STAGES]
    assert len({path.parent for path in manifests}) == len(STAGES)
    assert all(path.parts[:2] == ("results", "store") for path in manifests)


def test_all_paths_are_relative_to_the_working_directory() -> None:
    found = [
        paths.EXPERIMENTS,
        paths.SCALES,
        paths.SITE,
        paths.DOWNLOADS,
        paths.WEIGHTS,
        paths.RESULTS,
        paths.STORE,
        paths.benchmark("state", "k"),
    ]
    assert not any(path.is_absolute() for path in found)


def test_without_a_site_file_there_are_defaults(project: Path) -> None:
    assert load_site() == Site()
    assert load_site().ranks == 1


def test_data_that_the_site_does_not_know_are_asked_for(site_file: Path) -> None:
    site_file.write_text("data: {}\n")
    with pytest.raises(UserError) as caught:
        load_site().image_folder("cats")
    assert str(caught.value) == (
        "config/site.yaml: key 'data.cats' is missing; write there a folder with one sub-folder of images per class"
    )


def test_weights_that_neither_the_site_nor_the_list_knows_are_asked_for(listed: None) -> None:
    with pytest.raises(UserError) as caught:
        load_site().weights_file("my_tokenizer")
    assert str(caught.value) == (
        "config/site.yaml: key 'weights.my_tokenizer' is missing; write there the file's path on this machine"
    )


def test_weights_that_can_be_downloaded_are_said_to_be(listed: None) -> None:
    with pytest.raises(UserError) as caught:
        load_site().weights_file("inception")
    assert str(caught.value) == (
        "weights/weights-inception-2015-12-05-6726825d.pth is missing: `mirai download inception` fetches it (95.6 MB from "
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth), "
        "or name a copy of yours as weights.inception in config/site.yaml"
    )


def test_downloaded_weights_need_no_entry_and_an_entry_wins(listed: None, project: Path, site_file: Path) -> None:
    (project / "weights").mkdir()
    (project / "weights/vq_ds16_c2i.pt").touch()
    assert load_site().weights_file("vq_ds16_c2i") == Path("weights/vq_ds16_c2i.pt")
    (project / "mine.pt").touch()
    site_file.write_text("weights: {vq_ds16_c2i: mine.pt}\n")
    assert load_site().weights_file("vq_ds16_c2i") == Path("mine.pt")
    (project / "mine.pt").unlink()
    with pytest.raises(UserError, match=r"'weights\.vq_ds16_c2i' is mine\.pt, which does not exist"):
        load_site().weights_file("vq_ds16_c2i")


def test_the_hub_stands_for_the_cache_of_timm_and_for_no_file(site_file: Path) -> None:
    site_file.write_text(f"weights: {{{DINOV2}: hub, inception: /there/inception.pth}}\n")
    site = load_site()
    assert [site.from_hub(name) for name in (DINOV2, "inception", "other")] == [True, False, False]
    with pytest.raises(UserError) as caught:
        site.weights_file(DINOV2)
    assert str(caught.value) == (
        f"config/site.yaml: 'weights.{DINOV2}' is hub, and {DINOV2} is read from a file; write its path"
    )


def test_all_that_is_missing_is_told_at_once_with_what_fetches_it(listed: None, paper: list[Stage]) -> None:
    with pytest.raises(UserError) as caught:
        refuse_missing_places(paper, load_site())
    assert str(caught.value) == (
        "config/site.yaml must say where these are, before any job starts: data.imagenet (not given), "
        f"weights.{DINOV2} (not given), weights.VIRTUAL_imagenet256_labeled (not given), weights.inception (not given), "
        f"weights.vq_ds16_c2i (not given); `mirai download {DINOV2} VIRTUAL_imagenet256_labeled inception vq_ds16_c2i` "
        "fetches 2.77 GB to weights/, where no entry is needed; config/site.example.yaml shows how"
    )


def test_what_is_downloaded_given_or_on_the_hub_is_not_missing(
    listed: None, paper: list[Stage], project: Path, site_file: Path
) -> None:
    for name in ("here", "weights/vq_ds16_c2i.pt", "weights/weights-inception-2015-12-05-6726825d.pth"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).touch()
    (project / "pictures").mkdir()
    given = {"VIRTUAL_imagenet256_labeled": "here", DINOV2: "hub"}
    site_file.write_text(yaml.safe_dump({"data": {"imagenet": "pictures"}, "weights": given}))
    refuse_missing_places(paper, load_site())
    site_file.write_text(yaml.safe_dump({"data": {"imagenet": "pictures"}, "weights": {**given, "inception": "hub"}}))
    with pytest.raises(
        UserError, match=r"starts: weights\.inception \(hub is for timm's encoders\); `mirai download inc"
    ):
        refuse_missing_places(paper, load_site())
    for place, why in (("hub", "does not exist"), ("here", "is no folder"), ("~nobody-there/x", "does not exist")):
        site_file.write_text(yaml.safe_dump({"data": {"imagenet": place}, "weights": given}))
        with pytest.raises(UserError, match=rf"starts: data\.imagenet \({place} {why}\); config/site\.example"):
            refuse_missing_places(paper, load_site())


def test_a_place_that_does_not_exist_is_named(site_file: Path) -> None:
    site_file.write_text("data: {cats: /no/such/folder}\n")
    with pytest.raises(UserError) as caught:
        load_site().image_folder("cats")
    assert str(caught.value) == "config/site.yaml: 'data.cats' is /no/such/folder, which does not exist"


def test_places_are_found_also_below_home(site_file: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(project))
    site_file.write_text("data: {cats: ~/experiments}\n")
    assert load_site().image_folder("cats") == project / "experiments"


def test_a_mistake_in_the_site_is_told_like_any_other(site_file: Path) -> None:
    site_file.write_text("wieghts: {}\n")
    with pytest.raises(UserError) as caught:
        load_site()
    assert str(caught.value) == (
        "config/site.yaml line 1: unknown key 'wieghts'; did you mean 'weights'? allowed: data, ranks, save_minutes, slurm, "
        "tensorboard, weights"
    )


def test_the_committed_example_is_a_valid_site_with_names_of_the_list(listed: None, site_file: Path) -> None:
    site_file.write_text((ROOT / "config/site.example.yaml").read_text())
    site = load_site()
    assert site.data
    assert site.weights
    assert set(site.weights) <= set(public_files())
