"""`measure` with a feature network that costs nothing in Inception's place, which has its own tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mirai.cli import main
from mirai.data.crops import centre_square
from mirai.errors import UserError
from mirai.evaluation.features import Features, Inception, extract
from mirai.evaluation.metrics import frechet_distance, inception_score, kernel_distance, precision_recall
from mirai.evaluation.reference import load_adm_reference, save_reference
from mirai.evaluation.statistics import Statistics, feature_statistics
from mirai.experiments import paths, recipe
from mirai.experiments.site import Site
from mirai.experiments.stages import MetricsStage, SamplesStage
from mirai.make import _metrics, _reference
from mirai.measure import measure, summary
from mirai.models.transformer import Transformer
from mirai.sampling.dump import load_samples, sample_codes
from mirai.states import publish, read_json
from mirai.tokenizer.store import decode_images, load_tokenizer, save_tokenizer
from mirai.tokenizer.vqgan import VQGAN
from tests.evaluation.projection import WIDTHS, RandomProjection
from tests.tokenizers import WIDER
from tests.training import tiny

ROOT = Path(__file__).parents[1]
SPLIT = 10


class Stand(RandomProjection):
    """Takes Inception's place: reads no file, and any size of image."""

    sha256 = "of no file"

    def __init__(self, weights: Path) -> None:
        super().__init__()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images[:, :, :4, :4])


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty project with something in the weights' place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mirai.measure.Inception", Stand)
    Path("inception.pth").write_text("not looked at")


def pixels(n: int, seed: int, side: int = 4, brightness: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, brightness, (n, side, side, 3), dtype=np.uint8)


def npz(name: str, images: np.ndarray, **arrays: np.ndarray) -> Path:
    np.savez(name, images, **arrays)
    return Path(name)


def folder(name: str, images: np.ndarray) -> Path:
    Path(name).mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(Path(name, f"{number:04d}.png"))
    return Path(name)


def scored(samples: Path, reference: Path, **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"inception": Path("inception.pth"), "split_size": SPLIT, "progress": False}
    return measure(samples, reference, device="cpu", **(settings | options))


def features(images: np.ndarray) -> Features:
    return extract(Stand(Path()), images, progress=False)


def expected(samples: Features, reference: Features, statistics: list[Statistics] | None = None) -> dict[str, float]:
    own = [feature_statistics(part) for part in (reference.pooled, reference.spatial)]
    pooled, spatial = statistics or own
    values = {
        "fid": frechet_distance(feature_statistics(samples.pooled), pooled),
        "sfid": frechet_distance(feature_statistics(samples.spatial), spatial),
        "inception_score": inception_score(samples.logits, SPLIT),
    }
    for suffix, dtype in (("", "float16"), ("_float32", "float32")):
        precision, recall = precision_recall(reference.pooled, samples.pooled, 3, dtype)  # type: ignore[arg-type]
        values |= {f"precision{suffix}": precision, f"recall{suffix}": recall}
    return values


def list_published() -> None:
    """Give the project the list of published files."""
    Path("config").mkdir()
    shutil.copy(ROOT / "config/downloads.yaml", "config")


SAMPLES, REFERENCE = pixels(35, 1, brightness=200), pixels(25, 0)


