"""Samples, and a tokenizer's reconstructions, as pixels for other tools: ADM's .npz, or PNGs. Never all in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from mirai.errors import UserError
from mirai.evaluation.sources import ARRAY, Images, of_folder
from mirai.experiments import paths
from mirai.experiments.plan import lookup
from mirai.experiments.scale import load_scale
from mirai.experiments.stages import SamplesStage
from mirai.sampling.dump import MANIFEST
from mirai.states import atomic_file, is_published
from mirai.store import sample_images, set_numerics
from mirai.tokenizer.passes import encode_pixels
from mirai.tokenizer.store import decoded_batches, load_tokenizer

BATCH = 32  # images through the tokenizer at once


def export_samples(samples: str, *, npz: Path | None, png: Path | None, size: int | None = None) -> None:
    """Write samples, given by a stage's key or their folder, to an .npz (arr_0, uint8 n x H x W x 3) or a folder of PNGs.

    `size`: the side they are resized to, bicubic before rounding, as LlamaGen scores its 384 px models at 256.
    """
    folder, device = _find(samples)
    images, labels = sample_images(folder, device, size)
    if npz is not None:
        _write_npz(npz, images)
    if png is not None:
        _write_pngs(png, images, labels)


def reconstruct(folder: Path, tokenizer: Path, npz: Path, *, resolution: int, size: int | None = None) -> None:
    """Encode and decode the images of a folder, centre-cropped to `resolution`, into an .npz: rFID compares it with them.

    `size`: the side reconstructions are resized to, as for samples.
    """
    pictures = of_folder(folder, resolution)
    vqgan = load_tokenizer(tokenizer).to("cuda" if torch.cuda.is_available() else "cpu")
    if resolution % vqgan.downsampling:
        raise UserError(f"--resolution {resolution} is no multiple of {vqgan.downsampling}, the pixels of one token")

    def read(count: int, batch_size: int) -> Iterator[np.ndarray]:
        for batch in pictures.read(count, batch_size):
            yield from decoded_batches(vqgan, encode_pixels(vqgan, batch), batch_size, size)

    side = size or resolution
    _write_npz(npz, Images(f"reconstructions of {folder}", len(pictures), (side, side), read))


def _find(samples: str) -> tuple[Path, str]:
    """Folder of the samples, and the device that decodes them."""
    if (Path(samples) / MANIFEST).exists():
        return Path(samples), "cuda" if torch.cuda.is_available() else "cpu"
    if Path(samples).is_dir():
        raise UserError(
            f"{samples} holds no {MANIFEST}: its samples are not complete; run the same `mirai sample` again"
        )
    planned = lookup(samples)
    if not isinstance(planned.stage, SamplesStage):
        raise UserError(f"{samples} is a {planned.stage.kind} stage, not a samples stage")
    if not is_published(paths.manifest("samples", samples)):
        raise UserError(f"samples {samples} are not drawn yet; `mirai sample {samples}` or Snakemake does that")
    numerics = load_scale(planned.scale).numerics
    set_numerics(numerics)
    return paths.folder("samples", samples), numerics.device


def _write_npz(path: Path, images: Images) -> None:
    """What np.savez writes, without holding 50,000 images (9.8 GB at 256 px) in memory."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(images), *images.size, 3)}
    with (
        atomic_file(path) as file,
        zipfile.ZipFile(file, "w") as archive,
        archive.open(f"{ARRAY}.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, header)
        for batch in _progress(images):
            member.write(np.ascontiguousarray(batch).data)


def _write_pngs(folder: Path, images: Images, labels: np.ndarray) -> None:
    index = 0
    for batch in _progress(images):
        for image in batch:
            with atomic_file(folder / f"{index:06d}_class{labels[index]:04d}.png") as file:
                Image.fromarray(image).save(file, "PNG")
            index += 1


def _progress(images: Images) -> tqdm[np.ndarray]:
    return tqdm(images.batches(BATCH), desc=images.what, unit="batch", total=-(-len(images) // BATCH))
