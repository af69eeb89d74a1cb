"""Recipes: every value that decides a result, typed, frozen and fully resolved.

A recipe holds names, versions and values, never a path, a machine or a log interval. Letters in comments: B batch,
N tokens of an image (grid side squared), K foresight positions, V codebook size.
"""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from mirai.experiments.offsets import written_later
from mirai.experiments.vits import shape_of


class Recipe(BaseModel):
    """Base of all recipe types: immutable, no unknown keys, no silent conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Recipe):
    """A data set by name. `num_images`, `seed` belong to generated sets; a folder's size is in its code store's manifest."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    source: Literal["scenes", "digits", "folder"]
    resolution: PositiveInt
    num_classes: PositiveInt | None = None  # None: as many as the folder has
    num_images: PositiveInt | None = None  # scenes only: how many training scenes are drawn
    seed: NonNegativeInt = 0  # scenes only: the stream of the training scenes
    crop_range: float = Field(
        default=1.1, ge=1.0, le=2.0
    )  # ADM centre crop to int(resolution * crop_range), reading 9.13
    views: Literal[1, 2, 10] = 10  # centre | centre and its flip | torchvision's ten crop
    corrupt_images: Literal["skip", "refuse"] = "refuse"  # folder only; skipped files are counted in the manifest

    @model_validator(mode="after")
    def _size(self) -> Self:
        if self.source == "scenes" and self.num_images is None:
            raise ValueError("scenes are generated, so `num_images` must say how many")
        return self


class Adversarial(Recipe):
    """LlamaGen's PatchGAN against a tokenizer's decoder, with hinge losses; optimised as the tokenizer is."""

    weight: PositiveFloat = 0.5
    start_step: PositiveInt = 20000  # counted from 1; before it neither network sees the other


class TokenizerTraining(Recipe):
    """Training of a tokenizer. The defaults suit a small one in few steps; LlamaGen's values stand behind `LlamaGen:`."""

    steps: PositiveInt
    batch_size: PositiveInt
    micro_batch: PositiveInt | None = None  # images a pass, and in a batch norm's statistics. LlamaGen: 16, 8 GPUs
    learning_rate: PositiveFloat
    lr_schedule: Literal["cosine", "constant"] = "cosine"  # cosine: to 0, after a warm-up. LlamaGen: constant
    betas: tuple[float, float] = (0.9, 0.99)  # LlamaGen: 0.9, 0.95
    num_images: PositiveInt  # drawn from a stream of their own where the data are generated
    augment: bool = False  # LlamaGen: shuffled passes, random crops and flips; else centre crops drawn at random
    init: Literal["near-linear", "pytorch"] = "near-linear"  # LlamaGen: pytorch, with unit codebook rows
    commitment: PositiveFloat = 0.25  # LlamaGen's beta
    perceptual_weight: float = Field(default=0.0, ge=0)  # of LPIPS with VGG16. LlamaGen: 1
    adversarial: Adversarial | None = None  # LlamaGen: its defaults
    restart_every: PositiveInt | None = 50  # steps between dead-code restarts. LlamaGen: none
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.micro_batch and (self.micro_batch >= self.batch_size or self.batch_size % self.micro_batch):
            raise ValueError(f"micro_batch {self.micro_batch} must be a part of batch_size {self.batch_size}")
        if self.adversarial and self.adversarial.start_step > self.steps:
            raise ValueError(f"adversarial starts at step {self.adversarial.start_step} of {self.steps}, so never")
        return self


class Tokenizer(Recipe):
    """VQGAN of LlamaGen's structure (reference: VQ-16 is 128 x (1,1,2,2,4)). Either released weights or a training."""

    name: str
    channels: PositiveInt = 128
    multipliers: tuple[PositiveInt, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1)  # all but the last halve sides
    res_blocks: PositiveInt = 2
    z_channels: PositiveInt = 256
    codebook_size: int = Field(default=16384, gt=1, le=65536)  # codes are stored as uint16
    codebook_dim: PositiveInt = 8
    group_norm_groups: PositiveInt = 32
    weights: str | None = None  # name of released weights, e.g. vq_ds16_c2i
    training: TokenizerTraining | None = None

    @property
    def downsampling(self) -> int:
        """Pixels per token and side."""
        return int(2 ** (len(self.multipliers) - 1))

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.weights is None) == (self.training is None):
            raise ValueError("a tokenizer has either `weights` (released ones, by name) or `training`, not both")
        return self


