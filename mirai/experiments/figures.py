"""What a figure of a grid shows, as written under `figure:` in its YAML."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from mirai.experiments.recipe import Recipe

Metric = Literal["fid", "sfid", "inception_score", "precision", "recall"]
# separate: every length is a run of its own; trajectory: states on the way of the longest run, drawn thinner. A schedule
# that depends on the length (Mirai-E's step, XL's cosine) makes the two differ.
CurveOf = Literal["separate", "trajectory"]


class Curve(Recipe):
    """A metric along one axis, a line per label; rows that do not set the axis are horizontal lines (Figs. 3, 4, 5, 7)."""

    kind: Literal["curve"]
    x: Literal["epochs", "num_tokens", "block_size", "guidance", "align_layer", "warmup_epochs"]
    metric: Metric = "fid"
    curve: CurveOf = "separate"

    @model_validator(mode="after")
    def _along_epochs(self) -> Self:
        if self.curve == "trajectory" and self.x != "epochs":
            raise ValueError(f"`curve: trajectory` draws states on the way of a run, along `x: epochs`, not {self.x}")
        return self


class Convergence(Recipe):
    """Samples, and the metric against epochs with the epochs that each method needs (Fig. 1).

    Samples are of the longest training that all methods have.
    """

    kind: Literal["convergence"]
    metric: Metric = "fid"
    curve: CurveOf = "separate"
    classes: tuple[int, ...] = Field(min_length=1)  # as in Samples
    per_class: PositiveInt = 2


class Samples(Recipe):
    """Samples of every row at the same classes and seeds (Figs. 8, 10-15)."""

    kind: Literal["samples"]
    # modulo the data set's number of classes; None: its first ones
    classes: tuple[int, ...] | None = Field(default=None, min_length=1)
    per_class: PositiveInt = 2


class TokenMaps(Recipe):
    """t-SNE maps of hidden states on the token grid (Figs. 6, 9)."""

    kind: Literal["token_maps"]
    images: PositiveInt = 4  # pictures drawn
    measured_images: PositiveInt = 16  # pictures behind the smoothness number
    layer: int = Field(default=8, ge=1, le=12)  # block whose output is shown, in twelfths of the depth


class Neighbourhoods(Recipe):
    """The foresight positions that the code uses, drawn on the scale's token grid (Fig. 2)."""

    kind: Literal["neighbourhoods"]
    layouts: tuple[Literal["1D", "2D"], ...] = Field(default=("1D", "2D"), min_length=1)
    num_tokens: tuple[PositiveInt, ...] = Field(default=(1, 3, 4, 9), min_length=1)


Figure = Annotated[Curve | Convergence | Samples | TokenMaps | Neighbourhoods, Field(discriminator="kind")]

DRAWINGS = ("samples", "token_maps", "neighbourhoods")  # drawn without metrics, with data of their own
PLOTS = ("curve", "convergence")  # drawn from a table's metrics
