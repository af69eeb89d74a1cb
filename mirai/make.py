"""Making the stages of the store: files in, files out. One function per kind; rules and the command line call `make`."""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import asdict

from mirai.data.codes import CodeStore, extract_codes
from mirai.data.images import ImageSet, centre_images
from mirai.errors import UserError
from mirai.evaluation.coherence import coherence_of
from mirai.evaluation.evaluate import check_number, evaluate
from mirai.evaluation.features import Inception
from mirai.evaluation.network import save_network, train_feature_network
from mirai.evaluation.reference import build_reference, load_adm_reference, load_reference, save_reference
from mirai.evaluation.sources import of_npz, of_set
from mirai.experiments import paths
from mirai.experiments.plan import Planned
from mirai.experiments.public_files import check_released
from mirai.experiments.scale import Numerics, load_scale
from mirai.experiments.site import Site, load_site
from mirai.experiments.stages import (
    CodesStage,
    EncoderStage,
    FeaturesStage,
    MetricsStage,
    ReferenceStage,
    SamplesStage,
    Stage,
    StateStage,
    TokenizerStage,
)
from mirai.foresight.encoder_training import train_encoder
from mirai.foresight.encoders import save_vit, timm_shape
from mirai.ranks import Ranks, ranks_of
from mirai.sampling.dump import sample_codes
from mirai.states import Lock, build_once, check_payload, is_published, publish, read_json, unseal
from mirai.store import (
    check_encoders,
    encoder_source,
    folder_fingerprint,
    open_features,
    open_image_set,
    open_sources,
    open_state,
    open_tokenizer,
    released_file,
    sample_images,
    set_numerics,
)
from mirai.tokenizer.learner import delete_progress
from mirai.tokenizer.lpips import open_lpips
from mirai.tokenizer.passes import encode_pixels
from mirai.tokenizer.store import import_tokenizer, save_tokenizer
from mirai.tokenizer.training import train_tokenizer
from mirai.training.loop import train

HELD_OUT = 500  # validation images behind the tokenizer's report
ENCODE_IMAGES = 64  # read and written at once, with all their views


def make(planned: Planned, *, save_every_steps: int | None = None, restore: bool = False) -> bool:
    """Make one stage, unless it is published -> whether there was anything to do. UserError for what is missing."""
    stage, numerics, site = planned.stage, load_scale(planned.scale).numerics, load_site()
    set_numerics(numerics)
    manifest = paths.manifest(stage.kind, stage.key)
    if isinstance(stage, StateStage):
        return _train(stage, planned.parent, numerics, site, save_every_steps, restore)
    if isinstance(stage, CodesStage | SamplesStage):
        return _build_by_ranks(stage, numerics, site)
    return build_once(manifest, functools.partial(_build, stage, numerics, site), waits=_waits())


def _waits() -> bool:
    """Whether to wait for another process that makes the same stage. A job of SLURM does: it may have found the one of a
    Snakemake that was killed, or the lock that a dead node still has on a shared file system.
    """
    return "SLURM_JOB_ID" in os.environ


def _build(stage: Stage, numerics: Numerics, site: Site) -> None:
    _require_inputs(stage)
    match stage:
        case TokenizerStage():
            _tokenizer(stage, numerics, site)
        case EncoderStage():
            _encoder(stage, numerics, site)
        case FeaturesStage():
            _features(stage, site)
        case ReferenceStage():
            _reference(stage, numerics, site)
        case MetricsStage():
            _metrics(stage, numerics, site)


def _build_by_ranks(stage: CodesStage | SamplesStage, numerics: Numerics, site: Site) -> bool:
    """What `build_once` does, by several ranks: the first holds the lock, and all learn whether there is work."""
    manifest, there = paths.manifest(stage.kind, stage.key), False
    with ranks_of(numerics.device) as ranks, contextlib.ExitStack() as stack:
        with ranks.together():
            if ranks.writes:
                stack.enter_context(Lock(manifest.parent / "lock", waits=_waits()))
                there = unseal(manifest)
                if not there:
                    _require_inputs(stage)
        if ranks.any(there):
            return False
        if isinstance(stage, CodesStage):
            _codes(stage, numerics, site, ranks)
        else:
            _samples(stage, numerics, ranks)
        return True