def adm(name: str = "adm.npz", **changes: np.ndarray | None) -> Path:
    """A reference in ADM's format, with statistics that are not those of its images."""
    arrays: dict[str, np.ndarray | None] = {
        "arr_0": REFERENCE,
        "mu": np.arange(WIDTHS[0], dtype=np.float32),
        "sigma": 2 * np.eye(WIDTHS[0]),
        "mu_s": np.ones(WIDTHS[1], np.float32),
        "sigma_s": 3 * np.eye(WIDTHS[1]),
        "labels": np.zeros(len(REFERENCE), np.int64),
    }
    np.savez(name, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return Path(name)


def test_every_kind_of_samples_against_every_kind_of_images_gives_the_same_numbers() -> None:
    samples = [npz("samples.npz", SAMPLES), folder("samples", SAMPLES)]
    references = [npz("reference.npz", REFERENCE), folder("reference", REFERENCE)]
    wanted = expected(features(SAMPLES), features(REFERENCE))
    for one in samples:
        for other in references:
            result = scored(one, other)
            assert {name: result[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)
            assert (result["num_samples"], result["num_reference"], result["image_size"]) == (35, 25, [4, 4])
            assert result["statistics"] == "images"
    assert wanted["fid"] > 0.1
    assert 0 < wanted["precision"] < 1
    json.dumps(result, allow_nan=False)


def test_an_adm_reference_gives_its_statistics_and_its_images_the_manifold() -> None:
    statistics = [Statistics(np.arange(4.0), 2 * np.eye(4)), Statistics(np.ones(3), 3 * np.eye(3))]
    result = scored(npz("samples.npz", SAMPLES), adm())
    wanted = expected(features(SAMPLES), features(REFERENCE), statistics)
    assert {name: result[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)
    assert result["statistics"] == "file"


def test_the_first_samples_are_measured_on_request() -> None:
    reference = npz("reference.npz", REFERENCE)
    some = scored(npz("all.npz", SAMPLES), reference, num_samples=20)
    alone = scored(npz("few.npz", SAMPLES[:20]), reference)
    assert some["num_samples"] == 20
    assert [some[name] for name in ("fid", "recall")] == pytest.approx([alone[name] for name in ("fid", "recall")])
    with pytest.raises(UserError, match="the first 36 images are asked for, there are 35"):
        scored(Path("all.npz"), reference, num_samples=36)


def test_kid_is_measured_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirai.measure.KID_SUBSET", 20)
    samples, reference = npz("samples.npz", SAMPLES), npz("reference.npz", REFERENCE)
    assert "kid" not in scored(samples, reference)
    result = scored(samples, reference, kid=True)
    wanted = kernel_distance(features(SAMPLES).pooled, features(REFERENCE).pooled, subset_size=20)
    assert (result["kid"], result["kid_deviation"]) == pytest.approx(wanted)


def test_features_are_computed_once_for_the_same_files(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, reference = npz("samples.npz", SAMPLES), npz("reference.npz", REFERENCE)
    first = scored(samples, reference)

    def never(*_: object, **__: object) -> Features:
        raise AssertionError("the features are there")

    monkeypatch.setattr("mirai.evaluation.cache.extract", never)
    assert scored(samples, reference) == first
    assert scored(samples, npz("elsewhere.npz", REFERENCE)) | {"reference": str(reference)} == first


def test_small_sets_and_other_weights_are_measured_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    scored(npz("samples.npz", SAMPLES), npz("reference.npz", REFERENCE))
    told = capsys.readouterr().err
    assert (
        "35 samples: FID and sFID of a small sample are strongly biased upwards; published numbers are of 50,000"
        in told
    )
    assert "statistics of 25 reference images" in told
    assert "inception.pth is not the published Inception: its numbers compare only with others of the same file" in told
    scored(Path("samples.npz"), adm())
    assert "reference images" not in capsys.readouterr().err


def test_the_summary_has_every_number_with_its_name() -> None:
    result = scored(npz("samples.npz", SAMPLES), adm())
    lines = summary(result | {"kid": 0.0123, "kid_deviation": 0.0004}).splitlines()
    assert [line.split()[0] for line in lines] == ["FID", "sFID", "IS", "precision", "recall", "KID", "35"]
    assert lines[0].split()[1] == f"{result['fid']:.4f}"
    assert lines[4].split()[1] == f"{result['recall']:.4f}"
    assert f"{result['recall_float32']:.4f}" in lines[4]
    assert lines[5] == "KID         0.012300 +- 0.000400"
    assert lines[6] == "35 samples of 4x4 px against adm.npz (its own statistics; 25 images)"


@pytest.mark.parametrize(
    ("lacking", "complaint"),
    [
        (("mu_s", "sigma_s"), r"adm\.npz lacks mu_s, sigma_s: .* \(sFID needs the last two.* fetch a complete one"),
        (("arr_0", "mu_s"), r"adm\.npz lacks arr_0, mu_s: "),
        (("sigma",), r"adm\.npz lacks sigma:"),
    ],
)
def test_an_incomplete_adm_reference_is_refused(lacking: tuple[str, ...], complaint: str) -> None:
    reference = adm(**dict.fromkeys(lacking))
    with pytest.raises(UserError, match=complaint):
        scored(npz("samples.npz", SAMPLES), reference)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mu": np.zeros(7), "sigma": np.eye(7)}, "mu has width 7, the feature network gives 4"),
        ({"mu_s": -np.ones(3)}, "mu_s has negative entries"),
        ({"sigma_s": np.full((3, 3), np.nan)}, "mu_s or sigma_s holds numbers that are not finite"),
        ({"arr_0": REFERENCE / 255}, r"arr_0 of adm\.npz must be uint8 .*, got float64: convert floats"),
    ],
)
def test_an_adm_reference_of_something_else_is_refused(changes: dict[str, np.ndarray], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        scored(npz("samples.npz", SAMPLES), adm(**changes))


@pytest.mark.parametrize(
    ("samples", "options", "complaint"),
    [
        (SAMPLES[:9], {}, r"9 samples do not fill one split of 10 of the inception score; .* --split-size"),
        (SAMPLES, {"num_samples": 9}, "9 samples do not fill one split"),
        (SAMPLES[:3], {"split_size": 1}, "3 images have no 3 neighbours each"),
        (SAMPLES, {"kid": True}, "KID is a mean over subsets of 1000 images, and here are 35"),
        (pixels(35, 1, side=5), {}, r"samples\.npz has images of 5x5 pixels, reference\.npz of 4x4: .* resize"),
        (SAMPLES.astype(np.float32), {}, r"arr_0 of samples\.npz must be uint8"),
        (SAMPLES, {"split_size": 0}, "--split-size 0 must be at least 1"),
        (SAMPLES, {"device": "cuda"}, "--device cuda: torch sees no GPU here"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_network_is_opened(
    samples: np.ndarray, options: dict[str, Any], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr("mirai.measure.Inception")
    settings: dict[str, Any] = {"split_size": SPLIT, "device": "cpu", "inception": Path("inception.pth")}
    with pytest.raises(UserError, match=complaint):
        measure(npz("samples.npz", samples), npz("reference.npz", REFERENCE), **(settings | options))


def test_without_inception_the_place_it_is_looked_for_depends_on_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirai.measure.Inception", Inception)
    samples, reference = npz("samples.npz", SAMPLES), npz("reference.npz", REFERENCE)
    with pytest.raises(UserError, match=r"gone\.pth is missing; `mirai download inception` fetches the right one"):
        scored(samples, reference, inception=Path("gone.pth"))
    list_published()
    missing = r"weights/weights-inception-2015-12-05-6726825d\.pth is missing: `mirai download inception` fetches"
    with pytest.raises(UserError, match=missing):
        scored(samples, reference, inception=None)
    Path("config/site.yaml").write_text("weights: {inception: elsewhere.pth}\n")
    with pytest.raises(UserError, match=r"'weights\.inception' is elsewhere\.pth, which does not exist"):
        scored(samples, reference, inception=None)


def test_a_reference_of_a_published_name_must_be_the_published_one_and_any_other_name_is_the_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    list_published()
    samples = npz("samples.npz", SAMPLES)
    with monkeypatch.context() as patch:
        patch.delattr("mirai.measure.Inception")  # before any network is opened
        with pytest.raises(
            UserError, match=r"^VIRTUAL_imagenet256_labeled\.npz is not the published VIRTUAL_imagenet256"
        ):
            scored(samples, adm("VIRTUAL_imagenet256_labeled.npz"))
    assert scored(samples, adm("mine.npz"))["num_samples"] == 35


SIZE = recipe.Model(num_layers=1, num_heads=2, width=16, ffn_multiple=16)
SAMPLING = recipe.Sampling(num_samples=40, batch_size=16, dtype="float32")
TOKENIZER = WIDER


def drawn(folder: Path = Path("drawn"), codebook_size: int = 16) -> Path:
    """40 samples of a random model of 3 x 3 tokens, with an imported tokenizer of 2 pixels a token."""
    model = Transformer(SIZE, num_classes=3, codebook_size=codebook_size, grid_side=3)
    model.init_weights(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_tokenizer(Path("imported"), VQGAN(TOKENIZER), TOKENIZER, {})
    sample_codes(folder, model, SAMPLING, state_key="abc", tokenizer=Path("imported"), device="cpu", progress=False)
    return folder


def test_codes_are_decoded_by_the_tokenizer_that_their_manifest_names() -> None:
    samples, reference = drawn(), npz("reference.npz", pixels(25, 0, side=6))
    result = scored(samples, reference)
    images = decode_images(load_tokenizer(Path("imported")), load_samples(samples)[0].numpy())
    wanted = expected(features(images), features(pixels(25, 0, side=6)))
    assert {name: result[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)
    assert result["image_size"] == [6, 6]


def test_codes_are_resized_to_a_smaller_reference_and_never_enlarged() -> None:
    samples = drawn()
    result = scored(samples, npz("small.npz", REFERENCE))
    images = decode_images(load_tokenizer(Path("imported")), load_samples(samples)[0].numpy(), size=4)
    assert result["image_size"] == [4, 4]
    assert result["fid"] == pytest.approx(expected(features(images), features(REFERENCE))["fid"], rel=1e-6)
    with pytest.raises(UserError, match=r"drawn has images of 6x6 pixels, large\.npz of 8x8"):
        scored(samples, npz("large.npz", pixels(25, 0, side=8)))


def test_codes_of_another_tokenizer_are_refused() -> None:
    with pytest.raises(UserError, match=r"drawn holds codes of a tokenizer with 12 codes, .*imported has 16"):
        scored(drawn(codebook_size=12), npz("reference.npz", REFERENCE))


def test_codes_whose_tokenizer_is_gone_are_refused() -> None:
    samples = drawn()
    Path("imported").rename("moved")
    with pytest.raises(UserError, match=r"drawn with the tokenizer .*imported, which is not there"):
        scored(samples, npz("reference.npz", REFERENCE))


def test_a_folder_with_a_foreign_samples_json_is_refused() -> None:
    folder("images", SAMPLES)
    Path("images/samples.json").write_text("{}")
    with pytest.raises(UserError, match=r"images/samples\.json is not the manifest of samples drawn by `mirai sample`"):
        scored(Path("images"), npz("reference.npz", REFERENCE))


def metrics_stage(image_size: int | None) -> MetricsStage:
    """A metrics stage whose inputs are all there: the samples of `drawn`, and an ADM reference of 4 px."""
    evaluation = recipe.Evaluation(
        features=recipe.FeatureNetwork(name="stand", kind="inception"),
        reference="adm",
        num_reference=25,
        image_size=image_size,
        is_split_size=SPLIT,
    )
    stage = MetricsStage(samples=SamplesStage(state=tiny.stage(), sampling=SAMPLING), evaluation=evaluation)
    drawn(paths.folder("samples", stage.samples.key))
    reference = load_adm_reference(adm(), Stand(Path()), 25, progress=False)
    manifest = paths.manifest("reference", stage.reference_stage().key)
    save_reference(manifest, reference, {"file": "adm.npz", "image_size": [4, 4]})
    for needed in stage.needs():
        if not paths.manifest(needed.kind, needed.key).exists():
            publish(paths.manifest(needed.kind, needed.key), {})
    publish(paths.manifest("state", stage.samples.state.key), {"numerics": {"device": "cpu"}})
    return stage


def test_a_metrics_stage_measures_what_the_command_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirai.make.open_features", lambda *_: Stand(Path()))
    stage = metrics_stage(image_size=4)
    _metrics(stage, tiny.NUMERICS, Site())
    made = read_json(paths.manifest("metrics", stage.key))
    by_command = scored(paths.folder("samples", stage.samples.key), Path("adm.npz"))
    names = expected(features(SAMPLES), features(REFERENCE))
    assert {name: made[name] for name in names} == pytest.approx({name: by_command[name] for name in names})
    assert by_command["image_size"] == [4, 4]


def test_a_metrics_stage_refuses_samples_of_another_size_than_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirai.make.open_features", lambda *_: Stand(Path()))
    with pytest.raises(UserError, match=r"samples are decoded at 6 px, the images of adm\.npz have 4: `image_size`"):
        _metrics(metrics_stage(image_size=None), tiny.NUMERICS, Site())


def test_resized_samples_and_the_data_sets_own_images_reach_the_network_at_one_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Samples of 6 px and digits of 32, compared at 8."""
    seen: list[tuple[int, ...]] = []

    class Watching(Stand):
        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            seen.append(tuple(images.shape[-2:]))
            return super().forward(images)

    monkeypatch.setattr("mirai.make.open_features", lambda *_: Watching(Path()))
    published = metrics_stage(image_size=8)
    own = published.evaluation.model_copy(update={"reference": None, "num_reference": 40})
    stage = published.model_copy(update={"evaluation": own})
    _reference(stage.reference_stage(), tiny.NUMERICS, Site())
    assert set(seen) == {(8, 8)}
    seen.clear()
    _metrics(stage, tiny.NUMERICS, Site())
    assert set(seen) == {(8, 8)}


def test_image_folders_of_any_size_are_cropped_as_adm_does() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (9 + n % 3, 8 + n % 4, 3), dtype=np.uint8) for n in range(40)]
    raw, reference = Path("raw"), npz("reference.npz", pixels(40, 1))
    raw.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(raw / f"{number:02d}.png")
    cropped = npz("cropped.npz", np.stack([centre_square(Image.fromarray(picture), 4) for picture in pictures]))
    wanted = scored(cropped, reference)
    assert scored(raw, reference, crop=4)["fid"] == wanted["fid"]
    with pytest.raises(UserError, match=r"raw has images of 8x9 pixels, .* --crop cuts a folder"):
        scored(raw, reference)


def test_the_command_passes_every_option_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mirai.measure.KID_SUBSET", 20)
    samples, reference = folder("samples", pixels(35, 1, side=6)), npz("reference.npz", REFERENCE)
    options = "--inception inception.pth --num-samples 30 --crop 4 --split-size 7 --kid --batch-size 8 --device cpu"
    command = ["evaluate", str(samples), "--reference", str(reference), *options.split(), "--json", "out.json"]
    assert main(command) == 0
    wanted = scored(samples, reference, num_samples=30, crop=4, split_size=7, kid=True)
    assert read_json(Path("out.json")) == wanted
    assert summary(wanted) in capsys.readouterr().out
    assert wanted["inception_score"] != scored(samples, reference, num_samples=30, crop=4)["inception_score"]


def test_crops_of_one_folder_have_features_of_their_own() -> None:
    raw = folder("raw", pixels(40, 3, side=12))
    apart = [scored(raw, npz(f"{side}.npz", pixels(40, 1, side=side)), crop=side)["fid"] for side in (4, 6)]
    Path("results").rename("other")
    assert scored(raw, Path("6.npz"), crop=6)["fid"] == apart[1]
