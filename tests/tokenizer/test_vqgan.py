"""The VQGAN against numbers of LlamaGen's own code (tests/golden/llamagen_vq) and its contracts at small widths."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, load_golden

from mirai.experiments.recipe import Tokenizer
from mirai.tokenizer.store import decode_images
from mirai.tokenizer.vqgan import VQGAN, Reconstruction, to_float, to_uint8
from tests.tokenizers import TINY

pytestmark = pytest.mark.full

FOLDER = GOLDEN / "llamagen_vq"
VQ16 = Tokenizer(name="VQ-16", weights="golden")


@pytest.fixture(scope="module")
def arrays() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in np.load(FOLDER / "vq.npz").items()}


@pytest.fixture(scope="module")
def vq16() -> VQGAN:
    model = VQGAN(VQ16)
    load_golden(model)
    return model.eval()


@pytest.fixture(scope="module")
def training_pass(vq16: VQGAN, arrays: dict[str, torch.Tensor]) -> Reconstruction:
    with torch.no_grad():
        return vq16(arrays["images"])


@pytest.fixture(scope="module")
def decoded_random(vq16: VQGAN, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return vq16.decode(arrays["random_codes"])


@pytest.fixture
def tiny() -> VQGAN:
    model = VQGAN(TINY)
    load_golden(model)
    return model


def furthest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours - theirs).abs().max().item()


def test_keys_and_shapes_are_those_of_released_files(vq16: VQGAN) -> None:
    shapes = json.loads((FOLDER / "state_dict_shapes.json").read_text())
    assert {key: list(tensor.shape) for key, tensor in vq16.state_dict().items()} == shapes


@pytest.mark.parametrize(("multipliers", "count"), [((1, 1, 2, 2, 4), 71_883_403), ((1, 2, 2, 4), 70_109_835)])
def test_parameter_counts_are_those_of_vq_16_and_vq_8(multipliers: tuple[int, ...], count: int) -> None:
    with torch.device("meta"):
        model = VQGAN(Tokenizer(name="VQ", multipliers=multipliers, weights="golden"))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_the_golden_model_has_llamagens_number_of_parameters(vq16: VQGAN) -> None:
    expected = json.loads((FOLDER / "config.json").read_text())["num_parameters"]
    assert sum(parameter.numel() for parameter in vq16.parameters()) == expected


def test_latents_are_those_of_llamagen(vq16: VQGAN, arrays: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        assert furthest(vq16.latents(arrays["images"]), arrays["z"]) < 1e-5


def test_codes_are_those_of_llamagen(training_pass: Reconstruction, arrays: dict[str, torch.Tensor]) -> None:
    assert torch.equal(training_pass.codes, arrays["codes"])


def test_quantised_latents_and_the_second_best_codes_are_those_of_llamagen(
    vq16: VQGAN, training_pass: Reconstruction, arrays: dict[str, torch.Tensor]
) -> None:
    rows = vq16.quantize.rows().detach()
    quantised = rows[training_pass.codes].transpose(1, 2).unflatten(2, (4, 4))  # (B,C,h,w)
    assert (quantised - arrays["quantized"]).abs().max() < 1e-5
    distances = (2 - 2 * training_pass.latents @ rows.T).topk(2, largest=False)  # of unit vectors
    assert torch.equal(distances.indices[..., 1], arrays["runner_up_codes"])
    assert (distances.values.diff(dim=-1)[..., 0] - arrays["margin"]).abs().max() < 1e-5


def test_decoded_images_are_those_of_llamagen(
    training_pass: Reconstruction, decoded_random: torch.Tensor, arrays: dict[str, torch.Tensor]
) -> None:
    assert furthest(training_pass.images, arrays["decoded"]) < 3e-5
    assert furthest(decoded_random, arrays["decoded_random"]) < 3e-5


def test_training_losses_are_those_of_llamagen(training_pass: Reconstruction) -> None:
    expected = json.loads((FOLDER / "config.json").read_text())["train_mode"]
    assert training_pass.codebook_loss.item() == pytest.approx(expected["vq_loss"], abs=1e-7)
    assert 0.25 * training_pass.commitment_loss.item() == pytest.approx(
        expected["commit_loss_with_beta_0_25"], abs=1e-7
    )


def test_pixels_are_rounded_as_in_llamagens_sampler(
    decoded_random: torch.Tensor, arrays: dict[str, torch.Tensor]
) -> None:
    theirs, exact = arrays["decoded_random_uint8"], 127.5 * arrays["decoded_random"].permute(0, 2, 3, 1) + 128
    clear = (exact - exact.round()).abs() > 1e-3  # elsewhere the noise of a float decides (golden/README.md)
    assert clear.float().mean() > 0.99
    assert torch.equal(to_uint8(decoded_random)[clear], theirs[clear])


@pytest.mark.parametrize(
    ("size", "name"),
    [(None, "decoded_random_uint8"), (64, "decoded_random_uint8"), (40, "decoded_random_bicubic40_uint8")],
)
def test_decoded_pixels_are_those_of_llamagens_sampler_at_its_size_and_resized(
    vq16: VQGAN, arrays: dict[str, torch.Tensor], size: int | None, name: str
) -> None:
    ours, theirs = decode_images(vq16, arrays["random_codes"].numpy(), size=size), arrays[name].numpy()
    assert ours.shape == theirs.shape
    exact = arrays["decoded_random"]
    if theirs.shape[1] != exact.shape[-1]:
        exact = torch.nn.functional.interpolate(exact, size=theirs.shape[1:3], mode="bicubic")
    exact = 127.5 * exact.permute(0, 2, 3, 1) + 128
    off = np.abs(ours.astype(int) - theirs)
    assert off.max() <= 1
    assert not off[((exact - exact.round()).abs() > 1e-3).numpy()].any()  # golden/README.md


def test_rounding_is_half_up_and_clipped() -> None:
    values = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).view(1, 1, 1, 5)
    assert to_uint8(values).flatten().tolist() == [0, 0, 128, 255, 255]


def test_every_pixel_value_survives_the_way_to_floats_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    floats = to_float(pixels)
    assert floats.shape == (1, 3, 16, 16)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert torch.equal(to_uint8(floats), pixels)


def test_encode_gives_the_codes_of_the_training_pass_in_raster_order(tiny: VQGAN) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = tiny.encode(images)
    assert codes.shape == (2, 16)
    assert torch.equal(codes, tiny(images).codes)
    latents, rows = tiny.latents(images), tiny.quantize.rows()
    cell = torch.nn.functional.normalize(latents[1, :, 2, 3], dim=0)  # row 2, column 3 of a 4x4 grid
    assert codes[1, 4 * 2 + 3] == (cell - rows).square().sum(dim=1).argmin()


def test_decoding_the_codes_gives_the_training_reconstruction(tiny: VQGAN) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    output = tiny(images)
    assert furthest(tiny.decode(output.codes), output.images) < 1e-5


def test_the_length_of_a_codebook_row_does_not_matter(tiny: VQGAN) -> None:
    codes = torch.arange(16).view(1, 16)
    before = tiny.decode(codes)
    with torch.no_grad():
        tiny.quantize.embedding.weight *= torch.linspace(0.5, 3, 16)[:, None]
    assert furthest(tiny.decode(codes), before) < 1e-5


def test_the_pixel_loss_reaches_the_encoder_but_not_the_codebook(tiny: VQGAN) -> None:
    tiny(torch.rand(1, 3, 8, 8)).images.square().mean().backward()
    assert tiny.quant_conv.weight.grad is not None
    assert tiny.quant_conv.weight.grad.abs().max() > 0
    assert tiny.quantize.embedding.weight.grad is None


def test_the_codebook_loss_moves_rows_and_the_commitment_loss_latents(tiny: VQGAN) -> None:
    output = tiny(torch.rand(1, 3, 8, 8))
    codebook, encoder = tiny.quantize.embedding.weight, tiny.quant_conv.weight
    of_codebook_loss = torch.autograd.grad(
        output.codebook_loss, [codebook, encoder], allow_unused=True, retain_graph=True
    )
    of_commitment_loss = torch.autograd.grad(output.commitment_loss, [codebook, encoder], allow_unused=True)
    assert [gradient is not None for gradient in of_codebook_loss] == [True, False]
    assert [gradient is not None for gradient in of_commitment_loss] == [False, True]
