"""Making the stages of the store: files in, files out. One function per kind; rules and the command line call these."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import numpy as np
import torch

from mirai.data.codes import CodeStore, extract_codes
from mirai.data.folder import fingerprint
from mirai.data.images import ImageSet, Split, centre_images, open_images
from mirai.errors import UserError
from mirai.evaluation import coherence
from mirai.evaluation.evaluate import (
    adm_reference,
    build_reference,
    evaluate,
    load_reference,
    save_reference,
)
from mirai.evaluation.features import Inception
from mirai.evaluation.network import load_feature_network, save_feature_network, train_feature_network
from mirai.experiments import paths
from mirai.experiments.plan import Planned
from mirai.experiments.recipe import Data, Foresight
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
from mirai.foresight.encoder_training import load_encoder, save_encoder, train_encoder
from mirai.foresight.encoders import ImageEncoder, SmallEncoder, TimmEncoder, load_timm
from mirai.models.weights import load_model
from mirai.sampling.dump import load_samples, sample_codes
from mirai.states import Lock, build_once, is_published, write_json
from mirai.tokenizer.store import load_tokenizer, save_tokenizer
from mirai.tokenizer.training import train_tokenizer
from mirai.tokenizer.vqgan import VQGAN, to_float
from mirai.training.distributed import ranks_of
from mirai.training.loop import train

HELD_OUT = 500  # validation images behind the reports of the small networks
ENCODE_BATCH = 64  # images, times their views, per pass of the tokenizer


def make(planned: Planned, *, save_every_steps: int | None = None) -> bool:
    """Make one stage, unless it is published -> whether there was anything to do. UserError for what is missing."""
    stage, numerics, site = planned.stage, load_scale(planned.scale).numerics, load_site()
    _set_numerics(numerics)
    manifest = paths.manifest(stage.kind, stage.key)
    if isinstance(stage, StateStage):
        return _train(stage, planned.parent, numerics, site, save_every_steps)
    _require_inputs(stage)
    builders = {
        TokenizerStage: _tokenizer,
        CodesStage: _codes,
        EncoderStage: _encoder,
        FeaturesStage: _features,
        ReferenceStage: _reference,
        SamplesStage: _samples,
        MetricsStage: _metrics,
    }
    return build_once(manifest, functools.partial(builders[type(stage)], stage, numerics, site))


def _set_numerics(numerics: Numerics) -> None:
    if numerics.threads is not None:
        torch.set_num_threads(numerics.threads)
    if numerics.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # as LlamaGen trains
        torch.use_deterministic_algorithms(numerics.deterministic)


def _require_inputs(stage: Stage) -> None:
    for needed in stage.needs():
        manifest = paths.manifest(needed.kind, needed.key)
        if not is_published(manifest):
            raise UserError(
                f"{manifest} is not there yet; make it with `mirai {_COMMANDS.get(needed.kind, needed.kind)} {needed.key}`, "
                f"or let Snakemake do it all: `snakemake --cores 2 {paths.manifest(stage.kind, stage.key)}`"
            )


_COMMANDS = {"state": "train", "samples": "sample", "metrics": "evaluate"}


def image_folder(data: Data, site: Site) -> Path | None:
    """Where the site keeps a folder data set; None for generated sets."""
    return site.image_folder(data.name) if data.source == "folder" else None


def _images(data: Data, split: Split, site: Site, count: int | None = None) -> ImageSet:
    folder = image_folder(data, site)
    if count is not None and data.source != "scenes":
        count = min(count, len(open_images(data, split, folder=folder)))  # no more than there are
    return open_images(data, split, count=count, folder=folder)


def _tokenizer(stage: TokenizerStage, numerics: Numerics, site: Site) -> None:
    if stage.tokenizer.weights is not None:
        source = site.weights_file(stage.tokenizer.weights)
        raise UserError(f"{source}: importing released tokenizer weights is not part of this version yet")
    assert stage.tokenizer.training is not None
    images = centre_images(_images(stage.data, "tokenizer", site, stage.tokenizer.training.num_images))
    held_out = centre_images(_images(stage.data, "validation", site, HELD_OUT))
    model, report = train_tokenizer(stage.tokenizer, images, held_out, device=numerics.device)
    save_tokenizer(paths.folder("tokenizer", stage.key), model, stage.tokenizer, report)


def open_tokenizer(stage: TokenizerStage, device: str) -> VQGAN:
    """The tokenizer of a stage, ready to encode and decode."""
    return load_tokenizer(paths.folder("tokenizer", stage.key)).to(device)


def _codes(stage: CodesStage, numerics: Numerics, site: Site) -> None:
    tokenizer_stage = stage.tokenizer_stage()
    tokenizer = open_tokenizer(tokenizer_stage, numerics.device)

    @torch.inference_mode()
    def encode(crops: np.ndarray) -> np.ndarray:
        codes: np.ndarray = tokenizer.encode(to_float(torch.from_numpy(crops).to(numerics.device))).cpu().numpy()
        return codes

    extract_codes(
        paths.folder("codes", stage.key),
        _images(stage.data, "train", site),
        stage.data,
        encode=encode,
        grid_side=stage.data.resolution // stage.tokenizer.downsampling,
        codebook_size=stage.tokenizer.codebook_size,
        tokenizer_key=tokenizer_stage.key,
        store_squares=numerics.store_squares,
        batch_images=ENCODE_BATCH,
        progress=True,
    )
