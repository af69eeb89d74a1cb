"""FLOPs are Table 13's where its arithmetic is used, and the training's own where they are counted."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mirai.analysis import parameters
from mirai.analysis.flops import by_formula, counted
from mirai.analysis.tables import write_table
from mirai.experiments.plan import plan_grid
from mirai.experiments.recipe import Run
from mirai.experiments.vits import patch_of, shape_of
from mirai.foresight.ema_teacher import EMATeacher
from mirai.foresight.encoders import SmallEncoder
from mirai.foresight.objective import ForesightObjective
from mirai.foresight.vit import SmallViT
from mirai.models.transformer import Transformer
from tests.analysis.pretend import pretend_all, rows_of, text_of
from tests.conftest import WriteGrid

pytestmark = [pytest.mark.usefixtures("project"), pytest.mark.full]


def runs_of(grid: str, scale: str) -> dict[str, Run]:
    """First seed of each row by label."""
    return {row.label: row.runs[0] for row in plan_grid(grid, scale).available()}


def real_model(run: Run) -> Transformer:
    assert run.data.num_classes is not None
    sizes = {"codebook_size": run.tokenizer.codebook_size, "grid_side": run.grid_side}
    return Transformer(run.model, num_classes=run.data.num_classes, **sizes, attention="explicit")


def real_step(run: Run) -> int:
    """What the counter sees of a training step on one image, made of the modules that training uses."""
    model, n = real_model(run), run.grid_side**2
    codes, label = torch.zeros(1, n, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    foresight, teacher = run.foresight, None
    assert foresight is not None
    if foresight.encoder is not None:
        sizes, side = foresight.encoder.training, run.data.resolution
        assert sizes is not None
        vit = SmallViT(side, 8, sizes.width, sizes.num_layers, sizes.num_heads, torch.Generator())
        encoder = SmallEncoder(vit, foresight.encoder.layer)
        width = encoder.width
    else:
        assert foresight.layer is not None
        ema = copy.deepcopy(model).requires_grad_(False)
        teacher = EMATeacher(ema, foresight.teacher_layer or foresight.layer, consumed=True)
        width = run.model.width
    positions = None if model.order.is_raster else model.positions
    objective = ForesightObjective(foresight, run.model.width, width, run.grid_side, torch.Generator(), positions)
    with FlopCounterMode(display=False) as counter:
        targets = encoder(torch.zeros(1, 3, side, side)) if teacher is None else teacher(codes, label)
        logits, hidden = model(codes, label, foresight.layer)
        assert hidden is not None
        loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten()) + objective.loss(hidden, targets)[0]
        loss.backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("grid", "label"), [("table13", "+ Mirai-I"), ("table13", "+ Mirai-E"), ("table12", "+ Mirai-E")]
)
def test_what_is_counted_without_weights_is_what_a_training_step_does(grid: str, label: str) -> None:
    run = runs_of(grid, "digits")[label]
    assert counted(run).total == real_step(run)


def test_attention_is_what_products_with_weights_leave_of_the_model() -> None:
    run = runs_of("table13", "digits")["LlamaGen-B"]
    weights = [p for name, p in real_model(run).named_parameters() if p.ndim == 2 and "embedding" not in name]
    found = counted(run)
    assert found.model == found.attention + 6 * run.grid_side**2 * sum(p.numel() for p in weights)
    assert (found.heads, found.targets, found.total) == (0, 0, found.model)


def test_parameters_are_those_of_the_real_modules() -> None:
    run = runs_of("table13", "digits")["+ Mirai-I"]
    assert parameters.parameters(run) == sum(p.numel() for p in real_model(run).parameters())
    assert parameters.encoder_parameters(run) == sum(
        p.numel() for p in SmallViT(32, 8, 48, 2, 2, torch.Generator()).parameters()
    )
    assert parameters.head_parameters(run) == 32 * 64 + 64 + 64 * 64 + 64 + 64 * 48 + 48


def test_parameters_of_the_papers_sizes_and_heads() -> None:
    sizes = {"LlamaGen-B": 110_888_448, "LlamaGen-L": 342_910_976, "LlamaGen-XL": 774_699_520}
    rows = [row for row in plan_grid("table6", "imagenet256").available() if row.label in sizes]
    assert {row.label: parameters.parameters(row.runs[0]) for row in rows} == sizes
    heads = [parameters.head_parameters(row.runs[0]) for row in plan_grid("table9", "imagenet256").rows[3:]]
    assert heads == [7_344_896, 7_678_464]


def test_the_papers_arithmetic_gives_table_13() -> None:
    baseline, mirai_i, mirai_e = (by_formula(run) for run in runs_of("table13", "imagenet256").values())
    assert (baseline, mirai_i, mirai_e) == pytest.approx((1.7032e11, 1.8161e11, 2.3478e11), rel=5e-5)
    assert 100 * (mirai_i / baseline - 1) == pytest.approx(6.62, abs=0.005)
    assert 100 * (mirai_e / baseline - 1) == pytest.approx(37.84, abs=0.005)


def test_timm_builds_what_a_plain_vits_name_tells() -> None:
    known = 0
    for name in timm.list_models("vit_*"):
        if shape_of(name) is not None:
            with torch.device("meta"):
                vit = timm.create_model(name, num_classes=0)
            found = (vit.num_features, len(vit.blocks)), vit.patch_embed.patch_size[0]
            assert found == (shape_of(name), patch_of(name)), name
            known += 1
    assert known > 50


def test_the_papers_arithmetic_counts_the_heads_that_an_encoder_really_needs(write_grid: WriteGrid) -> None:
    encoder = {"name": "any", "timm": "vit_tiny_patch16_224.augreg_in21k", "image_size": 256}
    (row,) = plan_grid(write_grid({"arm": "mirai-i", "encoder": encoder}), "imagenet256").rows
    run = row.runs[0]
    assert parameters.head_parameters(run) == 769 * 2048 + 2049 * 2048 + 2049 * 192
    assert by_formula(run) == 6 * 256 * (110_888_448 + 769 * 2048 + 2049 * 2048 + 2049 * 192)


def test_an_encoder_of_timm_is_counted_without_its_weights() -> None:
    run = runs_of("table13", "imagenet256")["+ Mirai-I"]
    assert counted(run).targets == pytest.approx(4.63e10, rel=1e-3)  # DINOv2-B at 224 px: reference 7.5
    assert parameters.encoder_parameters(run) == 85_724_928


def test_table_13_holds_costs_beside_the_papers_and_what_convergence_is_worth() -> None:
    grid = plan_grid("table13", "digits")
    pretend_all(grid, lambda run: 0.0)
    # the baseline's FID falls to 6 at 400 epochs, which both methods reach between 40 and 80
    pretend_all(plan_grid("figure1", "digits"), lambda run: (10 if run.foresight is None else 6.5) - run.epochs / 100)
    write_table(grid)
    baseline, mirai_i, mirai_e = rows_of(grid)
    assert (baseline["overhead_percent"], baseline["speed_up_from"]) == ("", "")
    assert (mirai_e["paper_overhead_percent"], mirai_e["paper_speed_up"]) == ("38.2", "3.6")
    ratio = int(mirai_e["flops"]) / int(baseline["flops"])
    assert float(mirai_e["overhead_percent"]) == pytest.approx(100 * (ratio - 1), abs=1e-3)
    assert float(mirai_e["speed_up_from"]) == pytest.approx(400 / 80 / ratio, abs=1e-3)
    assert float(mirai_e["speed_up_below"]) == pytest.approx(400 / 40 / ratio, abs=1e-3)
    honest = int(mirai_i["counted_total"]) / int(baseline["counted_total"])
    assert honest > int(mirai_i["flops"]) / int(baseline["flops"])  # the encoder
    assert float(mirai_i["counted_speed_up_from"]) == pytest.approx(5 / honest, abs=1e-3)
    assert "| + Mirai-E | 165k + 3 × 8.35k |" in text_of(grid, ".md")
    assert "| 40–80 | 5.0–10.0× |" in text_of(grid, ".md")
    assert "FLOPs cannot" in text_of(grid, ".md")
    assert "attention counted in the EMA's pass only, no encoder" in text_of(grid, ".md")
    assert "No baseline" not in text_of(grid, ".md")
    assert text_of(grid, ".tex").isascii()
