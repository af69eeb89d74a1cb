"""What is still to do, in FLOPs, hours and bytes, before anything runs: measured where this folder has logs, else assumed."""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mirai.errors import UserError
from mirai.experiments import flops, paths
from mirai.experiments.journals import logged, sharing
from mirai.experiments.plan import Planned, lookup
from mirai.experiments.public_files import shown_bytes
from mirai.experiments.savings import size_of
from mirai.experiments.scale import ON_CPU, Scale
from mirai.experiments.site import load_site
from mirai.experiments.stages import CodesStage, SamplesStage, Stage, StateStage
from mirai.experiments.tree import Node, Tree
from mirai.experiments.vits import shape_of
from mirai.states import is_published, read_json

# Dense bfloat16 peak of the makers' data sheets (V100: float16), in FLOP/s.
PEAKS = {
    "v100": 125e12,
    "a100": 312e12,
    "l40s": 362e12,
    "h100": 989e12,
    "h200": 989e12,
    "b200": 2250e12,
    "rtx3090": 71e12,
    "rtx4090": 165e12,
}
UTILISATION, SAMPLING_UTILISATION = 0.35, 0.05  # of the peak, assumed: training; token by token with a cache
DEFAULT_GPU = "h100"
# What a job on a GPU keeps the host busy for, assumed (docs/pilot.md): a step of 12 layers starts 1,100 to 2,000 kernels.
GPU_STEP_SECONDS, GPU_START_SECONDS = 0.03, 6.5
# One thread of a server's CPU, in the demo (docs/performance.md): a step of 12 layers costs this before any arithmetic.
CPU_RATE, CPU_STEP_SECONDS, CPU_START_SECONDS = 60e9, 0.025, 10.0
CPU_SECONDS = {"tokenizer": 90, "codes": 30, "encoder": 90, "features": 90, "reference": 30, "metrics": 20}  # a job


@dataclass(frozen=True)
class Measured:
    """What the finished trainings of one model and grid have shown, per GPU, however many shared it, or per rank."""

    rate: float  # FLOP/s, encoders' forward passes counted
    images_per_second: float
    device: str
    trainings: int


@dataclass(frozen=True)
class Work:
    """The unfinished trainings of one model and grid."""

    size: str
    images: int
    steps: int
    jobs: int
    formula: int  # FLOPs as Table 13 counts them
    encoders: int  # and those of encoders, which it leaves out
    measured: Measured | None

    def seconds(self, gpu: float | None, sharing: int = 1) -> float:
        """On one GPU with this peak, whose jobs' hosts are busy `sharing` at a time; None: on one CPU rank."""
        total = self.formula + self.encoders
        if self.measured is not None:
            return total / self.measured.rate
        if gpu is not None:
            host = self.steps * GPU_STEP_SECONDS / sharing
            return max(total / (gpu * UTILISATION), host) + self.jobs * GPU_START_SECONDS / sharing
        return total / CPU_RATE + self.steps * CPU_STEP_SECONDS + self.jobs * CPU_START_SECONDS


def refuse_unknown(gpu: str | None) -> None:
    """UserError for a GPU that is not in the table."""
    if gpu is not None and gpu not in PEAKS:
        raise UserError(f"--gpu {gpu} is not known; known are {', '.join(PEAKS)}")


def estimate(tree: Tree, scale: Scale, gpu: str | None) -> list[str]:
    """What the unfinished stages of a tree cost, as lines."""
    todo = [node for node in tree.nodes.values() if not is_published(paths.manifest("state", node.state.key))]
    others = [one for one in tree.others.values() if not is_published(paths.manifest(one.kind, one.key))]
    if not todo and not others:
        return ["nothing is left to do"]
    unknown = {node.state.data.name for node in todo if flops.images_per_epoch(node.state) is None}
    if unknown:
        return [f"no estimate: nobody has counted the images of {', '.join(sorted(unknown))} yet; encoding does"]
    cuda = scale.numerics.device == "cuda"
    work = _work(todo, scale, _measured(cuda, gpu))
    samples = [one for one in others if isinstance(one, SamplesStage)]
    sampling = sum(map(_sampling_flops, samples))
    formula, encoders = sum(one.formula for one in work), sum(one.encoders for one in work)
    images = sum(one.images for one in work)
    lines = [
        f"training: {formula:.3g} FLOPs for {images:.3g} images by the formula of Table 13"
        + (f", and {encoders:.3g} in forward passes of encoders" if encoders else "")
    ]
    if guessed := _of_unknown_shape(todo):
        width, depth = flops.ASSUMED
        lines.append(
            f"          {', '.join(guessed)}: assumed {width} wide and {depth} blocks deep, which its name does not tell"
        )
    kinds = Counter(one.kind for one in others)
    if cuda:
        sharing = scale.jobs_per_gpu if load_site().slurm is None else 1
        lines += _gpu_lines(work, kinds, sampling, gpu or DEFAULT_GPU, sharing)
    else:
        lines += _cpu_lines(work, kinds, sampling, _job_seconds(tree.grids[0].scale))
    return [*lines, *_disk(todo, others, scale)]


