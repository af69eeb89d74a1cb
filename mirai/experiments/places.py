"""What no rule makes and a machine must have: images and released weights, by their names in config/site.yaml."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.recipe import Data, Encoder, FeatureNetwork, Tokenizer
from mirai.experiments.site import Site
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

Place = tuple[str, str]  # section and name


def places(stage: Stage) -> list[Place]:
    """Where making a stage looks outside the store."""
    match stage:
        case TokenizerStage(tokenizer=Tokenizer(weights=str(name))) | EncoderStage(encoder=Encoder(timm=str(name))):
            return [("weights", name)]
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
    lacking = [
        f"{section}.{name} ({trouble})"
        for section, name in sorted(needed)
        if (trouble := _trouble(site, section, name))
    ]
    if lacking:
        raise UserError(
            f"{paths.SITE} must say where these are, before any job starts: {', '.join(lacking)}; "
            f"{paths.SITE.with_suffix('.example.yaml')} shows how"
        )


def _trouble(site: Site, section: str, name: str) -> str | None:
    place = {"data": site.data, "weights": site.weights}[section].get(name)
    if place is None:
        return "not given"
    return None if Path(place).expanduser().exists() else f"{place} does not exist"
