"""The PatchGAN: its size, what it sees, how it starts, and the hinge losses by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mirai.tokenizer.discriminator import SMALLEST_SIDE, discriminator_loss, generator_loss, new_discriminator


def test_it_has_the_parameters_and_the_logits_of_three_halvings_from_64_channels() -> None:
    network = new_discriminator(0)
    convolutions = 3 * 64 * 16 + 64 + (64 * 128 + 128 * 256 + 256 * 512 + 512) * 16 + 1
    assert sum(parameter.numel() for parameter in network.parameters()) == convolutions + 2 * (128 + 256 + 512)
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 6, 6)
    assert network(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)
    assert network(torch.zeros(2, 3, SMALLEST_SIDE, SMALLEST_SIDE)).shape == (2, 1, 1, 1)
    with pytest.raises(RuntimeError):
        network(torch.zeros(2, 3, SMALLEST_SIDE - 1, SMALLEST_SIDE - 1))


def test_a_logit_sees_a_patch_of_70_pixels() -> None:
    network = new_discriminator(0)
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):  # whose statistics see everything
            layer.eval()
            layer.running_mean, layer.running_var = torch.zeros(layer.num_features), torch.ones(layer.num_features)
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    network(images)[0, 0, 7, 7].backward()
    assert images.grad is not None
    seen = images.grad.abs().sum(dim=(0, 1)).nonzero()
    assert (seen.amax(dim=0) - seen.amin(dim=0) + 1).tolist() == [70, 70]


def test_it_starts_from_the_seed_as_llamagens_does() -> None:
    before = torch.get_rng_state()
    network, again, other = new_discriminator(0), new_discriminator(0), new_discriminator(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(network[0].weight, again[0].weight)
    assert not torch.equal(network[0].weight, other[0].weight)
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.mean().item() == pytest.approx(1, abs=0.01)
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.25)
            assert layer.bias.abs().max() == 0
            assert not layer.track_running_stats
    assert [layer.negative_slope for layer in network if isinstance(layer, nn.LeakyReLU)] == 4 * [0.2]
    assert [layer.bias is not None for layer in network if isinstance(layer, nn.Conv2d)] == [1, 0, 0, 0, 1]


def test_hinge_losses_by_hand() -> None:
    real, fake = torch.tensor([3.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5) / 2 + (0 + 1.5) / 2))
    assert generator_loss(fake).item() == pytest.approx(0.75)
