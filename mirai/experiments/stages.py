"""Stages: what the store holds, as values. A stage's key hashes its recipe, its revision and the keys it is made from.

`needs` of a stage are the stages whose results it reads. What is made under one key never changes, so a published
stage depends on nothing any more.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar, Self

from pydantic import PositiveInt

from mirai.experiments.recipe import (
    Cosine,
    Data,
    Encoder,
    Evaluation,
    FeatureNetwork,
    Foresight,
    Model,
    Recipe,
    Run,
    Sampling,
    Tokenizer,
    Training,
)
from mirai.experiments.revisions import ADDED, REVISIONS
from mirai.experiments.schedules import phases


class Stage(Recipe):
    """Base of the store's entries: a kind, a key, and what it is made from."""

    kind: ClassVar[str]

    def content(self) -> dict[str, Any]:
        """What decides the result, other stages by their keys."""
        raise AssertionError("every kind of stage says what its content is")

    def needs(self) -> list[Stage]:
        """The stages whose results this one reads."""
        return []

    @property
    def key(self) -> str:
        """16 hex digits of the SHA-256 of kind, revision and content."""
        text = json.dumps([self.kind, REVISIONS[self.kind], self.content()], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def hashed(recipe: Recipe, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe as plain JSON for hashing: absent where a value is None, an added field's old value, or in `without`."""
    result: dict[str, Any] = {}
    for name in type(recipe).model_fields:
        value = getattr(recipe, name)
        field = f"{type(recipe).__name__}.{name}"
        if value is None or name in without or (field in ADDED and ADDED[field] == value):
            continue
        result[name] = hashed(value) if isinstance(value, Recipe) else value
    return result


def _pictures(data: Data) -> dict[str, Any]:
    """What the auxiliary networks see of a data set: its plain centre crops, whatever views the AR model is given."""
    return hashed(data, without=("num_images", "seed", "views", "crop_range"))


class TokenizerStage(Stage):
    """A tokenizer trained here, or an imported one, waiting for its weights file."""

    kind: ClassVar[str] = "tokenizer"
    data: Data
    tokenizer: Tokenizer

    def content(self) -> dict[str, Any]:
        if self.tokenizer.weights is not None:
            return hashed(self.tokenizer, without=("name",))
        return hashed(self.tokenizer, without=("name",)) | {"data": _pictures(self.data)}


class CodesStage(Stage):
    """The training set as codes of all views."""

    kind: ClassVar[str] = "codes"
    data: Data
    tokenizer: Tokenizer

    def tokenizer_stage(self) -> TokenizerStage:
        return TokenizerStage(data=self.data, tokenizer=self.tokenizer)

    def content(self) -> dict[str, Any]:
        return {"data": hashed(self.data), "tokenizer": self.tokenizer_stage().key}

    def needs(self) -> list[Stage]:
        return [self.tokenizer_stage()]


class EncoderStage(Stage):
    """A foresight encoder's weights; which block is read, and through which mask, belongs to its use."""

    kind: ClassVar[str] = "encoder"
    data: Data
    encoder: Encoder
    patch: PositiveInt  # pixels per token and side, so that its patches are the tokens' cells

    def content(self) -> dict[str, Any]:
        content = hashed(self.encoder, without=("name", "layer", "block_size"))
        if self.encoder.timm is not None:
            return content
        return content | {"data": _pictures(self.data), "patch": self.patch}


class FeaturesStage(Stage):
    """The network whose features the Frechet distances compare."""

    kind: ClassVar[str] = "features"
    data: Data
    features: FeatureNetwork

    def content(self) -> dict[str, Any]:
        if self.features.kind == "inception":  # released weights: neither a seed nor data made them
            return hashed(self.features, without=("name", "seed"))
        return hashed(self.features, without=("name",)) | {"data": _pictures(self.data)}


class ReferenceStage(Stage):
    """Features and statistics of the reference images."""

    kind: ClassVar[str] = "reference"
    data: Data
    features: FeatureNetwork
    reference: str | None = None
    num_reference: PositiveInt

    def features_stage(self) -> FeaturesStage:
        return FeaturesStage(data=self.data, features=self.features)

    def content(self) -> dict[str, Any]:
        content = {"features": self.features_stage().key, "num_reference": self.num_reference}
        if self.reference is not None:
            return content | {"reference": self.reference}
        return content | {"data": _pictures(self.data)}

    def needs(self) -> list[Stage]:
        return [self.features_stage()]


class Phase(Recipe):
    """Consecutive epochs with the same effective settings."""

    epochs: PositiveInt
    foresight: Foresight | None = None  # None: plain next-token training, whatever the run is called
    coefficient: float | Cosine | None = None  # lambda
    learning_rate_over: PositiveInt | None = None  # total epochs of a cosine learning rate; None: constant


class StateStage(Stage):
    """What a training has become after the whole epochs of its timeline: all that shaped it up to there, nothing later."""

    kind: ClassVar[str] = "state"
    data: Data
    tokenizer: Tokenizer
    model: Model
    training: Training
    timeline: tuple[Phase, ...]

    @property
    def epoch(self) -> int:
        return sum(phase.epochs for phase in self.timeline)

    @property
    def grid_side(self) -> int:
        return self.data.resolution // self.tokenizer.downsampling

    def codes_stage(self) -> CodesStage:
        return CodesStage(data=self.data, tokenizer=self.tokenizer)

    def encoder_stage(self, phase: Phase) -> EncoderStage | None:
        """The encoder of one phase's targets, if it has one."""
        if phase.foresight is None or phase.foresight.encoder is None:
            return None
        weights = phase.foresight.encoder.model_copy(update={"layer": None, "block_size": None})  # not in its key
        return EncoderStage(data=self.data, encoder=weights, patch=self.tokenizer.downsampling)

    def teacher_stage(self, phase: Phase) -> StateStage | None:
        """The finished baseline whose EMA gives one phase's targets, if one does (reading 9.16)."""
        if phase.foresight is None or phase.foresight.teacher is None:
            return None
        teacher = phase.foresight.teacher
        over = teacher.epochs if self.training.lr_schedule == "cosine" else None
        plain = Phase(epochs=teacher.epochs, learning_rate_over=over)
        training = self.training.model_copy(update={"seed": teacher.seed})
        return self.model_copy(update={"training": training, "timeline": (plain,)})

    def content(self) -> dict[str, Any]:
        timeline = []
        for phase in self.timeline:
            entry = hashed(phase)
            encoder, teacher = self.encoder_stage(phase), self.teacher_stage(phase)
            if encoder is not None:
                use = {name: entry["foresight"]["encoder"].get(name) for name in ("layer", "block_size")}
                entry["foresight"]["encoder"] = use | {"key": encoder.key}
            if teacher is not None:
                entry["foresight"]["teacher"] = teacher.key
            timeline.append(entry)
        return {
            "codes": self.codes_stage().key,
            "model": hashed(self.model),
            "training": hashed(self.training),
            "timeline": timeline,
        }

    def needs(self) -> list[Stage]:
        """Codes, and encoders and teachers of its phases; the parent state is the state tree's business."""
        sources = [
            source for phase in self.timeline for source in (self.encoder_stage(phase), self.teacher_stage(phase))
        ]
        return [self.codes_stage(), *{source.key: source for source in sources if source is not None}.values()]

    def at(self, epoch: int) -> Self:
        """The state of the same training after fewer epochs."""
        assert 0 < epoch <= self.epoch
        kept: list[Phase] = []
        for phase in self.timeline:
            done = sum(earlier.epochs for earlier in kept)
            if done < epoch:
                kept.append(phase.model_copy(update={"epochs": min(phase.epochs, epoch - done)}))
        return self.model_copy(update={"timeline": tuple(kept)})

    def boundaries(self) -> list[int]:
        """Epochs at which the settings change, the last epoch excluded."""
        return [sum(phase.epochs for phase in self.timeline[:index]) for index in range(1, len(self.timeline))]


class SamplesStage(Stage):
    """Codes sampled from a state."""

    kind: ClassVar[str] = "samples"
    state: StateStage
    sampling: Sampling

    def content(self) -> dict[str, Any]:
        return {"state": self.state.key, "sampling": hashed(self.sampling)}

    def needs(self) -> list[Stage]:
        return [self.state]


class MetricsStage(Stage):
    """The metrics of one sample set."""

    kind: ClassVar[str] = "metrics"
    samples: SamplesStage
    evaluation: Evaluation

    def reference_stage(self) -> ReferenceStage:
        data = self.samples.state.data
        if self.evaluation.image_size is not None:  # of samples and of the data set's own images alike
            data = data.model_copy(update={"resolution": self.evaluation.image_size})
        return ReferenceStage(
            data=data,
            features=self.evaluation.features,
            reference=self.evaluation.reference,
            num_reference=self.evaluation.num_reference,
        )

    def content(self) -> dict[str, Any]:
        return {
            "samples": self.samples.key,
            "reference": self.reference_stage().key,
            "evaluation": hashed(self.evaluation, without=("features", "reference", "num_reference")),
        }

    def needs(self) -> list[Stage]:
        reference = self.reference_stage()
        return [self.samples, *self.samples.state.codes_stage().needs(), reference, *reference.needs()]


STAGES: dict[str, type[Stage]] = {
    stage.kind: stage
    for stage in (
        TokenizerStage,
        CodesStage,
        EncoderStage,
        FeaturesStage,
        ReferenceStage,
        StateStage,
        SamplesStage,
        MetricsStage,
    )
}


def timeline(run: Run) -> tuple[Phase, ...]:
    """The effective settings of a canonical run over its epochs, equal neighbours merged."""
    learning_rate_over = run.epochs if run.training.lr_schedule == "cosine" else None
    if run.foresight is None:
        return (Phase(epochs=run.epochs, learning_rate_over=learning_rate_over),)
    assert run.foresight.schedule is not None
    bare = run.foresight.model_copy(update={"schedule": None})
    return tuple(
        Phase(
            epochs=end - start,
            foresight=None if coefficient == 0.0 else bare,
            coefficient=None if coefficient == 0.0 else coefficient,
            learning_rate_over=learning_rate_over,
        )
        for start, end, coefficient in phases(run.foresight.schedule, run.epochs)  # merged there
    )


def state_stage(run: Run) -> StateStage:
    """The final state of a canonical run."""
    return StateStage(
        data=run.data, tokenizer=run.tokenizer, model=run.model, training=run.training, timeline=timeline(run)
    )


def metrics_stage(run: Run) -> MetricsStage:
    """The metrics of a canonical run: the stage at the end of its branch of the DAG."""
    state = state_stage(run).at(run.at_epoch or run.epochs)
    samples = SamplesStage(state=state, sampling=run.sampling)
    return MetricsStage(samples=samples, evaluation=run.evaluation)


def parent_epoch(state: StateStage, ladder: tuple[int, ...]) -> int | None:
    """The largest cut below a state's epoch: a rung of the scale's ladder or a boundary of its own timeline."""
    return max((cut for cut in (*ladder, *state.boundaries()) if cut < state.epoch), default=None)
