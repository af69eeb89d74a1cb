"""Parameters and training FLOPs of a recipe in plain arithmetic: the formula of the paper's Table 13.

Letters: P parameters, N tokens of an image, K offsets, D width, l aligned block.
"""

from __future__ import annotations

from typing import Any

from mirai.experiments import paths
from mirai.experiments.recipe import GROUP_SIZES, Data, Encoder, Foresight, Model
from mirai.experiments.stages import CodesStage, Phase, StateStage
from mirai.experiments.vits import VITS, shape_of
from mirai.states import is_published, read_json

IMAGES = {"imagenet": 1_281_167, "digits": 1500}  # training images of data sets whose number is known before encoding
ASSUMED = VITS["base"]  # of an encoder whose name does not tell; the plan says so
CURRENT = (0, 0)  # the output level has no head for it (reading 9.14)


def num_images(data: Data, codes: CodesStage) -> int | None:
    """Training images of a data set; None for a folder that nobody has encoded yet."""
    if data.num_images is not None:
        return data.num_images
    manifest = _encoded(codes)
    return IMAGES.get(data.name) if manifest is None else int(manifest["images"])


def num_classes(data: Data, codes: CodesStage) -> int:
    """Classes of a data set; those of a folder that nobody has encoded yet do not count."""
    return data.num_classes or len((_encoded(codes) or {}).get("class_names", ()))


def _encoded(codes: CodesStage) -> dict[str, Any] | None:
    manifest = paths.manifest("codes", codes.key)
    return read_json(manifest) if is_published(manifest) else None


def images_per_epoch(state: StateStage) -> int | None:
    """Images of one epoch: whole batches."""
    batch = state.training.batch_size
    images = state.training.epoch_images or num_images(state.data, state.codes_stage())
    return None if images is None else images // batch * batch


def block_parameters(model: Model) -> int:
    """One transformer block: attention, SwiGLU, two norms. 7,079,424 for B."""
    hidden = -(-(8 * model.width // 3) // model.ffn_multiple) * model.ffn_multiple
    return 4 * model.width**2 + 3 * model.width * hidden + 2 * model.width


def model_parameters(model: Model, classes: int, codebook_size: int) -> int:
    """P_tot: all parameters, both embeddings and the output head. 110,888,448 for B."""
    tables = classes + 1 + 2 * codebook_size + GROUP_SIZES[model.token_order] - 1
    return tables * model.width + model.num_layers * block_parameters(model) + model.width


def parameters(state: StateStage) -> int:
    """P_tot of a state's model."""
    return model_parameters(state.model, num_classes(state.data, state.codes_stage()), state.tokenizer.codebook_size)


def encoder_shape(encoder: Encoder) -> tuple[int, int]:
    """Width and depth of a foresight encoder, or the assumed ones."""
    vit = encoder.training or shape_of(encoder.timm) or ASSUMED
    return vit.width, vit.num_layers


def head_parameters(foresight: Foresight, width: int, codebook_size: int) -> int:
    """All heads of a phase, K of them at the internal level. One MLP at 768: 7,344,896; a transformer one: 7,678,464."""
    if foresight.level == "output":
        return sum(offset != CURRENT for offset in foresight.offsets) * (width + width * codebook_size)
    assert foresight.head is not None
    target = width if foresight.encoder is None else encoder_shape(foresight.encoder)[0]
    if foresight.head.kind != "mlp":
        one = 12 * width**2 + 13 * width + width * target + target
    else:
        hidden = foresight.head.width
        one = (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * target
    return len(foresight.offsets) * one


def heads_of(state: StateStage, phase: Phase) -> int:
    """Parameters of a phase's heads."""
    if phase.foresight is None:
        return 0
    return head_parameters(phase.foresight, state.model.width, state.tokenizer.codebook_size)


def flops_per_image(state: StateStage, phase: Phase, trained: int | None = None) -> int:
    """Table 13: 6 P_tot N + 6 K P_proj N, and for an EMA teacher its forward up to block l: 2 l P_block N + 4 l N^2 D.

    Found by matching the table's figures, to 0.3 %; the paper states no formula. An encoder's forward is not in it
    (`encoder_flops`). For B at 256 px 1.7032e11, Mirai-I 1.8161e11, Mirai-E 2.3478e11. `trained`: P_tot + K P_proj where
    the networks themselves were counted.
    """
    model, tokens = state.model, state.grid_side**2
    flops = 6 * tokens * (parameters(state) + heads_of(state, phase) if trained is None else trained)
    if phase.foresight is not None and phase.foresight.source in ("ema", "pretrained"):
        block = phase.foresight.teacher_layer or phase.foresight.layer
        assert block is not None
        flops += block * (2 * block_parameters(model) * tokens + 4 * tokens**2 * model.width)
    return flops


def encoder_flops(state: StateStage, phase: Phase) -> int:
    """What Table 13 leaves out of Mirai-I: its encoder's forward pass for one image."""
    if phase.foresight is None or phase.foresight.encoder is None:
        return 0
    encoder, tokens = phase.foresight.encoder, state.grid_side**2
    width, depth = encoder_shape(encoder)
    return (encoder.layer or depth) * (2 * 12 * width**2 * tokens + 4 * tokens**2 * width)
