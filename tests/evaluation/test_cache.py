from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mirai.evaluation.cache import cached_features
from mirai.evaluation.features import Features, extract
from mirai.evaluation.sources import Images, of_npz
from mirai.experiments import paths
from tests.evaluation.projection import SIDE, RandomProjection

PIXELS = np.random.default_rng(0).integers(0, 256, (9, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    """Images in a file of an empty project, the working directory."""
    monkeypatch.chdir(tmp_path)
    np.savez("images.npz", PIXELS)
    return of_npz(Path("images.npz"))


def features(network: RandomProjection, images: Images) -> Features:
    return cached_features(network, images, progress=False)


def cache_files() -> list[Path]:
    return sorted(paths.features_cache("").parent.glob("*"))


def equal(a: Features, b: Features) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("pooled", "spatial", "logits"))


def test_features_of_the_same_images_and_weights_are_computed_once(images: Images) -> None:
    first, second = RandomProjection(), RandomProjection()
    computed, read = features(first, images), features(second, images)
    assert (first.images_seen, second.images_seen) == (9, 0)
    assert equal(computed, read)
    assert equal(computed, extract(RandomProjection(), PIXELS, progress=False))


def other_pixels(images: Images) -> Images:
    np.savez("other.npz", PIXELS[::-1])
    return of_npz(Path("other.npz"))


@pytest.mark.parametrize("change", [other_pixels, lambda images: images.first(8)], ids=["pixels", "count"])
def test_other_images_have_features_of_their_own(images: Images, change: Callable[[Images], Images]) -> None:
    features(RandomProjection(), images)
    network, other = RandomProjection(), change(images)
    assert equal(features(network, other), extract(RandomProjection(), other, progress=False))
    assert network.images_seen == len(other)


def test_other_weights_have_features_of_their_own(images: Images) -> None:
    features(RandomProjection(), images)
    assert equal(features(RandomProjection(1), images), extract(RandomProjection(1), PIXELS, progress=False))


def test_another_version_of_the_extraction_does_not_trust_the_old_one(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    features(RandomProjection(), images)
    monkeypatch.setattr("mirai.evaluation.cache.EXTRACTION", 10**6)
    network = RandomProjection()
    features(network, images)
    assert network.images_seen == 9


def test_a_cache_file_with_any_byte_altered_is_never_believed(images: Images) -> None:
    right = features(RandomProjection(), images)
    (file,) = cache_files()
    whole = file.read_bytes()
    computed = 0
    for place in range(0, len(whole), 13):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        network = RandomProjection()
        assert equal(features(network, images), right), f"byte {place}"
        computed += network.images_seen > 0
    assert computed > len(whole) / 13 / 2  # the rest are fields of the container that mean nothing: dates, padding


def test_a_cache_file_whose_header_claims_narrower_features_is_never_believed(images: Images) -> None:
    np.savez("many.npz", np.tile(PIXELS, (100, 1, 1, 1)))  # so many that numpy does not read up to the checksum
    many = of_npz(Path("many.npz"))
    right = features(RandomProjection(), many)
    (file,) = cache_files()
    whole = file.read_bytes()
    assert b"(900, 4)" in whole
    file.write_bytes(whole.replace(b"(900, 4)", b"(900, 1)"))
    assert equal(features(RandomProjection(), many), right)


@pytest.mark.parametrize("size", [0, 1, 100, 700])
def test_a_truncated_cache_file_is_computed_anew_and_mended(images: Images, size: int) -> None:
    right = features(RandomProjection(), images)
    (file,) = cache_files()
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    network = RandomProjection()
    assert equal(features(network, images), right)
    assert network.images_seen == 9
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_told_and_does_not_stop_the_measurement(
    images: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("results").write_text("a file where a folder should be")
    assert len(features(RandomProjection(), images)) == 9
    assert "the features of images.npz are not kept: cannot write" in capsys.readouterr().err
