"""One rule for the number of images behind statistics, asked before trainings begin and again where they are made."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mirai import preflight
from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.scale import load_scale

SAMPLES = "scale own: {} samples are too few: statistics of 2048 features need 20480; give more, or measure fewer by "


@pytest.fixture
def own_scale(project: Path) -> None:
    """A copy of the paper's scale."""
    (project / paths.SCALES / "own.yaml").write_text((project / paths.SCALES / "imagenet256.yaml").read_text())
    preflight.check.cache_clear()


def changed(part: str, **values: object) -> None:
    path = paths.SCALES / "own.yaml"
    scale = yaml.safe_load(path.read_text())
    scale[part] |= values
    path.write_text(yaml.safe_dump(scale))
    load_scale.cache_clear()
    preflight.check.cache_clear()


@pytest.mark.usefixtures("own_scale")
@pytest.mark.parametrize(("samples", "enough"), [(10_000, False), (20_479, False), (20_480, True)])
def test_samples_that_inceptions_metrics_would_refuse_after_the_trainings_are_refused_before(
    samples: int, enough: bool
) -> None:
    changed("sampling", num_samples=samples)
    if enough:
        preflight.check("table1", "own")
        return
    with pytest.raises(UserError, match=SAMPLES.format(samples)):
        preflight.check("table1", "own")


@pytest.mark.usefixtures("own_scale")
def test_reference_images_count_where_statistics_are_made_of_them_and_not_where_a_file_has_them() -> None:
    preflight.check("table1", "own")  # 10,000 of a published file
    changed("evaluation", reference=None)
    with pytest.raises(UserError, match=r"^scale own: 10000 reference images are too few: statistics of 2048 features"):
        preflight.check("table1", "own")
    changed("evaluation", num_reference=20_480)
    preflight.check("table1", "own")
