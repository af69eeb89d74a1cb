"""Ablation axes: one setting of them, and the run that it means at a scale."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, field_validator

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.arms import Arm, arm_foresight
from mirai.experiments.canonical import canonical_run
from mirai.experiments.offsets import grid_offsets, scan_offsets
from mirai.experiments.recipe import Encoder, Foresight, HeadKind, Recipe, Run, Schedule, Teacher
from mirai.experiments.scale import Scale, Size, load_scale, scale_names
from mirai.experiments.schedules import phases
from mirai.experiments.vits import patch_of
from mirai.experiments.yaml_input import hint, read_yaml

RecipeType = TypeVar("RecipeType", bound=Recipe)


class Point(Recipe):
    """One setting of the ablation axes. An axis left out keeps the arm's and the scale's value."""

    arm: Arm | None = None
    size: str | None = None  # a role of the scale
    epochs: PositiveInt | None = None
    resolution: PositiveInt | None = None  # the paper's 256 or 384; a small scale has sides of its own for them
    token_order: Literal["raster", "par-4x", "par-16x"] | None = None
    learning_rate: PositiveFloat | None = None
    lr_schedule: Literal["constant", "cosine"] | None = None
    align_layer: PositiveInt | None = None  # in twelfths of the depth, so that 8 is 8 of 12, 16 of 24, 24 of 36
    teacher_layer: PositiveInt | None = None  # likewise; Table 2's "8 -> 6" is align_layer 8, teacher_layer 6
    layout: Literal["1D", "2D"] | None = None
    num_tokens: PositiveInt | None = None  # K
    offsets: tuple[tuple[int, int], ...] | None = None  # explicit positions instead of K nearest ones
    schedule: Schedule | None = None
    warmup_epochs: int | None = Field(default=None, ge=0)
    head: HeadKind | None = None
    ema: Literal["online", "pretrained"] | None = None  # Mirai-E's teacher: its own EMA, or a finished baseline's
    ema_epochs: PositiveInt | None = None  # of the finished baseline
    ema_seed: NonNegativeInt | None = None  # of the finished baseline
    ema_slot_shift: Literal[0, 1] | None = None
    encoder: str | Encoder | None = None  # a role of the scale, or an encoder as a scale would write it
    encoder_layer: PositiveInt | Literal["final"] | None = None  # raw output of a block, or the last one after its norm
    block_size: PositiveInt | None = None  # block-causal attention of the encoder (Fig. 3)
    borders: Literal["valid", "all"] | None = None
    seams: Literal["mask", "keep"] | None = None
    guidance: float | None = Field(default=None, ge=1.0)
    weights: Literal["raw", "ema"] | None = None

    @field_validator("schedule")
    @classmethod
    def _without_warmup(cls, schedule: Schedule | None) -> Schedule | None:
        if schedule is not None and "warmup_epochs" in schedule.model_fields_set:
            raise ValueError("the warm-up is an axis of its own: write warmup_epochs beside schedule, not inside it")
        return schedule

    def updated(self, other: Point) -> Point:
        """This point with the axes that `other` sets."""
        return self.model_copy(update={name: getattr(other, name) for name in other.model_fields_set})

    def plain(self) -> Point:
        """This point without foresight: its baseline's."""
        return self.model_copy(update={"arm": "baseline", **dict.fromkeys(WITHOUT_EFFECT["baseline"])})


EMA, ENCODER = (
    ("ema", "ema_epochs", "ema_seed", "teacher_layer", "ema_slot_shift"),
    ("encoder", "encoder_layer", "block_size"),
)
INTERNAL, POSITIONS = ("align_layer", "head"), ("layout", "num_tokens", "offsets", "borders", "seams")
SCHEDULE = ("schedule", "warmup_epochs")
WITHOUT_EFFECT: dict[Arm | None, tuple[str, ...]] = {
    "baseline": (*INTERNAL, *EMA, *ENCODER, *POSITIONS, *SCHEDULE),
    "mirai-i": EMA,
    "mirai-e": ENCODER,
    "output-level": (*INTERNAL, *EMA, *ENCODER),
}


