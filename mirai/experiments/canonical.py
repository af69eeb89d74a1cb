"""One form for recipes that mean the same, so that equal runs have equal keys."""

from __future__ import annotations

from mirai.experiments.offsets import distance_order, written_later
from mirai.experiments.recipe import Data, Encoder, Evaluation, Foresight, Head, Run, Schedule


def canonical_run(run: Run) -> Run:
    """The run with every synonym replaced by its one form and every field without effect at its neutral value."""
    update: dict[str, object] = {
        "data": canonical_data(run.data),
        "foresight": run.foresight and canonical_foresight(run.foresight, run.grid_side, run.model.regions_across),
        "evaluation": canonical_evaluation(run.evaluation, run.data.resolution),
    }
    if run.at_epoch == run.epochs:
        update["at_epoch"] = None
    return run.model_copy(update=update)


def canonical_evaluation(evaluation: Evaluation, resolution: int) -> Evaluation:
    """Resizing to the resolution that samples have is no resizing."""
    return evaluation.model_copy(update={"image_size": None}) if evaluation.image_size == resolution else evaluation


def canonical_data(data: Data) -> Data:
    """Only generated sets have a size and a seed; only the ten crop enlarges; only folders have corrupt files."""
    neutral = Data.model_fields
    update: dict[str, object] = {}
    if data.source != "scenes":
        update |= {"num_images": None, "seed": neutral["seed"].default}
    if data.source != "folder":
        update["corrupt_images"] = neutral["corrupt_images"].default
    if data.views != 10:
        update["crop_range"] = neutral["crop_range"].default
    return data.model_copy(update=update)


def canonical_foresight(foresight: Foresight, grid_side: int, regions_across: int) -> Foresight | None:
    """None where lambda is 0 throughout; otherwise one form per meaning."""
    assert foresight.schedule is not None
    schedule = canonical_schedule(foresight.schedule)
    if schedule.values == (0.0,):
        return None
    update: dict[str, object] = {
        "schedule": schedule,
        "offsets": tuple(sorted(foresight.offsets, key=distance_order)),
    }
    if foresight.offsets == ((0, 0),):  # K = 1 is the current position in either layout, valid everywhere
        update |= {"layout": "2D", "borders": "valid"}
    if foresight.level == "output":
        update |= {"layer": None, "head": None}
    elif foresight.head is not None and foresight.head.kind != "mlp":  # its MLP has ratio 4
        update["head"] = foresight.head.model_copy(update={"width": Head.model_fields["width"].default})
    ahead = (written_later(offset, foresight.layout, grid_side, regions_across) for offset in foresight.offsets)
    if foresight.seams == "keep" and all(later for pairs in ahead for later in pairs):  # no seam lies between
        update["seams"] = "mask"
    if foresight.source not in ("ema", "pretrained"):
        update |= {"ema_slot_shift": 1, "teacher_layer": None}
    elif foresight.teacher_layer == foresight.layer:
        update["teacher_layer"] = None
    if foresight.encoder is not None:
        update["encoder"] = canonical_encoder(foresight.encoder, grid_side)
    return foresight.model_copy(update=update)


def canonical_schedule(schedule: Schedule) -> Schedule:
    """A schedule whose values are all equal is constant, whatever it is called."""
    if len(set(schedule.values)) == 1:
        return schedule.model_copy(update={"kind": "constant", "values": schedule.values[:1]})
    return schedule


def canonical_encoder(encoder: Encoder, grid_side: int) -> Encoder:
    """A block of all N tokens is full attention; a random encoder's training has no effect."""
    update: dict[str, object] = {}
    if encoder.block_size is not None and encoder.block_size >= grid_side * grid_side:
        update["block_size"] = None
    training = encoder.training
    if training is not None:
        neutral: dict[str, object] = {}
        if training.objective != "mae":
            neutral["mask_ratio"] = type(training).model_fields["mask_ratio"].default
        if training.objective == "none":
            neutral |= {"steps": 0, "batch_size": 1, "learning_rate": 1.0}
        update["training"] = training.model_copy(update=neutral)
    return encoder.model_copy(update=update)
