"""Where results lie, and the one file that says where this machine keeps data and weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.site import Site, load_site
from mirai.experiments.stages import STAGES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site_file(project: Path) -> Path:
    path = project / "config/site.yaml"
    path.parent.mkdir()
    return path


def test_the_papers_scale_owns_results_and_every_other_one_a_folder() -> None:
    assert paths.table("imagenet256", "table2") == Path("results/table2.csv")
    assert paths.table("demo", "table2", ".md") == Path("results/demo/table2.md")
    assert paths.figure("folder-cats", "demo", "samples") == Path("results/folder-cats/demo_samples.png")


@pytest.mark.parametrize("scale", ["imagenet256", "demo", "folder-my-cats"])
def test_a_scale_is_found_again_from_its_prefix(scale: str) -> None:
    assert paths.scale_of(paths.prefix(scale)) == scale


def test_every_kind_of_stage_has_a_manifest_in_a_folder_of_its_own() -> None:
    assert set(paths.MANIFESTS) == set(STAGES)
    manifests = [paths.manifest(kind, "0" * 16) for kind in STAGES]
    assert len({path.parent for path in manifests}) == len(STAGES)
    assert all(path.parts[:2] == ("results", "store") for path in manifests)


def test_all_paths_are_relative_to_the_working_directory() -> None:
    found = [paths.EXPERIMENTS, paths.SCALES, paths.SITE, paths.RESULTS, paths.STORE, paths.benchmark("state", "k")]
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


def test_weights_that_the_site_does_not_know_are_asked_for(project: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_site().weights_file("inception")
    assert str(caught.value) == (
        "config/site.yaml: key 'weights.inception' is missing; write there the file's path on this machine"
    )


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
        "config/site.yaml: unknown key 'wieghts'; did you mean 'weights'? allowed: data, ranks, save_minutes, weights"
    )


def test_the_committed_example_is_a_valid_site(site_file: Path) -> None:
    site_file.write_text((ROOT / "config/site.example.yaml").read_text())
    assert load_site().data
