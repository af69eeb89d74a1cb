"""What no rule makes and a machine must have: images and released weights, by their names in config/site.yaml."""

from __future__ import annotations

from collections.abc import Iterable

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.public_files import public_file, shown_bytes
from mirai.experiments.recipe import Data, Encoder, FeatureNetwork, Tokenizer, TokenizerTraining
from mirai.experiments.site import HUB, Site, expanded
from mirai.experiments.stages import (
    CodesStage,
    EncoderStage,
    FeaturesStage,
    MetricsStage,
    ReferenceStage,
    Stage,
    StateStage,
    TokenizerStage,
)

Place = tuple[str, str]  # section of config/site.yaml and name; section "timm": weights that timm's hub may hold


def places(stage: Stage) -> list[Place]:
    """Where making a stage looks outside the store."""
    match stage:
        case TokenizerStage(tokenizer=Tokenizer(weights=str(name))):
            return [("weights", name)]
        case TokenizerStage(tokenizer=Tokenizer(training=TokenizerTraining(perceptual_weight=weight))) if weight > 0:
            lpips = [("weights", "vgg16"), ("weights", "lpips_vgg")]
            return [("data", stage.data.name), *lpips] if stage.data.source == "folder" else lpips
        case EncoderStage(encoder=Encoder(timm=str(name))):
            return [("timm", name)]
        case FeaturesStage(features=FeatureNetwork(kind="inception")):
            return [("weights", "inception")]
        case ReferenceStage(reference=str(name)):
            return [*places(stage.features_stage()), ("weights", name)]
        case StateStage():  # a timm encoder's weights stay where the site has them
            encoders = [encoder for phase in stage.timeline if (encoder := stage.encoder_stage(phase)) is not None]
            return [place for encoder in encoders if encoder.encoder.timm for place in places(encoder)]
        case MetricsStage(evaluation=evaluation) if evaluation.features.kind == "inception":
            return [("weights", "inception")]
        case (
            TokenizerStage(data=Data(source="folder", name=name))
            | CodesStage(data=Data(source="folder", name=name))
            | EncoderStage(data=Data(source="folder", name=name))
            | FeaturesStage(data=Data(source="folder", name=name))
            | ReferenceStage(data=Data(source="folder", name=name))
        ):
            return [("data", name)]
    return []


def refuse_missing_places(stages: Iterable[Stage], site: Site) -> None:
    """UserError that names everything these stages need and this machine lacks, all at once."""
    needed = {place for stage in stages for place in places(stage)}
    lacking = [(*place, trouble) for place in sorted(needed) if (trouble := _trouble(site, *place))]
    if lacking:
        listed = [f"{'data' if section == 'data' else 'weights'}.{name} ({why})" for section, name, why in lacking]
        raise UserError(
            f"{paths.SITE} must say where these are, before any job starts: {', '.join(listed)}; "
            f"{_download([name for section, name, _ in lacking if section != 'data'])}"
            f"{paths.SITE.with_suffix('.example.yaml')} shows how"
        )


def _trouble(site: Site, section: str, name: str) -> str | None:
    place = (site.data if section == "data" else site.weights).get(name)
    if section != "data" and site.from_hub(name):
        return None if section == "timm" else f"{HUB} is for timm's encoders"
    if place is None:
        released = None if section == "data" else public_file(name)
        return None if released and released.path.exists() else "not given"
    path = expanded(place)
    if not path.exists():
        return f"{place} does not exist"
    return f"{place} is no folder" if section == "data" and not path.is_dir() else None


def _download(names: list[str]) -> str:
    """How to get those that others have published, as a part of a sentence; nothing if none of them is."""
    released = {name: file for name in names if (file := public_file(name))}
    if not released:
        return ""
    total = shown_bytes(sum(file.size or 0 for file in released.values()))
    return f"`mirai download {' '.join(released)}` fetches {total} to {paths.WEIGHTS}/, where no entry is needed; "
