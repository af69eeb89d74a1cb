"""Opening what the store and the site hold: images, networks, states and decoded samples, by stage."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mirai.data.folder import Fingerprint
from mirai.data.images import ImageSet, Split, open_images
from mirai.errors import UserError
from mirai.evaluation.features import Inception
from mirai.evaluation.network import load_network
from mirai.evaluation.sources import Images, of_codes
from mirai.experiments import paths
from mirai.experiments.plan import lookup
from mirai.experiments.public_files import check_released
from mirai.experiments.recipe import Data, Foresight
from mirai.experiments.scale import Numerics
from mirai.experiments.site import Site
from mirai.experiments.stages import EncoderStage, FeaturesStage, StateStage, TokenizerStage
from mirai.foresight.encoders import ImageEncoder, check_cells, check_layer, hub_file, open_encoder
from mirai.foresight.sources import Sources
from mirai.models.transformer import Transformer
from mirai.models.weights import load_model
from mirai.sampling.dump import MANIFEST as SAMPLES
from mirai.sampling.dump import load_samples
from mirai.states import is_published, read_json, sha256
from mirai.tokenizer.store import MANIFEST as TOKENIZER
from mirai.tokenizer.store import load_tokenizer, weights_sha256
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


def released_file(name: str, site: Site) -> tuple[Path, str]:
    """A released file of the site, and its SHA-256; UserError if another one is published under that name."""
    file = site.weights_file(name)
    return file, check_released(file, name)


def encoder_source(stage: EncoderStage, site: Site) -> Path:
    """Where an encoder's weights are: the folder of one trained here, or a timm model's file: the site's, or the hub's."""
    name = stage.encoder.timm
    if name is None:
        return paths.folder("encoder", stage.key)
    return hub_file(name) if site.from_hub(name) else site.weights_file(name)


def check_encoders(stage: StateStage, site: Site) -> None:
    """UserError, before a training, if a timm encoder's patches are not its tokens, what is read of it is not there, or
    its file is another one now.
    """
    used = {phase.foresight.encoder: stage.encoder_stage(phase) for phase in stage.timeline if phase.foresight}
    for encoder, encoder_stage in used.items():
        if encoder is None or encoder.timm is None:
            continue
        assert encoder_stage is not None
        manifest = paths.manifest("encoder", encoder_stage.key)
        checked = read_json(manifest)
        check_cells(encoder, checked["num_tokens"], stage.grid_side)
        if "depth" in checked:  # older manifests have none: opening the encoder tells
            check_layer(encoder.name, encoder.layer, checked["depth"], final_norm=checked["final_norm"])
        source = encoder_source(encoder_stage, site)
        _require_same(source, sha256(source), encoder.timm, manifest)


def _require_same(source: Path, found: str, what: str, manifest: Path) -> None:
    """UserError if a file that the site keeps is another one than its stage was made with."""
    made_with = read_json(manifest)["sha256"]
    if found != made_with:
        raise UserError(
            f"{source} is not the file of {what} that {manifest} was made with (SHA-256 {made_with}); put that one back, "
            "since results of both would share their keys"
        )


def open_sources(stage: StateStage, numerics: Numerics, site: Site, device: torch.device) -> Sources:
    """How a training opens its frozen networks. Kept, since phases that differ in lambda alone share them."""
    phases = {phase.foresight: phase for phase in stage.timeline}

    @functools.cache
    def encoder(foresight: Foresight) -> ImageEncoder:
        needed = stage.encoder_stage(phases[foresight])
        assert needed is not None
        assert foresight.encoder is not None
        return open_encoder(foresight.encoder, encoder_source(needed, site), stage.grid_side, device)

    @functools.cache
    def teacher(foresight: Foresight) -> Transformer:
        needed = stage.teacher_stage(phases[foresight])
        assert needed is not None
        return open_state(needed, "ema", numerics).requires_grad_(False)

    return Sources(encoder, teacher)


def open_features(stage: FeaturesStage, site: Site, device: str) -> torch.nn.Module:
    """The feature network of a stage; UserError if the site's Inception file is not the one of that stage any more."""
    manifest = paths.manifest("features", stage.key)
    if stage.features.kind == "trained":
        return load_network(manifest).to(device)
    source = site.weights_file("inception")
    network = Inception(source)
    _require_same(source, network.sha256, stage.features.name, manifest)
    return network.to(device)


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


def sample_images(folder: Path, device: str, image_size: int | None = None) -> tuple[Images, np.ndarray]:
    """Images of a folder of samples, decoded as they are read and resized to `image_size`, and labels (n,).

    The tokenizer is that of the samples' state, or, for imported weights, the folder that their manifest names.
    """
    manifest = read_json(folder / SAMPLES)
    tokenizer_folder = _tokenizer_of(folder, manifest)
    codes, labels = load_samples(folder)
    tokenizer = load_tokenizer(tokenizer_folder).to(device)
    known = tokenizer.quantize.embedding.num_embeddings
    if known != manifest["codebook_size"]:
        raise UserError(
            f"{folder} holds codes of a tokenizer with {manifest['codebook_size']} codes, {tokenizer_folder} has {known}"
        )
    weights = weights_sha256(tokenizer_folder)
    if manifest.get("tokenizer_sha256", weights) != weights:
        raise UserError(
            f"{folder} was drawn for another tokenizer than the one that {tokenizer_folder} holds now; put that one back"
        )
    shards = [entry["sha256"] for _, entry in sorted(manifest["payloads"].items())]
    digest = hashlib.sha256("\n".join([weights, *shards]).encode()).hexdigest()
    return of_codes(codes.numpy(), tokenizer, str(folder), image_size=image_size, digest=digest), labels.numpy()


def _tokenizer_of(samples: Path, manifest: Mapping[str, Any]) -> Path:
    if not {"state", "codebook_size", "payloads"} <= manifest.keys():
        raise UserError(f"{samples / SAMPLES} is not the manifest of samples drawn by `mirai sample`")
    if "tokenizer" in manifest:
        folder = Path(manifest["tokenizer"])
        if not is_published(folder / TOKENIZER):
            raise UserError(
                f"{samples} was drawn with the tokenizer {folder}, which is not there; import it there again"
            )
        return folder
    state = lookup(manifest["state"]).stage
    assert isinstance(state, StateStage)
    return paths.folder("tokenizer", state.codes_stage().tokenizer_stage().key)
