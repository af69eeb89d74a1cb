"""Floating point operations of training on one image: by the paper's arithmetic (Table 13, Sec. G), and counted.

The paper counts 6 operations per parameter and token, embeddings included, attention in the EMA's forward pass only, and
leaves out Mirai-I's encoder. torch's counter sees every matrix product of the modules that training uses, built without weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mirai.analysis.parameters import META, bare_encoder, bare_heads, bare_model, count, parameters
from mirai.experiments.flops import flops_per_image
from mirai.experiments.recipe import Foresight, Run
from mirai.experiments.stages import state_stage


@dataclass(frozen=True)
class Counted:
    """Matrix products of one image's training step with foresight: a multiplication and an addition are 2."""

    model: int  # forward and backward of the AR model
    attention: int  # of these, attention's products
    heads: int  # forward and backward
    targets: int  # forward of the EMA, or of the encoder

    @property
    def total(self) -> int:
        return self.model + self.heads + self.targets


def by_formula(run: Run) -> int:
    """The paper's arithmetic for a step with foresight, or a plain one where the run has none; its networks are counted."""
    state = state_stage(run)
    phase = next((phase for phase in state.timeline if phase.foresight is not None), state.timeline[0])
    return flops_per_image(state, phase, parameters(run) + sum(map(count, bare_heads(run))))


def _teacher_layer(foresight: Foresight) -> int:
    layer = foresight.teacher_layer or foresight.layer
    assert layer is not None
    return layer


def counted(run: Run) -> Counted:
    """What torch's FLOP counter sees. Masked products of attention count in full, as the written-out kernel does them."""
    tokens = run.grid_side**2
    codes = torch.zeros(1, tokens, dtype=torch.long, device=META)
    label = torch.zeros(1, dtype=torch.long, device=META)
    model = bare_model(run)
    with FlopCounterMode(display=False) as of_model:
        logits, _ = model(codes, label)
        F.cross_entropy(logits.flatten(0, 1), codes.flatten()).backward()
    hidden = torch.zeros(1, tokens, run.model.width, device=META, requires_grad=True)
    with FlopCounterMode(display=False) as of_heads:
        for head in bare_heads(run):
            head(hidden).sum().backward()
    model.requires_grad_(False)  # as an EMA; the counter's hooks stumble over parameters under no_grad
    with FlopCounterMode(display=False) as of_targets:
        foresight, encoder = run.foresight, bare_encoder(run)
        if encoder is not None:
            encoder(torch.zeros(1, 3, run.data.resolution, run.data.resolution, device=META))
        elif foresight is not None and foresight.source is not None:
            model.hidden_states(codes, label, _teacher_layer(foresight), consumed=foresight.ema_slot_shift == 1)
    return Counted(
        model=of_model.get_total_flops(),
        attention=12 * run.model.num_layers * tokens**2 * run.model.width,  # 2 products of 2 T^2 d, thrice
        heads=of_heads.get_total_flops(),
        targets=of_targets.get_total_flops(),
    )