HeadKind = Literal["mlp", "causal-transformer", "transformer"]  # causal: sees no cell that is written later
GROUP_SIZES = {"raster": 1, "par-4x": 4, "par-16x": 16}  # P: tokens written at once, by token order


class Model(Recipe):
    """LlamaGen's transformer. Codebook size and classes come from the tokenizer and the data."""

    num_layers: PositiveInt
    num_heads: PositiveInt
    width: PositiveInt
    ffn_multiple: PositiveInt = 256  # hidden FFN width is int(2/3 * 4 * width) rounded up to a multiple of this
    token_dropout: float = Field(default=0.1, ge=0, lt=1)  # on the input embeddings, class token included
    attention_dropout: float = Field(default=0.1, ge=0, lt=1)  # after the attention's output projection (reading 9.1)
    ffn_dropout: float = Field(default=0.1, ge=0, lt=1)
    class_dropout: float = Field(default=0.1, ge=0, lt=1)  # label replaced by the null class, for guidance
    token_order: Literal["raster", "par-4x", "par-16x"] = "raster"  # PAR: parallelised AR (Table 12)

    @property
    def regions_across(self) -> int:
        """Into how many regions the token order cuts each side of the grid."""
        return math.isqrt(GROUP_SIZES[self.token_order])

    @model_validator(mode="after")
    def _head_width(self) -> Self:
        if self.width % self.num_heads or (self.width // self.num_heads) % 4:
            raise ValueError(
                f"width {self.width} over {self.num_heads} heads must give a head width divisible by 4 (2D RoPE)"
            )
        return self


class EncoderTraining(Recipe):
    """Training of a small bidirectional ViT; `objective: none` is the random control."""

    objective: Literal["mae", "supervised", "none"]
    width: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    steps: int = Field(ge=0)
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    num_images: PositiveInt
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)  # MAE only
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _head_width(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is no multiple of {self.num_heads} heads")
        return self


class Encoder(Recipe):
    """A frozen bidirectional foresight encoder: a timm ViT by name, or a small one trained here."""

    name: str  # what a table prints; a stand-in never carries the name of what it stands for
    timm: str | None = None  # timm model name
    training: EncoderTraining | None = None
    image_size: PositiveInt | None = None  # timm: side of its input; None for a small ViT, which takes any image
    layer: PositiveInt | None = None  # block whose raw output is the target; None: last block after the final norm
    block_size: PositiveInt | None = None  # block-causal attention (Fig. 3); None: full attention

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.timm is None) == (self.training is None):
            raise ValueError("an encoder has either `timm` (a model name) or `training`, not both")
        if (self.timm is None) != (self.image_size is None):
            raise ValueError(
                "`image_size` goes with `timm`, and only there: what is trained here takes images as they are"
            )
        vit = self.training or shape_of(self.timm)
        if vit and self.layer and self.layer > vit.num_layers:
            raise ValueError(f"encoder layer {self.layer} is above the encoder's depth {vit.num_layers}")
        return self


class Schedule(Recipe):
    """lambda over a run (Sec. 3.2, Table 3); step and thirds switch at fractions of the total epochs (reading 9.9)."""

    kind: Literal["constant", "step", "thirds", "cosine"]
    values: tuple[float, ...]  # constant: 1 value; step, cosine: start, end; thirds: 3 values
    warmup_epochs: int = Field(default=0, ge=0)  # epochs of plain next-token training first, whatever the length

    @model_validator(mode="after")
    def _values(self) -> Self:
        wanted = {"constant": 1, "step": 2, "thirds": 3, "cosine": 2}[self.kind]
        if len(self.values) != wanted or min(self.values) < 0:
            raise ValueError(
                f"a {self.kind} schedule takes {wanted} value(s) of lambda, none negative; got {self.values}"
            )
        return self