def unavailable(point: Point, scale: Scale, where: str) -> str | None:
    """Why this scale cannot have the point; UserError where no scale could."""
    roles = (
        ("size", point.size, scale.sizes, "sizes"),
        ("encoder", point.encoder, scale.encoders, "encoders"),
        ("resolution", point.resolution, scale.resolutions, "resolutions"),
    )
    for axis, role, mine, section in roles:
        if role is None or isinstance(role, Encoder) or role in mine or (axis, role) == ("encoder", "default"):
            continue
        everywhere = _roles(section)
        if str(role) not in everywhere:
            known = f"{hint(str(role), sorted(everywhere))}known are {', '.join(sorted(everywhere))}"
            raise UserError(f"{where}: {axis} {role!r} is known at no scale; {known}")
        return f"{axis} {role} does not exist at this scale"
    return None


def _roles(section: str) -> set[str]:
    """All sizes, encoders or resolutions of all scales."""
    files = [read_yaml(paths.SCALES / f"{name}.yaml") for name in scale_names()]
    return {str(role) for file in files for role in file.get(section, {})}


class NotAtThisScale(Exception):
    """A point that makes sense in the paper, and not on this scale's small grid."""


def run_of(point: Point, scale: Scale, seed: int, where: str) -> Run:
    """The canonical run of a point, validated as a whole.

    UserError for what makes no sense anywhere, NotAtThisScale for what only this scale is too small for.
    """
    _refuse_nonsense(point, where)
    try:
        run = _build(point, scale, seed, where)
        reason = _misfit(point, run)
        if reason is None:
            return canonical_run(run)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
    paper = load_scale(paths.PAPER_SCALE)
    if scale is paper or unavailable(point, paper, where) is not None:
        raise UserError(f"{where}: {reason}")
    run_of(point, paper, seed, where)  # which refuses what makes no sense there either
    raise NotAtThisScale(reason)


def _misfit(point: Point, run: Run) -> str | None:
    """What of a point would have no effect in the run, or only fail once its encoder is opened."""
    side, foresight = run.grid_side, run.foresight
    for axis in ("num_tokens", "block_size"):
        if (getattr(point, axis) or 0) > side**2:
            return f"{axis} {getattr(point, axis)} is more than the {side**2} tokens of an image"
    if foresight is None:
        return None
    encoder, schedule = foresight.encoder, foresight.schedule
    assert schedule is not None
    patch = encoder and patch_of(encoder.timm)
    if encoder and patch and encoder.image_size != side * patch:
        return (
            f"encoder {encoder.name} has patches of {patch} pixels, which at image_size {encoder.image_size} are not the "
            f"{side}x{side} tokens of an image; image_size {side * patch} fits"
        )
    if schedule.kind in ("step", "thirds"):
        used = [coefficient for _, _, coefficient in phases(schedule, run.epochs)]
        for value in schedule.values:
            if value not in used:
                return (
                    f"a {schedule.kind} schedule over {run.epochs} epochs, warmup_epochs {schedule.warmup_epochs} of them, "
                    f"never has its value {value:g}"
                )
    return None


def _build(point: Point, scale: Scale, seed: int, where: str) -> Run:
    assert point.size is not None
    assert point.epochs is not None
    size = scale.sizes[point.size]
    training: dict[str, Any] = {"seed": seed, "lr_schedule": point.lr_schedule or size.lr_schedule}
    if point.learning_rate is not None:
        training["learning_rate"] = point.learning_rate
    sampling: dict[str, Any] = {"guidance": size.guidance if point.guidance is None else point.guidance}
    if point.weights is not None:
        sampling["weights"] = point.weights
    resolution = scale.data.resolution if point.resolution is None else scale.resolutions[point.resolution]
    model = size.model if point.token_order is None else _with(size.model, token_order=point.token_order)
    return Run(
        data=_with(scale.data, resolution=resolution),
        tokenizer=scale.tokenizer,
        model=model,
        foresight=_foresight(point, scale, size, resolution, where),
        training=_with(scale.training, **training),
        epochs=point.epochs,
        sampling=_with(scale.sampling, **sampling),
        # 384 px are scored at 256 px (Table 11), whatever the two are called at a small scale
        evaluation=_with(scale.evaluation, image_size=scale.evaluation.image_size or scale.data.resolution),
    )


