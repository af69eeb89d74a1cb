"""Scoring samples: those of a stage, or any file of images against any reference."""

from __future__ import annotations

import argparse
from pathlib import Path

from mirai.commands.parsing import Commands, add_command, add_log
from mirai.commands.stages import make_stage
from mirai.errors import UserError

# options that go with --reference only, and their defaults
ALONE = {
    "inception": None,
    "num_samples": None,
    "crop": None,
    "split_size": 5000,
    "kid": False,
    "batch_size": 64,
    "device": None,
    "json": None,
}


def add(commands: Commands) -> None:
    """evaluate."""
    command = add_command(
        commands,
        "evaluate",
        "score samples with ADM's five metrics",
        "With the KEY of a metrics stage: reads samples, tokenizer, reference, features; writes metrics.json in "
        "results/store/metrics/KEY/. With --reference: reads a folder of sampled codes, an .npz (arr_0) or a folder of "
        "images, and prints the metrics. Example: mirai evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz",
    )
    command.add_argument("samples", help="key of a metrics stage, or samples in a file or folder")
    command.add_argument("--reference", type=Path, help="ADM's .npz with statistics, an .npz or a folder of images")
    command.add_argument("--inception", type=Path, help="weights of the network (default: the site's, then weights/)")
    command.add_argument("--num-samples", type=int, help="use only the first so many")
    command.add_argument("--crop", type=int, help="ADM's centre crop to this side, for folders of images of any size")
    command.add_argument("--split-size", type=int, help="images per split of the inception score (default 5000)")
    command.add_argument("--kid", action="store_true", help="the kernel distance (KID) too")
    command.add_argument("--batch-size", type=int, help="images at once through the network (default 64)")
    command.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda if there is one")
    command.add_argument("--json", type=Path, help="file for the numbers and what they were computed from")
    command.set_defaults(run=evaluate, kind="metrics", **ALONE)
    add_log(command)


def evaluate(options: argparse.Namespace) -> int:
    """Make a metrics stage, or score files."""
    if options.reference is None:
        given = [name for name, default in ALONE.items() if getattr(options, name) != default]
        if given:
            raise UserError(f"mirai evaluate: --{given[0].replace('_', '-')} goes with --reference")
        options.key = options.samples
        return make_stage(options)
    for name in ("num_samples", "crop"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"mirai evaluate: --{name.replace('_', '-')} is {value}; at least 1")
    from mirai.launch.slots import held_beside
    from mirai.states import write_json

    with held_beside(options.device):
        from mirai.measure import measure, summary

        result = measure(
            Path(options.samples),
            options.reference,
            inception=options.inception,
            num_samples=options.num_samples,
            crop=options.crop,
            split_size=options.split_size,
            kid=options.kid,
            batch_size=options.batch_size,
            device=options.device,
        )
    print(summary(result))
    if options.json is not None:
        write_json(options.json, result)
    return 0
