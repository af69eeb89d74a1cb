"""Drawing samples from a trained state or from released weights, and turning samples into pixels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mirai.commands.parsing import Commands, add_command, add_log
from mirai.commands.stages import make_stage
from mirai.errors import UserError

if TYPE_CHECKING:
    from mirai.experiments.recipe import Sampling

WAYS = (
    "mirai sample takes one of: the key of a samples stage; --state KEY with --classes and --grid; "
    "--weights FOLDER with --classes and --grid, or with --num-samples and --out"
)


def add(commands: Commands) -> None:
    """sample, export, reconstruct."""
    sample = add_command(
        commands,
        "sample",
        "sample codes for a table, a picture of chosen classes, or many samples of released weights",
        "With KEY: reads weights.json; writes samples.json and shards in results/store/samples/KEY/. With --state or "
        "--weights (a folder made by `mirai import`): reads the model and its tokenizer; writes a picture, or with --out "
        "samples.json and shards. Example: mirai sample --weights imported/ --classes 207 817 975 --cfg 4 --top-k 2000 "
        "--grid out.png",
    )
    sample.add_argument("key", nargs="?", help="key of a samples stage")
    sample.add_argument("--state", help="key of a trained state")
    sample.add_argument("--ema", action="store_true", help="the state's averaged weights instead of the raw ones")
    sample.add_argument("--weights", type=Path, help="folder of imported weights")
    sample.add_argument("--tokenizer", type=Path, help="folder of their tokenizer (default: the only one beside them)")
    sample.add_argument("--classes", type=int, nargs="+", help="class numbers, one column each")
    sample.add_argument("--grid", type=Path, help="PNG to write")
    sample.add_argument("--rows", type=int, default=4, help="samples per class (default 4)")
    sample.add_argument("--num-samples", type=int, help="classes drawn uniformly, as for a table of 50,000")
    sample.add_argument(
        "--out", type=Path, help="folder for these samples; `mirai evaluate` and `mirai export` read it"
    )
    sample.add_argument("--batch-size", type=int, default=32, help="images at once, with --num-samples (default 32)")
    sample.add_argument("--cfg", "--guidance", dest="guidance", type=float, default=2.0, help="guidance (default 2)")
    sample.add_argument("--top-k", type=int, default=0, help="sample from the k likeliest codes only (default 0: all)")
    sample.add_argument(
        "--top-p", type=float, default=1.0, help="from the likeliest codes of this mass (default 1: all)"
    )
    sample.add_argument("--temperature", type=float, default=1.0, help="divides the logits (default 1)")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument(
        "--device", choices=["cuda", "cpu"], help="(default: cuda if there is one); a state's scale says its own"
    )
    sample.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of --weights")
    add_log(sample)
    sample.set_defaults(run=draw_samples, kind="samples")

    export = add_command(
        commands,
        "export",
        "decode samples to pixels for other tools",
        "Reads samples and their tokenizer; writes an ADM .npz (arr_0, uint8) or a folder of PNGs. "
        "Example: mirai export 5d1a0f3b6c7e8d92 --npz samples.npz",
    )
    export.add_argument("samples", help="key of a samples stage, or a folder written by `mirai sample --out`")
    export.add_argument("--size", type=int, help="side to resize to, bicubic before rounding (384 px models: 256)")
    target = export.add_mutually_exclusive_group(required=True)
    target.add_argument("--npz", type=Path, help="file to write")
    target.add_argument("--png", type=Path, help="folder to write")
    export.set_defaults(run=export_samples)

    reconstruct = add_command(
        commands,
        "reconstruct",
        "encode and decode images, to score a tokenizer",
        "Reads a folder of images and an imported or trained tokenizer; writes an .npz whose FID against the folder is "
        "the tokenizer's rFID. Example: mirai reconstruct imagenet/val --tokenizer imported/vq_ds16_c2i --npz rec.npz",
    )
    reconstruct.add_argument("images", type=Path, help="folder of images of any size")
    reconstruct.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    reconstruct.add_argument("--resolution", type=int, default=256, help="side of the centre crop (default 256)")
    reconstruct.add_argument("--size", type=int, help="side to resize to, bicubic before rounding")
    reconstruct.add_argument("--npz", type=Path, required=True, help="file to write")
    reconstruct.set_defaults(run=reconstruct_images)


def draw_samples(options: argparse.Namespace) -> int:
    """Run `mirai sample` in the one way that its options name."""
    picture = bool(options.classes) and options.grid is not None
    many = options.num_samples is not None and options.out is not None
    given = [value for value in (options.key, options.state, options.weights) if value is not None]
    if len(given) != 1 or (options.key is None and picture + many != 1) or (options.state is not None and many):
        raise UserError(WAYS)
    _refuse_unread(options, "KEY" if options.key else "--state" if options.state else "--out" if many else "--grid")
    if options.key is not None:
        return make_stage(options)
    if many:
        return _draw_many(options)
    _draw_picture(options)
    return 0


SETTINGS: dict[str, object] = {
    "guidance": 2.0,
    "top_k": 0,
    "top_p": 1.0,
    "temperature": 1.0,
    "seed": 0,
}
# what each way to sample does not look at, with the defaults
RELEASED: dict[str, object] = {"tokenizer": None, "device": None, "dtype": "bfloat16"}
PICTURE: dict[str, object] = {"classes": None, "grid": None, "rows": 4}
MANY: dict[str, object] = {"num_samples": None, "out": None, "batch_size": 32}
UNREAD: dict[str, dict[str, object]] = {
    "KEY": SETTINGS | RELEASED | PICTURE | MANY | {"ema": False},
    "--state": RELEASED | MANY,
    "--grid": MANY | {"ema": False},
    "--out": PICTURE | {"ema": False},
}


def _refuse_unread(options: argparse.Namespace, way: str) -> None:
    """UserError for an option that this way to sample would not look at."""
    given = [name for name, default in UNREAD[way].items() if getattr(options, name) != default]
    if given:
        raise UserError(f"mirai sample with {way} takes no --{given[0].replace('guidance', 'cfg').replace('_', '-')}")


def _sampling(options: argparse.Namespace, num_samples: int, batch_size: int) -> Sampling:
    """The options as a recipe; UserError for values that make no sense."""
    from mirai.experiments.recipe import Sampling
    from mirai.experiments.yaml_input import validate

    names = ("guidance", "temperature", "top_k", "top_p", "seed", "dtype")
    values = {name: getattr(options, name) for name in names}
    return validate(Sampling, {"num_samples": num_samples, "batch_size": batch_size, **values}, "mirai sample")


def _draw_picture(options: argparse.Namespace) -> None:
    count = len(options.classes) * options.rows
    sampling = _sampling(options, count, count)
    if options.grid.suffix != ".png":
        raise UserError(f"--grid {options.grid}: the picture is written as PNG; give a name that ends in .png")
    from mirai.experiments.plan import lookup
    from mirai.launch.slots import held_beside, held_for

    of_state = options.state is not None
    with held_for("samples", lookup(options.state).scale) if of_state else held_beside(options.device):
        from mirai.analysis.pictures import draw_classes, open_trained
        from mirai.imports import open_imported

        if of_state:
            model, tokenizer = open_trained(options.state, "ema" if options.ema else "raw")
        else:
            imported = open_imported(
                options.weights, tokenizer=options.tokenizer, device=options.device, dtype=sampling.dtype
            )
            model, tokenizer = imported.model, imported.tokenizer_folder
        draw_classes(model, tokenizer, sampling, classes=options.classes, path=options.grid)


def _draw_many(options: argparse.Namespace) -> int:
    sampling = _sampling(options, options.num_samples, options.batch_size)
    from mirai.experiments.site import load_site
    from mirai.launch.ranks import is_rank, run_ranks
    from mirai.launch.slots import held_beside

    count = load_site().ranks
    with held_beside(options.device, count) as inherited:
        if count > 1 and not is_rank():
            return run_ranks(options.arguments, count, inherited)
        import torch

        from mirai.imports import sample_imported
        from mirai.ranks import ranks_of

        with ranks_of(options.device or ("cuda" if torch.cuda.is_available() else "cpu")) as ranks:
            sample_imported(options.weights, options.out, sampling, ranks, tokenizer=options.tokenizer)
    return 0


def _refuse_sides(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        side = getattr(options, name)
        if side is not None and side < 1:
            raise UserError(f"--{name} is {side}; at least 1")


def export_samples(options: argparse.Namespace) -> None:
    """Decode samples to an .npz or to PNGs."""
    _refuse_sides(options, "size")
    from mirai.experiments.plan import lookup
    from mirai.launch.slots import held_beside, held_for

    of_folder = Path(options.samples).is_dir()
    with held_beside(None) if of_folder else held_for("samples", lookup(options.samples).scale):
        from mirai import export

        export.export_samples(options.samples, npz=options.npz, png=options.png, size=options.size)


def reconstruct_images(options: argparse.Namespace) -> None:
    """Write a tokenizer's reconstructions of a folder of images."""
    _refuse_sides(options, "resolution", "size")
    from mirai.launch.slots import held_beside

    with held_beside(None):
        from mirai.export import reconstruct

        reconstruct(options.images, options.tokenizer, options.npz, resolution=options.resolution, size=options.size)
