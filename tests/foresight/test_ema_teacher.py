"""The EMA teacher on a toy causal decoder whose states are running sums of what it was fed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mirai.foresight.ema_teacher import EMATeacher

B, N, D = 2, 6, 8


class RunningSum(nn.Module):
    """A state is the sum of the class and the tokens before its cell, or up to it. Dropout shows the mode, `layers_run`
    the depth."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.labels = nn.Embedding(20, D), nn.Embedding(5, D)
        self.dropout = nn.Dropout(0.5)
        self.layers_run = 0

    def hidden_states(self, tokens: Tensor, labels: Tensor, layer: int, consumed: bool) -> Tensor:
        self.layers_run = layer
        fed = torch.cat([self.labels(labels)[:, None], self.tokens(tokens)], dim=1)
        sums = self.dropout(fed).cumsum(dim=1)
        return sums[:, 1:] if consumed else sums[:, :-1]


@pytest.fixture
def inputs() -> tuple[RunningSum, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, (B, N), generator=generator)
    return RunningSum(), tokens, torch.tensor([1, 3])


def changed_cells(teacher: EMATeacher, tokens: Tensor, labels: Tensor, cell: int) -> list[int]:
    other = tokens.clone()
    other[:, cell] = (other[:, cell] + 1) % 20
    difference = (teacher(tokens, labels) - teacher(other, labels)).abs().amax(dim=(0, 2))
    return difference.nonzero().flatten().tolist()


def test_a_consuming_target_of_a_cell_has_consumed_its_token_and_no_later_one(inputs: tuple) -> None:
    model, tokens, labels = inputs
    teacher = EMATeacher(model, layer=2, consumed=True)
    assert teacher(tokens, labels).shape == (B, N, D)
    assert changed_cells(teacher, tokens, labels, cell=2) == [2, 3, 4, 5]
    assert changed_cells(teacher, tokens, labels, cell=N - 1) == [N - 1]


def test_a_predicting_target_of_a_cell_has_consumed_the_tokens_before_it_only(inputs: tuple) -> None:
    model, tokens, labels = inputs
    teacher = EMATeacher(model, layer=2, consumed=False)
    assert teacher(tokens, labels).shape == (B, N, D)
    assert changed_cells(teacher, tokens, labels, cell=2) == [3, 4, 5]
    assert changed_cells(teacher, tokens, labels, cell=N - 1) == []


def test_the_two_readings_are_the_same_states_one_slot_apart(inputs: tuple) -> None:
    model, tokens, labels = inputs
    consumed, same_slot = (EMATeacher(model, 2, reading)(tokens, labels) for reading in (True, False))
    assert torch.equal(consumed[:, :-1], same_slot[:, 1:])


def test_the_teacher_has_no_dropout_no_gradient_and_runs_only_its_layers(inputs: tuple) -> None:
    model, tokens, labels = inputs
    teacher = EMATeacher(model.train(), layer=2, consumed=True)
    targets = teacher(tokens, labels)
    assert torch.equal(targets, teacher(tokens, labels))
    assert not targets.requires_grad
    assert model.layers_run == 2


def test_a_teacher_switched_to_training_mode_is_refused(inputs: tuple) -> None:
    model, tokens, labels = inputs
    teacher = EMATeacher(model, layer=2, consumed=True)
    model.train()
    with pytest.raises(AssertionError, match="training mode"):
        teacher(tokens, labels)


def test_an_owner_of_a_teacher_does_not_own_its_parameters(inputs: tuple) -> None:
    owner = nn.Module()
    owner.teacher = EMATeacher(inputs[0], layer=1, consumed=True)
    assert list(owner.parameters()) == []