def _require_inputs(stage: Stage) -> None:
    for needed in stage.needs():
        manifest = paths.manifest(needed.kind, needed.key)
        if is_published(manifest):
            continue
        if manifest.exists():  # Snakemake takes it for done: name the damaged payload instead of sending the user there
            for entry in read_json(manifest)["payloads"].values():
                check_payload(manifest.parent, entry, deep=False)
        target = paths.manifest(stage.kind, stage.key)
        raise UserError(f"{manifest} is missing; `snakemake --cores 2 {target}` makes all that is needed")


def _tokenizer(stage: TokenizerStage, numerics: Numerics, site: Site) -> None:
    folder, training = paths.folder("tokenizer", stage.key), stage.tokenizer.training
    if stage.tokenizer.weights is not None:
        source, sum_of_source = released_file(stage.tokenizer.weights, site)
        model = import_tokenizer(source, stage.tokenizer)
        save_tokenizer(folder, model, stage.tokenizer, {"released": {"file": source.name, "sha256": sum_of_source}})
        return
    assert training is not None
    perceptual = None
    if training.perceptual_weight > 0:
        perceptual = open_lpips(*(released_file(name, site)[0] for name in ("vgg16", "lpips_vgg")))
    images = open_image_set(stage.data, "tokenizer", site, training.num_images)
    model, report = train_tokenizer(
        stage.tokenizer,
        images,
        centre_images(open_image_set(stage.data, "validation", site, HELD_OUT)),
        perceptual=perceptual,
        folder=folder,
        save_minutes=site.save_minutes,
        device=numerics.device,
    )
    save_tokenizer(folder, model, stage.tokenizer, {**report, **_source(images)})
    delete_progress(folder)


def _source(images: ImageSet) -> dict[str, object]:
    """For a manifest: the image folder as it was, which mirai.preflight compares with what it is."""
    fingerprint = images.fingerprint()
    return {} if fingerprint is None else {"source": asdict(fingerprint)}


def _codes(stage: CodesStage, numerics: Numerics, site: Site, ranks: Ranks) -> None:
    tokenizer_stage = stage.tokenizer_stage()
    with ranks.together():
        tokenizer = open_tokenizer(tokenizer_stage, str(ranks.device))
        images = open_image_set(stage.data, "train", site)

    extract_codes(
        paths.folder("codes", stage.key),
        images,
        stage.data,
        encode=functools.partial(encode_pixels, tokenizer),
        grid_side=stage.data.resolution // stage.tokenizer.downsampling,
        codebook_size=stage.tokenizer.codebook_size,
        tokenizer_key=tokenizer_stage.key,
        store_squares=numerics.store_squares,
        batch_images=ENCODE_IMAGES,
        progress=True,
        rank=ranks.rank,
        ranks=ranks.world,
        together=ranks.together,
    )


def _encoder(stage: EncoderStage, numerics: Numerics, site: Site) -> None:
    folder, training = paths.folder("encoder", stage.key), stage.encoder.training
    if training is None:  # timm's weights stay where the site keeps them; trainings compare them with this manifest
        source = encoder_source(stage, site)
        content = {"timm": stage.encoder.timm, "sha256": check_released(source, stage.encoder.timm)}
        publish(paths.manifest("encoder", stage.key), content | timm_shape(stage.encoder, source))
        return
    images = open_image_set(stage.data, "encoder", site, training.num_images)
    vit, report = train_encoder(
        training,
        centre_images(images),
        images.labels,
        patch=stage.patch,
        num_classes=len(images.class_names),
        device=numerics.device,
    )
    save_vit(folder, vit, {**report, **_source(images)})


def _train(
    stage: StateStage, parent: str | None, numerics: Numerics, site: Site, save_every_steps: int | None, restore: bool
) -> bool:
    weights, resume = paths.manifest("state", stage.key), paths.resume(stage.key)
    codes_stage = stage.codes_stage()
    with ranks_of(numerics.device) as ranks, contextlib.ExitStack() as stack:
        there = False
        if ranks.writes:
            stack.enter_context(Lock(weights.parent / "lock", waits=_waits()))
            there = unseal(weights) and (not restore or unseal(resume))
        if ranks.any(there):  # asked once the lock is ours: who had it may have written
            return False
        _require_inputs(stage)
        check_encoders(stage, site)
        train(
            stage,
            parent,
            CodeStore.open(
                paths.folder("codes", codes_stage.key),
                tokenizer_key=codes_stage.tokenizer_stage().key,
                fingerprint=folder_fingerprint(stage.data, site),
            ),
            sources=open_sources(stage, numerics, site, ranks.device),
            numerics=numerics,
            ranks=ranks,
            save_minutes=site.save_minutes,
            save_every_steps=save_every_steps,
            tensorboard=site.tensorboard,
        )
        return True


