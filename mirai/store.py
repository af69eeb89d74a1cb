"""Opening what the store and the site hold: images, networks, states and decoded samples, by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mirai.data.folder import Fingerprint
from mirai.data.images import ImageSet, Split, open_images
from mirai.evaluation.features import Inception
from mirai.evaluation.network import load_network
from mirai.experiments import paths
from mirai.experiments.recipe import Data
from mirai.experiments.scale import Numerics
from mirai.experiments.site import Site
from mirai.experiments.stages import EncoderStage, FeaturesStage, SamplesStage, StateStage, TokenizerStage
from mirai.models.transformer import Transformer
from mirai.models.weights import load_model
from mirai.sampling.dump import load_samples
from mirai.tokenizer.store import decode_images, load_tokenizer
from mirai.tokenizer.vqgan import VQGAN


def set_numerics(numerics: Numerics) -> None:
    """Make this process compute as the scale says."""
    if numerics.threads is not None:
        torch.set_num_threads(numerics.threads)
    if numerics.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # as LlamaGen trains
        torch.use_deterministic_algorithms(numerics.deterministic)


def open_image_set(data: Data, split: Split, site: Site, count: int | None = None) -> ImageSet:
    """Images of a data recipe for one use: `count` of them, or all there are if those are fewer (not for scenes)."""
    folder = site.image_folder(data.name) if data.source == "folder" else None
    return open_images(data, split, count=count, folder=folder, fewer=data.source != "scenes")


def folder_fingerprint(data: Data, site: Site) -> Fingerprint | None:
    """Of the image folder as it is now, where this machine still has it: a changed folder must not pass as the old one."""
    if data.source != "folder" or data.name not in site.data:
        return None
    return open_images(data, "train", folder=site.image_folder(data.name)).fingerprint()


def open_tokenizer(stage: TokenizerStage, device: str) -> VQGAN:
    """The tokenizer of a stage, ready to encode and decode."""
    return load_tokenizer(paths.folder("tokenizer", stage.key)).to(device)


def encoder_source(stage: EncoderStage, site: Site) -> Path:
    """Where an encoder's weights are: a timm model's file, as the site says, or the folder of one trained here."""
    if stage.encoder.timm is not None:
        return site.weights_file(stage.encoder.timm)
    return paths.folder("encoder", stage.key)


def open_features(stage: FeaturesStage, site: Site, device: str) -> torch.nn.Module:
    """The feature network of a stage."""
    if stage.features.kind == "inception":
        return Inception(site.weights_file("inception")).to(device)
    return load_network(paths.manifest("features", stage.key)).to(device)


def open_state(stage: StateStage, weights: Literal["raw", "ema"], numerics: Numerics) -> Transformer:
    """The AR model of a trained state, in eval mode."""
    return load_model(
        paths.manifest("state", stage.key),
        stage.model,
        codebook_size=stage.tokenizer.codebook_size,
        grid_side=stage.grid_side,
        weights=weights,
        attention=numerics.attention,
        device=numerics.device,
    )


def decoded_samples(stage: SamplesStage, numerics: Numerics) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n,S,S,3) uint8 and labels (n,) of a finished samples stage."""
    codes, labels = load_samples(paths.folder("samples", stage.key))
    tokenizer = open_tokenizer(stage.state.codes_stage().tokenizer_stage(), numerics.device)
    return decode_images(tokenizer, codes.numpy(), progress=True), labels.numpy()
