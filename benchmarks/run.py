"""A training step of the demo's model by attention kernel and precision: `make bench`. Prints ratios within this run.

Variants take turns, one step each per round, so that a slow moment of the machine hits all of them alike; the median
over rounds is compared. One thread, as the scale says.
"""

from __future__ import annotations

import itertools
import statistics
import time

import torch

from mirai.experiments.scale import load_scale
from mirai.models.transformer import Transformer
from mirai.training.loss import TrainingLoss
from mirai.training.state import TrainState

ROUNDS = 12
WARMUP = 2  # rounds that are not counted


def main() -> None:
    """Time all variants and print milliseconds and ratios to the scale's own choice."""
    scale = load_scale("demo")
    torch.set_num_threads(scale.numerics.threads or 1)
    batch, side = scale.training.batch_size, scale.data.resolution // scale.tokenizer.downsampling
    codes = scale.tokenizer.codebook_size
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(codes, (batch, side * side), generator=generator)
    labels = torch.randint(10, (batch,), generator=generator)

    steps = {}
    for kernel, dtype in itertools.product(("explicit", "flash"), ("bfloat16", "float32")):
        model = Transformer(
            scale.sizes["B"].model, num_classes=10, codebook_size=codes, grid_side=side, attention=kernel
        )
        model.init_weights(0)
        state = TrainState(model.train(), scale.training)
        steps[kernel, dtype] = (state, TrainingLoss(model, None, None))

    seconds: dict[tuple[str, str], list[float]] = {variant: [] for variant in steps}
    for turn in range(WARMUP + ROUNDS):
        for (kernel, dtype), (state, loss) in steps.items():
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                value, _ = loss(tokens, labels, None, 0.0)
            state.optimizer.zero_grad()
            value.backward()
            state.clip_gradients()
            state.optimizer.step()
            state.update_ema()
            if turn >= WARMUP:
                seconds[kernel, dtype].append(time.perf_counter() - started)

    medians = {variant: statistics.median(times) for variant, times in seconds.items()}
    own = medians[scale.numerics.attention, scale.training.dtype]
    print(f"training step, 12 layers, batch {batch}, {side * side} tokens, one thread, {ROUNDS} rounds")
    for (kernel, dtype), median in sorted(medians.items(), key=lambda item: item[1]):
        print(f"  {kernel:<8} {dtype:<8} {1000 * median:6.0f} ms  {median / own:.2f} of the demo's choice")


if __name__ == "__main__":
    main()