def _samples(stage: SamplesStage, numerics: Numerics, ranks: Ranks) -> None:
    with ranks.together():
        model = open_state(stage.state, stage.sampling.weights, numerics)
    sample_codes(
        paths.folder("samples", stage.key),
        model,
        stage.sampling,
        state_key=stage.state.key,
        device=ranks.device,
        progress=ranks.writes,
        rank=ranks.rank,
        ranks=ranks.world,
    )
    ranks.wait()  # the first rank keeps the lock until the last shard is there


def _features(stage: FeaturesStage, site: Site) -> None:
    recipe, manifest = stage.features, paths.manifest("features", stage.key)
    if recipe.kind == "inception":
        source, sum_of_source = released_file("inception", site)
        Inception(source)
        publish(manifest, {"inception": source.name, "sha256": sum_of_source})
        return
    assert recipe.num_images is not None
    images = open_image_set(stage.data, "features", site, recipe.num_images)
    factors = images.factors() if recipe.targets == "factors" else None
    network, report = train_feature_network(
        recipe, centre_images(images), images.labels, factors, len(images.class_names)
    )
    save_network(manifest, network, recipe, {**report, **_source(images)})


def _reference(stage: ReferenceStage, numerics: Numerics, site: Site) -> None:
    network = open_features(stage.features_stage(), site, numerics.device)
    content: dict[str, object] = {"features": stage.features_stage().key}
    if stage.reference is not None:
        source, sum_of_source = released_file(stage.reference, site)
        reference = load_adm_reference(source, network, stage.num_reference)
        content |= {"file": source.name, "sha256": sum_of_source, "image_size": of_npz(source).size}
    else:
        images = open_image_set(stage.data, "reference", site, stage.num_reference)
        pictures, coherent = coherence_of(stage.data, of_set(images, "reference images"), images.labels)
        reference = build_reference(network, pictures)
        content |= {"images": len(images), "coherence": coherent}
        content |= _source(images)
    save_reference(paths.manifest("reference", stage.key), reference, content)


def _metrics(stage: MetricsStage, numerics: Numerics, site: Site) -> None:
    reference_stage = stage.reference_stage()
    manifest = paths.manifest("reference", reference_stage.key)
    reference = load_reference(manifest)
    check_number(stage.samples.sampling.num_samples, reference, stage.evaluation)  # before anything is decoded
    network = open_features(reference_stage.features_stage(), site, numerics.device)
    folder, made_of = paths.folder("samples", stage.samples.key), read_json(manifest)
    images, labels = sample_images(folder, numerics.device, stage.evaluation.image_size)
    if list(images.size) != made_of.get("image_size", list(images.size)):
        raise UserError(
            f"samples are decoded at {images.size[0]} px, the images of {made_of['file']} have {made_of['image_size'][0]}: "
            "`image_size` in the evaluation of the scale says to which side they are resized"
        )
    images, coherent = coherence_of(stage.samples.state.data, images, labels)
    result = evaluate(images, reference, network, stage.evaluation, seed=stage.samples.sampling.seed)
    publish(
        paths.manifest("metrics", stage.key),
        {
            **result,
            "coherence": coherent,
            "coherence_of_reference": made_of.get("coherence", {}),
            "state_numerics": _numerics_behind(stage.samples.state),
        },
    )


def _numerics_behind(state: StateStage) -> list[dict[str, object]]:
    """How the arithmetic of each training was done whose bits are in a state, the last one first, equal ones once.

    A state that somebody has deleted says nothing any more.
    """
    found: list[dict[str, object]] = []
    key: str | None = state.key
    while key is not None and (manifest := paths.manifest("state", key)).exists():
        content = read_json(manifest)
        for numerics in (content["numerics"], *content.get("earlier_numerics", ())):
            if numerics not in found:
                found.append(numerics)
        planned = content.get("parent") if content.get("started_at_step") else None  # all that old manifests tell
        key = content.get("grown_from", planned)
    return found
