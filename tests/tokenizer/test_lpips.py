"""LPIPS against torch-fidelity's, on the same made-up weights; its files; its gradients."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch_fidelity import sample_similarity_lpips as theirs
from torchvision.models import vgg

from mirai.errors import UserError
from mirai.tokenizer.lpips import LPIPS, SMALLEST_SIDE, open_lpips

pytestmark = pytest.mark.full

Files = tuple[Path, Path]


def pair(side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches (2, 3, side, side) in [-1, 1]."""
    first, second = torch.rand(2, 2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return first, second


def test_distances_are_those_of_torch_fidelity_on_torchvisions_network(
    lpips: LPIPS, lpips_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = vgg.make_layers(vgg.cfgs["D"], batch_norm=False)
    weights = torch.load(lpips_files[0], weights_only=True).items()
    features.load_state_dict({name[9:]: value for name, value in weights if name.startswith("features.")})
    monkeypatch.setattr(theirs, "torchvision_load_pretrained_vgg16", lambda: SimpleNamespace(features=features))
    monkeypatch.setattr(
        theirs, "load_state_dict_from_url", lambda *_, **__: torch.load(lpips_files[1], weights_only=True)
    )
    first, second = pair()
    expected = theirs.SampleSimilarityLPIPS("lpips")((first + 1) * 127.5, (second + 1) * 127.5).flatten()
    assert expected.min() > 0.1
    assert torch.allclose(lpips(first, second), expected, rtol=1e-5)


def test_only_the_first_images_get_gradients_and_the_network_none(lpips: LPIPS) -> None:
    first, second = (images.requires_grad_() for images in pair(SMALLEST_SIDE))
    lpips(first, second).sum().backward()
    assert first.grad is not None
    assert first.grad.abs().max() > 0
    assert second.grad is None
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def test_reading_the_files_leaves_the_global_random_state_alone(lpips_files: Files) -> None:
    before = torch.get_rng_state()
    open_lpips(*lpips_files)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_missing_damaged_or_wrong_file_is_named(tmp_path: Path, lpips_files: Files) -> None:
    vgg16, weights = lpips_files
    damaged, alex = tmp_path / "damaged.pth", tmp_path / "alex.pth"
    damaged.write_bytes(weights.read_bytes()[:2000])
    torch.save({f"lin{stage}.model.1.weight": torch.rand(1, 64, 1, 1) for stage in range(5)}, alex)
    for files, sentence in (
        ((tmp_path / "none.pth", weights), r"none\.pth does not exist"),
        ((vgg16, damaged), r"damaged\.pth is truncated"),
        (
            (weights, weights),
            r"lpips\.pth does not hold the weights of torchvision's VGG16: missing: features\.0\.weight",
        ),
        ((vgg16, alex), r"alex\.pth does not hold LPIPS' weights for VGG16"),
        ((vgg16, vgg16), r"vgg16\.pth does not hold LPIPS' weights for VGG16"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_lpips(*files)