def _of_unknown_shape(nodes: Iterable[Node]) -> list[str]:
    encoders = [node.phase.foresight.encoder for node in nodes if node.phase.foresight is not None]
    return sorted(
        {encoder.name for encoder in encoders if encoder and not (encoder.training or shape_of(encoder.timm))}
    )


def _work(nodes: Iterable[Node], scale: Scale, measured: Mapping[str, Measured]) -> list[Work]:
    groups: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        groups[_group(node.state)].append(node)
    result = []
    for name, group in groups.items():
        images = {node.state.key: node.epochs * (flops.images_per_epoch(node.state) or 0) for node in group}
        counted = [(images[node.state.key], node.state, node.phase) for node in group]
        result.append(
            Work(
                size=size_of(group[0].state.model, scale),
                images=sum(images.values()),
                steps=sum(count // state.training.batch_size for count, state, _ in counted),
                jobs=len(group),
                formula=sum(count * flops.flops_per_image(state, phase) for count, state, phase in counted),
                encoders=sum(count * flops.encoder_flops(state, phase) for count, state, phase in counted),
                measured=measured.get(name),
            )
        )
    return result


def _group(state: StateStage) -> str:
    """Trainings that run equally fast per FLOP: one model on one grid, in one batch."""
    return json.dumps([state.model.model_dump(), state.grid_side, state.training.batch_size])


def _gpu_lines(work: list[Work], others: Counter[str], sampling: float, gpu: str, sharing: int) -> list[str]:
    peak = PEAKS[gpu]
    seconds: dict[str, float] = defaultdict(float)
    for one in work:
        seconds[one.size] += one.seconds(peak, sharing)
    total = sum(seconds.values())
    by_size = ", ".join(f"{size} {value / _unit(total)[0]:,.1f}" for size, value in seconds.items())
    assumed = f"{peak / 1e12:g} TFLOP/s in bfloat16 at an assumed utilisation of"
    lines = [f"          {_gpu_time(total)} ({by_size or 'nothing is left to train'})"]
    if any(one.measured is None for one in work):
        shared = f", {sharing} jobs side by side" if sharing > 1 else ""
        host = f"{GPU_STEP_SECONDS:g} s a step or more and {GPU_START_SECONDS:g} s a start of the host{shared}"
        lines.append(f"          on {gpu}: {assumed} {UTILISATION:.0%}, {host}")
    lines += _measured_lines(work, "GPU")
    drawing = sampling / (peak * SAMPLING_UTILISATION) + others["samples"] * GPU_START_SECONDS / sharing
    lines.append(
        f"sampling: {others['samples']} sets, {_gpu_time(drawing)} on {gpu}: {assumed} {SAMPLING_UTILISATION:.0%}"
    )
    if uncounted := sorted(others.keys() - {"samples", *ON_CPU}):
        lines.append(f"not counted: the GPU's time for {', '.join(uncounted)}")
    return lines


def _gpu_time(seconds: float) -> str:
    size, name = _unit(seconds)
    return f"{seconds / size:,.1f} GPU-{name}"


def _unit(seconds: float) -> tuple[int, str]:
    return (3600, "hours") if seconds >= 3600 else (60, "minutes")


def _cpu_lines(work: list[Work], others: Counter[str], sampling: float, known: dict[str, float]) -> list[str]:
    hours = {"state": sum(one.seconds(None) for one in work) / 3600}
    assumed = []
    for kind, count in others.items():
        if kind in known:
            hours[kind] = count * known[kind] / 3600
            continue
        seconds = sampling / CPU_RATE + count * CPU_START_SECONDS if kind == "samples" else count * CPU_SECONDS[kind]
        hours[kind] = seconds / 3600
        assumed.append(kind)
    listed = ", ".join(f"{kind} {value:.2f}" for kind, value in hours.items() if value)
    lines = [f"computing: {sum(hours.values()):.2f} hours of one CPU thread ({listed or 'nothing is left to do'})"]
    if any(one.measured is None for one in work):
        assumed.insert(0, "state")
    if assumed:
        lines.append(f"           assumed, since none was measured here: {', '.join(assumed)}")
    return lines + _measured_lines(work, "rank")


def _measured_lines(work: list[Work], unit: str) -> list[str]:
    return [
        f"          {one.size} as measured here: {one.measured.images_per_second:,.0f} images/s per {unit} on "
        f"{one.measured.device}, mean of {one.measured.trainings} trainings"
        for one in work
        if one.measured is not None
    ]


def _measured(cuda: bool, gpu: str | None) -> dict[str, Measured]:
    """Speed of the finished trainings by group, of this kind of device, and of this GPU where one is named."""
    found: dict[str, list[tuple[float, float, float, str]]] = defaultdict(list)  # FLOPs, images, seconds, device
    for planned, numerics in _finished_states():
        state = planned.stage
        assert isinstance(state, StateStage)
        device = str(numerics.get("device_name", numerics["device"]))
        named = gpu is None or gpu in re.sub(r"\W", "", device).lower()
        log = logged(state.key)
        if (numerics["device"] == "cuda") == cuda and named and log.seconds:
            phase = state.timeline[-1]
            each = flops.flops_per_image(state, phase) + flops.encoder_flops(state, phase)
            seconds = log.rank_seconds / sharing(state.key, planned.scale)
            found[_group(state)].append((log.images * each, log.images, seconds, device))
    result = {}
    for group, runs in found.items():
        work, images, seconds = (sum(column) for column in list(zip(*runs, strict=True))[:3])
        devices = ", ".join(sorted({run[3] for run in runs}))
        result[group] = Measured(work / seconds, images / seconds, devices, len(runs))
    return result


def _finished_states() -> Iterator[tuple[Planned, dict[str, Any]]]:
    for weights in sorted(paths.kind("state").glob(f"*/{paths.MANIFESTS['state']}")):
        try:
            planned, numerics = lookup(weights.parent.name), read_json(weights).get("numerics")
        except UserError:  # of another version of mirai
            continue
        if numerics is not None:
            yield planned, numerics


def _job_seconds(scale_name: str) -> dict[str, float]:
    """Median seconds of a scale's jobs by kind, as Snakemake measured them here; trainings differ too much for that."""
    found = {}
    for kind in (*CPU_SECONDS, "samples"):
        times: list[float] = []
        for path in paths.benchmark(kind, "any").parent.glob("*.tsv"):
            recipe = paths.frozen(kind, path.stem)
            if recipe.exists() and read_json(recipe)["scale"] == scale_name:
                with path.open() as file:
                    times += [float(line["s"]) for line in csv.DictReader(file, delimiter="\t")]
        if times:
            found[kind] = statistics.median(times)
    return found


def _sampling_flops(stage: SamplesStage) -> int:
    """Forward passes of all samples, twice as many under guidance."""
    rows = stage.sampling.num_samples * (2 if stage.sampling.guidance > 1 else 1)
    return rows * 2 * flops.parameters(stage.state) * stage.state.grid_side**2


def _disk(states: list[Node], others: list[Stage], scale: Scale) -> list[str]:
    weights = sum(2 * 4 * flops.parameters(node.state) for node in states)  # float32 weights and EMA
    resume = sum(
        4 * (4 * flops.parameters(node.state) + 3 * flops.heads_of(node.state, node.phase)) for node in states
    )  # these, heads, and two moments of AdamW each
    samples = sum(
        2 * one.sampling.num_samples * one.state.grid_side**2 for one in others if isinstance(one, SamplesStage)
    )
    encoded = {one: _codes_bytes(one, scale) for one in others if isinstance(one, CodesStage)}
    codes = sum(size for size in encoded.values() if size is not None)
    parts = {"weights": weights, "optimisers": resume, "samples": samples, "codes and pictures": codes}
    listed = ", ".join(f"{name} {shown_bytes(size)}" for name, size in parts.items() if size)
    lines = [f"disk: {shown_bytes(sum(parts.values()))} more ({listed or 'nothing'}); `mirai gc` frees optimisers"]
    for one in (one for one, size in encoded.items() if size is None):
        lines.append(f"      and the codes of {one.data.name}, whose images nobody has counted yet")
    return lines


def _codes_bytes(stage: CodesStage, scale: Scale) -> int | None:
    images = flops.num_images(stage.data, stage)
    if images is None:
        return None
    tokens = (stage.data.resolution // stage.tokenizer.downsampling) ** 2
    square = int(stage.data.resolution * stage.data.crop_range) if stage.data.views == 10 else stage.data.resolution
    return images * (stage.data.views * tokens * 2 + (3 * square**2 if scale.numerics.store_squares else 0))