class Cosine(Recipe):
    """A coefficient on its way from `start` to `end` over the total epochs of a run, of which a phase is a part."""

    start: float
    end: float
    total_epochs: PositiveInt


class Head(Recipe):
    """Projection head rho_k: the three-layer SiLU MLP of REPA, or one transformer block (Sec. B, Table 9)."""

    kind: HeadKind = "mlp"
    width: PositiveInt = 2048  # of the MLP's hidden layers


class Teacher(Recipe):
    """Whose EMA "Mirai-E (Pretrained)" looks at: the baseline of the same data, model and training (reading 9.16)."""

    epochs: PositiveInt = 300
    seed: NonNegativeInt = 0


class Foresight(Recipe):
    """The foresight term of Eq. 10: where it is injected, which positions it looks at, and where it comes from."""

    level: Literal["internal", "output"] = "internal"
    # ema: of the model that is trained; pretrained: of a finished baseline; None at the output level: tokens (Eq. 5)
    source: Literal["ema", "pretrained", "encoder"] | None = "ema"
    layout: Literal["1D", "2D"] = "2D"
    offsets: tuple[tuple[int, int], ...]  # 2D: (rows down, columns right); 1D: (0, steps along the raster scan)
    layer: PositiveInt | None = 8  # student block whose output is aligned, 1-based; None at the output level
    teacher_layer: PositiveInt | None = None  # EMA block that gives the targets; None: `layer`
    ema_slot_shift: Literal[0, 1] = 1  # 1: the teacher state has consumed the token it stands for (reading 9.2 B)
    borders: Literal["valid", "all"] = "valid"  # average over pairs inside the grid, or divide by N*K (reading 9.4)
    seams: Literal["mask", "keep"] = "mask"  # PAR: pairs whose neighbour is written earlier (reading 9.19)
    encoder: Encoder | None = None
    teacher: Teacher | None = None
    head: Head | None = Head()
    schedule: Schedule | None = None  # None inside a timeline, where the phase carries its lambda

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.level == "output") != (self.source is None):
            raise ValueError("output-level foresight predicts tokens: `source` is null there, and only there")
        for name, source in (("encoder", "encoder"), ("teacher", "pretrained")):
            if (self.source == source) != (getattr(self, name) is not None):
                raise ValueError(f"`{name}` is given exactly when `source` is '{source}'")
        if self.level == "internal" and (self.layer is None or self.head is None):
            raise ValueError("foresight at the internal level needs a `layer` to align and a `head`")
        if not self.offsets or len(set(self.offsets)) != len(self.offsets):
            raise ValueError(f"`offsets` must name at least one position and none twice; got {self.offsets}")
        for down, right in self.offsets:
            if down < 0 or (down == 0 and right < 0) or (self.layout == "1D" and down != 0):
                raise ValueError(
                    f"offset ({down}, {right}) is not foresight: it must not lie before the current position"
                )
        return self


class Training(Recipe):
    """Optimisation of the AR model (Sec. 3.1, A)."""

    batch_size: PositiveInt  # global, over all ranks
    epoch_images: PositiveInt | None = None  # virtual epoch: the unit only; None: the whole data set
    learning_rate: PositiveFloat = 1e-4
    lr_schedule: Literal["constant", "cosine"] = "constant"  # cosine: per step to 0 over all epochs (reading 9.12)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.05, ge=0)
    clip_norm: PositiveFloat = 1.0
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)  # tau
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of autocast; weights, EMA and optimiser are float32
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        if self.epoch_images is not None and self.epoch_images % self.batch_size:
            raise ValueError(f"epoch_images {self.epoch_images} must be a multiple of batch_size {self.batch_size}")
        return self


class Sampling(Recipe):
    """How samples are drawn; each is a function of (seed, its index) alone."""

    num_samples: PositiveInt
    batch_size: PositiveInt
    guidance: float = Field(default=2.0, ge=1.0)
    temperature: PositiveFloat = 1.0
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    weights: Literal["raw", "ema"] = "raw"  # LlamaGen samples raw weights (reading 9.10)
    labels: Literal["uniform", "balanced"] = "uniform"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    seed: NonNegativeInt = 0