def _with(recipe: RecipeType, **update: object) -> RecipeType:
    """A validated copy with some fields replaced."""
    fields = {name: getattr(recipe, name) for name in type(recipe).model_fields}
    return type(recipe).model_validate(fields | update)


def _refuse_nonsense(point: Point, where: str) -> None:
    """A row that sets what it never reads would print a difference that is none."""
    for axis in WITHOUT_EFFECT[point.arm]:
        if getattr(point, axis) is not None:
            raise UserError(
                f"{where}: {axis} has no effect on arm '{point.arm}'; remove it (null undoes a default) "
                "or choose another arm"
            )
    for axis in ("ema_epochs", "ema_seed"):
        if getattr(point, axis) is not None and point.ema != "pretrained":
            raise UserError(f"{where}: {axis} has an effect with `ema: pretrained` only")
    if point.seams is not None and point.token_order in (None, "raster"):
        raise UserError(f"{where}: seams has an effect with a token_order of PAR only")
    if point.block_size is not None and point.token_order not in (None, "raster"):
        raise UserError(
            f"{where}: block_size cuts the raster scan, and bounds no future of token_order {point.token_order}; remove one"
        )
    if point.offsets is not None and point.num_tokens is not None:
        raise UserError(f"{where}: give num_tokens or offsets, not both")


def _foresight(point: Point, scale: Scale, size: Size, resolution: int, where: str) -> Foresight | None:
    assert point.arm is not None
    base = arm_foresight(point.arm, encoder=_encoder(point, scale, size, resolution), head=scale.head)
    if base is None:
        return None
    assert base.schedule is not None
    depth = size.model.num_layers
    update: dict[str, Any] = {}
    if base.layer is not None:
        update["layer"] = _block(point.align_layer or base.layer, depth, "align_layer", where)
    if point.teacher_layer is not None:
        update["teacher_layer"] = _block(point.teacher_layer, depth, "teacher_layer", where)
    layout = point.layout or base.layout
    offsets = point.offsets
    if offsets is None:
        nearest = grid_offsets if layout == "2D" else scan_offsets
        tokens = (resolution // scale.tokenizer.downsampling) ** 2
        offsets = nearest(min(point.num_tokens or len(base.offsets), tokens))  # _misfit tells of more
    update |= {"layout": layout, "offsets": offsets}
    for name in ("ema_slot_shift", "borders", "seams"):
        if (value := getattr(point, name)) is not None:
            update[name] = value
    if point.head is not None:
        assert base.head is not None
        update["head"] = base.head.model_copy(update={"kind": point.head})
    warmup = base.schedule.warmup_epochs
    if point.ema == "pretrained":
        given = {"epochs": point.ema_epochs, "seed": point.ema_seed}
        teacher = Teacher(**{name: value for name, value in given.items() if value is not None})
        update |= {"source": "pretrained", "teacher": teacher}
        warmup = 0  # a finished teacher need not be waited for (reading 9.16)
    if point.warmup_epochs is not None:
        warmup = point.warmup_epochs
    update["schedule"] = (point.schedule or base.schedule).model_copy(update={"warmup_epochs": warmup})
    return _with(base, **update)


def _encoder(point: Point, scale: Scale, size: Size, resolution: int) -> Encoder:
    if isinstance(point.encoder, Encoder):
        encoder = point.encoder
    else:
        encoder = scale.encoders[size.encoder if point.encoder in (None, "default") else point.encoder]
    update: dict[str, Any] = {}
    if encoder.image_size is not None:  # as many patches as tokens: 224 px for 256, 336 for 384
        update["image_size"] = encoder.image_size * resolution // scale.data.resolution
    if point.encoder_layer is not None:
        update["layer"] = None if point.encoder_layer == "final" else point.encoder_layer
    if point.block_size is not None:
        update["block_size"] = point.block_size
    return _with(encoder, **update)


def _block(twelfths: int, depth: int, axis: str, where: str) -> int:
    block, rest = divmod(twelfths * depth, 12)
    if rest or not 1 <= block <= depth:
        raise UserError(
            f"{where}: {axis} {twelfths} (in twelfths of the depth) is no block of a model with {depth} layers"
        )
    return block