class FeatureNetwork(Recipe):
    """The network behind the Frechet distances: ADM's Inception, or a small one trained here on image factors."""

    name: str
    kind: Literal["inception", "trained"]
    targets: Literal["factors", "moments"] | None = None  # scene factors, or moments of the pixels of real images
    width: PositiveInt | None = None  # of the pooled features
    spatial_channels: PositiveInt | None = None  # times the last map's cells = width of the spatial features
    steps: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    learning_rate: PositiveFloat | None = None
    num_images: PositiveInt | None = None
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _trained(self) -> Self:
        values = [getattr(self, name) for name in type(self).model_fields if name not in ("name", "kind", "seed")]
        if (self.kind == "trained") != all(value is not None for value in values):
            raise ValueError(
                "a trained feature network states targets, width, spatial_channels and its training; inception none of them"
            )
        return self


class Evaluation(Recipe):
    """The five ADM metrics of one sample set against one reference set."""

    features: FeatureNetwork
    reference: str | None = None  # name of a published reference file (ADM's .npz); None: the data set's own images
    num_reference: PositiveInt  # images behind the manifold, and, without a published file, behind the statistics
    image_size: PositiveInt | None = None  # side of samples (384 px resized to 256) and reference; None: as decoded
    is_split_size: PositiveInt = 5000
    neighbours: PositiveInt = 3  # k of precision and recall
    halves: int = Field(default=0, ge=0)  # random halves of the samples behind the printed spread of one state; not 1

    @field_validator("halves")
    @classmethod
    def _some_halves(cls, halves: int) -> int:
        if halves == 1:
            raise ValueError("one half has no spread; 0 for none, or at least 2")
        return halves


class Run(Recipe):
    """One training with what is sampled from it and how that is scored."""

    data: Data
    tokenizer: Tokenizer
    model: Model
    foresight: Foresight | None = None
    training: Training
    epochs: PositiveInt
    at_epoch: PositiveInt | None = None  # sample the state after so many of its epochs; None: after all of them
    sampling: Sampling
    evaluation: Evaluation

    @property
    def grid_side(self) -> int:
        """Tokens per side of the image."""
        return self.data.resolution // self.tokenizer.downsampling

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.data.resolution % self.tokenizer.downsampling:
            raise ValueError(
                f"resolution {self.data.resolution} is no multiple of the tokenizer's downsampling {self.tokenizer.downsampling}"
            )
        across = self.model.regions_across
        if self.grid_side % across or self.grid_side == across > 1:
            raise ValueError(
                f"token_order {self.model.token_order} cuts the grid into {across}x{across} equal regions of several "
                f"tokens, so {across} must be a proper divisor of its side, which is {self.grid_side} tokens"
            )
        if self.at_epoch is not None and self.at_epoch > self.epochs:
            raise ValueError(f"at_epoch {self.at_epoch} is after the last of {self.epochs} epochs")
        if self.foresight is not None:
            self._check_foresight(self.foresight)
        return self

    def _check_foresight(self, foresight: Foresight) -> None:
        depth, side = self.model.num_layers, self.grid_side
        for name in ("layer", "teacher_layer"):
            layer = getattr(foresight, name)
            if layer is not None and layer > depth:
                raise ValueError(f"foresight {name} {layer} is above the model's depth {depth}")
        reach = side * side if foresight.layout == "1D" else side
        for down, right in foresight.offsets:
            if max(down, abs(right)) >= reach:
                raise ValueError(f"offset ({down}, {right}) leaves the {side}x{side} token grid everywhere")
            ahead = written_later((down, right), foresight.layout, side, self.model.regions_across)
            if foresight.seams == "mask" and not any(ahead):
                raise ValueError(f"offset ({down}, {right}) is nowhere foresight in order {self.model.token_order}")
        if foresight.schedule is None:
            raise ValueError("foresight without a `schedule` has no lambda")
        if foresight.schedule.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {foresight.schedule.warmup_epochs} leaves no epoch of {self.epochs} for foresight"
            )
