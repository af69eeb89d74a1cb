"""Released weights from their .pt files to pictures and samples: strict, without running anything, named when wrong.

The files here have the layouts of LlamaGen's and PAR's, with random weights. Small ones belong to a scale whose sizes are
small; VQ-16 and VQ-8 are real.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from mirai.cli import main
from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.recipe import Model, Tokenizer
from mirai.experiments.scale import load_scale
from mirai.imports import import_transformer, import_vq, open_imported
from mirai.models.transformer import Transformer
from mirai.sampling.dump import load_samples
from mirai.states import is_published, read_json, sha256
from mirai.tokenizer.store import save_tokenizer
from mirai.tokenizer.vqgan import VQGAN

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[1]
SMALL = Model(num_layers=2, num_heads=2, width=16)
VQ_8 = Tokenizer(name="VQ-8", multipliers=(1, 2, 2, 4), weights="vq_ds8_c2i")
VQ_16 = Tokenizer(name="VQ-16", weights="vq_ds16_c2i")


@pytest.fixture
def small_sizes(project: Path) -> Path:
    """A project whose paper scale has two sizes, both small."""
    path = project / paths.SCALES / "imagenet256.yaml"
    scale = yaml.safe_load(path.read_text())
    small = scale["sizes"]["B"] | {"model": {"num_layers": 2, "num_heads": 2, "width": 16}}
    other = scale["sizes"]["L"] | {"model": {"num_layers": 3, "num_heads": 4, "width": 32}}
    path.write_text(yaml.safe_dump(scale | {"sizes": {"B": small, "L": other}}))
    load_scale.cache_clear()
    return project


def transformer(model: Model = SMALL, *, seed: int = 0) -> Transformer:
    result = Transformer(model, num_classes=10, codebook_size=16384, grid_side=8)
    result.init_weights(seed)
    with torch.no_grad():
        result.output.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return result


def released(tensors: Mapping[str, Tensor], file: Path, *, image_size: int | None = 64) -> Path:
    """A file as LlamaGen's DDP training saves it, buffers of a serving program among the weights."""
    buffers = {"freqs_cis": torch.zeros(17, 4, 2), "layers.0.attention.kv_cache.k_cache": torch.zeros(1)}
    content: dict[str, object] = {"model": {**tensors, **buffers}, "optimizer": {"state": {}}, "steps": 7}
    if image_size is not None:
        content["args"] = argparse.Namespace(image_size=image_size, gpt_model="GPT-B")
    torch.save(content, file)
    return file


@pytest.fixture(scope="module")
def vq_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the released vq_ds16_c2i.pt, of full size, with random weights, and thus under another name."""
    file = tmp_path_factory.mktemp("vq") / "vq.pt"
    torch.manual_seed(0)
    torch.save({"model": VQGAN(VQ_16).state_dict()}, file)
    return file


@pytest.fixture(scope="module")
def vq_folder(vq_file: Path) -> Path:
    """That file, imported once for all tests."""
    folder = vq_file.parent / "vq_ds16_c2i"
    import_vq(vq_file, folder)
    return folder


@pytest.fixture
def imported(small_sizes: Path, vq_folder: Path) -> Path:
    """A folder with one small model and VQ-16."""
    shutil.copytree(vq_folder, "imported/vq_ds16_c2i", copy_function=os.link)
    file = released(transformer().state_dict(), small_sizes / "c2i_B.pt")
    import_transformer(file, Path("imported/c2i_B"), order="llamagen")
    return Path("imported")


def test_an_imported_model_has_the_files_weights_size_and_origin(imported: Path) -> None:
    opened = open_imported(imported)
    assert opened.name == "c2i_B"
    for name, tensor in transformer().state_dict().items():
        assert torch.equal(opened.model.state_dict()[name], tensor), name
    assert (opened.model.model.num_heads, opened.model.grid_side, opened.model.num_classes) == (2, 4, 10)
    manifest = read_json(imported / "c2i_B/transformer.json")
    assert manifest["size"] == "B"
    assert manifest["source"]["sha256"] == sha256(Path("c2i_B.pt"))
    assert opened.tokenizer_folder == imported / "vq_ds16_c2i"


def test_the_averaged_weights_can_be_chosen(small_sizes: Path) -> None:
    raw, averaged = transformer().state_dict(), transformer(seed=1).state_dict()
    torch.save({"model": raw, "ema": averaged, "args": argparse.Namespace(image_size=64)}, "a.pt")
    import_transformer(Path("a.pt"), Path("imported/ema"), order="llamagen", ema=True)
    from safetensors.torch import load_file

    kept = load_file("imported/ema/weights.safetensors")
    assert torch.equal(kept["model/norm.weight"], averaged["norm.weight"])
    assert torch.equal(kept["model/output.weight"], averaged["output.weight"])


@pytest.mark.parametrize(("order", "specials"), [("par-4x", 3), ("par-16x", 15)])
def test_a_par_file_gets_the_order_its_special_tokens_tell(order: str, specials: int, small_sizes: Path) -> None:
    tensors = transformer(SMALL.model_copy(update={"token_order": order})).state_dict()
    assert len(tensors["spe_tok_embeddings.special_embeddings.weight"]) == specials
    file = released(tensors, Path("par_B.pt"), image_size=128)
    import_transformer(file, Path("imported/par_B"), order="par")
    assert read_json(Path("imported/par_B/transformer.json"))["model"]["token_order"] == order
    with pytest.raises(UserError, match="is of the other kind; `mirai import par"):
        import_transformer(file, Path("imported/other"), order="llamagen")


@pytest.mark.parametrize(
    ("name", "image_size", "given", "resolution"),
    [
        ("c2i_B_256", None, None, 256),
        ("c2i_B_384", None, None, 384),
        ("c2i_B_256", 384, None, 384),
        ("x", None, 64, 64),
    ],
)
def test_the_resolution_is_the_one_given_or_of_the_stored_arguments_or_of_the_name(
    name: str, image_size: int | None, given: int | None, resolution: int, small_sizes: Path
) -> None:
    file = released(transformer().state_dict(), Path(f"{name}.pt"), image_size=image_size)
    import_transformer(file, Path("imported/a"), order="llamagen", resolution=given)
    assert read_json(Path("imported/a/transformer.json"))["resolution"] == resolution


def test_a_file_that_does_not_tell_its_resolution_is_refused(small_sizes: Path) -> None:
    file = released(transformer().state_dict(), Path("best.pt"), image_size=None)
    with pytest.raises(UserError, match="give --resolution 256 or 384"):
        import_transformer(file, Path("imported/a"), order="llamagen")


def without(tensors: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (
            {"quantize.embedding.weight": torch.ones(1)},
            r"holds a VQ tokenizer, no transformer; `mirai import vq .*` takes it",
        ),
        ({"cls_embedding.uncond_embedding": torch.ones(1)}, "conditioned on text"),
        ({"resnet.weight": torch.ones(1)}, "holds no LlamaGen transformer: its weights are called resnet.weight"),
        (without(transformer().state_dict(), "norm.weight"), r"of size B: missing: norm\.weight$"),
        ({**transformer().state_dict(), "bias": torch.ones(1)}, r"of size B: extra: bias$"),
        (
            {**transformer().state_dict(), "norm.weight": torch.ones(8)},
            r"of another shape: norm\.weight \(8,\) instead of \(16,\)$",
        ),
        (
            transformer(SMALL.model_copy(update={"num_layers": 5})).state_dict(),
            r"has 5 layers of width 16, which is no known size \(layers x width: B 2 x 16, L 3 x 32\)",
        ),
    ],
    ids=["vq", "text", "other", "missing", "extra", "shape", "size"],
)
def test_a_file_that_is_no_such_model_is_refused_before_anything_is_written(
    tensors: Mapping[str, Tensor], sentence: str, small_sizes: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        import_transformer(released(tensors, Path("c2i_B_256.pt")), Path("imported/a"), order="llamagen")
    assert not Path("imported").exists()


def test_a_tokenizer_of_another_structure_is_refused(small_sizes: Path) -> None:
    for tensors, sentence in (
        (transformer().state_dict(), "holds a transformer, no tokenizer; `mirai import llamagen"),
        (
            {"encoder.conv_blocks.0.x": torch.ones(1)},
            "neither VQ-16 nor VQ-8: its encoder has 1 levels, theirs 5 and 4",
        ),
        ({f"encoder.conv_blocks.{n}.x": torch.ones(1) for n in range(4)}, "weights of tokenizer 'VQ-8': missing: "),
    ):
        torch.save({"model": tensors}, "vq.pt")
        with pytest.raises(UserError, match=sentence):
            import_vq(Path("vq.pt"), Path("imported/vq"))
    assert not Path("imported").exists()


def test_vq_8_is_told_from_its_levels(small_sizes: Path) -> None:
    torch.save({"model": VQGAN(VQ_8).state_dict()}, "vq_ds8_c2i.pt")
    import_vq(Path("vq_ds8_c2i.pt"), Path("imported/vq"))
    assert read_json(Path("imported/vq/tokenizer.json"))["recipe"]["multipliers"] == [1, 2, 2, 4]


def test_importing_again_does_nothing_and_another_file_needs_another_folder(
    small_sizes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (released(transformer(seed=seed).state_dict(), Path(f"{seed}.pt")) for seed in (0, 1))
    arguments = ["import", "llamagen", "--to", "imported/a"]
    assert main([*arguments, str(first)]) == 0
    written = Path("imported/a/weights.safetensors").stat().st_mtime_ns
    assert main([*arguments, str(first)]) == 0
    assert Path("imported/a/weights.safetensors").stat().st_mtime_ns == written
    assert main([*arguments, str(second)]) == 2
    assert "imported/a holds the weights of another 0.pt; choose another folder by --to" in capsys.readouterr().err


def test_the_folder_must_leave_no_choice(imported: Path, small_sizes: Path) -> None:
    with pytest.raises(UserError, match="elsewhere holds no imported model; `mirai import llamagen FILE --to"):
        open_imported(Path("elsewhere"))
    import_transformer(Path("c2i_B.pt"), imported / "again", order="llamagen")
    with pytest.raises(
        UserError, match=r"holds several models \(imported/again, imported/c2i_B\); name one by --weights"
    ):
        open_imported(imported)
    assert open_imported(imported / "again").tokenizer_folder == imported / "vq_ds16_c2i"
    import_transformer(Path("c2i_B.pt"), Path("alone/model"), order="llamagen")
    with pytest.raises(UserError, match="alone holds no imported tokenizer; `mirai import vq FILE --to"):
        open_imported(Path("alone"))
    assert open_imported(Path("alone"), tokenizer=imported / "vq_ds16_c2i").name == "c2i_B"


def test_a_tokenizer_with_other_codes_is_refused(imported: Path) -> None:
    manifest = json.loads((imported / "c2i_B/transformer.json").read_text())
    (imported / "c2i_B/transformer.json").write_text(json.dumps(manifest | {"codebook_size": 4096}))
    with pytest.raises(UserError, match=r"has a vocabulary of 4096 codes, .* of 16384; give its own tokenizer"):
        open_imported(imported)


def test_a_picture_of_chosen_classes_is_a_function_of_the_seed(imported: Path) -> None:
    command = ["sample", "--weights", "imported/", "--cfg", "4", "--top-k", "2000", "--rows", "2", "--dtype", "float32"]
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert main([*command, "--classes", "3", "9", "--grid", f"{name}.png", "--seed", seed]) == 0
    first, again, other = (np.array(Image.open(f"{name}.png")) for name in "abc")
    assert first.shape[1] >= 2 * 64
    assert first.shape[0] >= 2 * 64
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_many_samples_are_drawn_into_a_folder_go_on_after_a_stop_and_are_exported(
    imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "--weights", "imported", "--num-samples", "5", "--batch-size", "2", "--out", "drawn"]
    assert main(command) == 0
    codes, _ = load_samples(Path("drawn"))
    assert codes.shape == (5, 16)
    Path("drawn/samples.json").unlink()
    Path("drawn/shard-00001.npz").unlink()
    assert main(command) == 0
    assert torch.equal(load_samples(Path("drawn"))[0], codes)
    assert read_json(Path("drawn/samples.json"))["tokenizer"] == str((imported / "vq_ds16_c2i").resolve())
    assert main([*command, "--cfg", "1.5"]) == 2
    assert "drawn holds samples of other weights or settings" in capsys.readouterr().err
    assert main(["export", "drawn", "--npz", "drawn.npz", "--size", "32"]) == 0
    with np.load("drawn.npz") as file:
        assert file["arr_0"].shape == (5, 32, 32, 3)
        assert file["arr_0"].dtype == np.uint8


def test_two_processes_draw_what_one_does(imported: Path) -> None:
    command = "sample --weights imported --num-samples 3 --batch-size 1 --dtype float32 --out"
    assert main([*command.split(), "one"]) == 0
    paths.SITE.parent.mkdir()
    paths.SITE.write_text("ranks: 2\n")
    assert main([*command.split(), "two"]) == 0
    for one, two in zip(load_samples(Path("one")), load_samples(Path("two")), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--weights imported", "mirai sample takes one of: "),
        ("--weights imported --classes 1", "mirai sample takes one of: "),
        ("--weights imported --num-samples 5", "mirai sample takes one of: "),
        ("--weights imported --num-samples 5 --out a --classes 1 --grid b.png", "mirai sample takes one of: "),
        (
            "--weights imported --classes 1 --grid a.png --cfg 0.5",
            "key 'guidance' has value 0.5: input should be greater",
        ),
        ("--weights imported --classes 1 --grid a.png --top-k -1", "key 'top_k' has value -1"),
        ("--weights imported --classes 10 --grid a.png", "--classes 10: classes go from 0 to 9"),
        ("--weights nowhere --classes 1 --grid a.png", "nowhere holds no imported model"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: str, sentence: str, imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", *arguments.split()]) == 2
    assert sentence in capsys.readouterr().err


def test_the_real_size_b_is_imported_strictly(project: Path) -> None:
    """The real file's keys and shapes, 444 MB: its skeleton costs no memory."""
    model = load_scale(paths.PAPER_SCALE).sizes["B"].model
    with torch.device("meta"):
        skeleton = Transformer(model, num_classes=1000, codebook_size=16384, grid_side=16).state_dict()
    tensors = {name: torch.zeros(tensor.shape) for name, tensor in skeleton.items()}
    file = released(tensors, Path("c2i_B_256.pt"), image_size=None)
    import_transformer(file, Path("imported/c2i_B_256"), order="llamagen")
    manifest = read_json(Path("imported/c2i_B_256/transformer.json"))
    assert (manifest["size"], manifest["resolution"], manifest["model"]["num_heads"]) == ("B", 256, 12)
    assert Path("imported/c2i_B_256/weights.safetensors").stat().st_size > 4 * 110_888_448


@pytest.mark.parametrize("option", ["--cfg 7", "--top-k 1", "--top-p 0.1", "--temperature 0.01", "--seed 5"])
def test_every_setting_reaches_picture_and_samples(option: str, imported: Path) -> None:
    command = ["sample", "--weights", "imported", "--dtype", "float32"]
    codes, pictures = [], []
    for name, extra in (("plain", []), ("other", option.split())):
        assert main([*command, *extra, "--num-samples", "3", "--batch-size", "3", "--out", name]) == 0
        assert main([*command, *extra, "--classes", "3", "--rows", "1", "--grid", f"{name}.png"]) == 0
        codes.append(load_samples(Path(name))[0])
        pictures.append(np.array(Image.open(f"{name}.png")))
    assert not torch.equal(*codes)
    assert not np.array_equal(*pictures)


@pytest.mark.parametrize("option", ["--ema", "--resolution 32"])
def test_weights_imported_otherwise_before_are_not_passed_off_as_these(
    option: str, small_sizes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = transformer().state_dict()
    torch.save(
        {"model": raw, "ema": transformer(seed=1).state_dict(), "args": argparse.Namespace(image_size=64)}, "a.pt"
    )
    assert main(["import", "llamagen", "a.pt"]) == 0
    assert main(["import", "llamagen", "a.pt", *option.split()]) == 2
    assert "imported/a holds the raw weights of a.pt at 64 px in raster order" in capsys.readouterr().err
    assert main(["import", "llamagen", "a.pt", *option.split(), "--to", "b"]) == 0
    manifest = read_json(Path("b/transformer.json"))
    assert (manifest["weights"] == "ema") == (option == "--ema")


def test_a_tokenizer_of_other_cells_is_refused_and_one_put_in_the_place_of_the_samples_own(
    imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": VQGAN(VQ_8).state_dict()}, "vq_ds8_c2i.pt")
    import_vq(Path("vq_ds8_c2i.pt"), Path("eight"))
    with pytest.raises(UserError, match="writes codes of 16 pixels a side, eight decodes those of 8"):
        open_imported(imported, tokenizer=Path("eight"))
    assert main(["sample", "--weights", "imported", "--num-samples", "2", "--out", "drawn"]) == 0
    shutil.rmtree(imported / "vq_ds16_c2i")
    shutil.copytree("eight", imported / "vq_ds16_c2i")
    assert main(["export", "drawn", "--npz", "a.npz"]) == 2
    assert "drawn was drawn for another tokenizer than the one that" in capsys.readouterr().err


def test_of_several_tokenizers_beside_a_model_the_one_that_fits_is_taken(imported: Path) -> None:
    torch.save({"model": VQGAN(VQ_8).state_dict()}, "vq_ds8_c2i.pt")
    import_vq(Path("vq_ds8_c2i.pt"), imported / "vq_ds8_c2i")
    assert open_imported(imported / "c2i_B").tokenizer_folder == imported / "vq_ds16_c2i"
    shutil.copytree(imported / "vq_ds16_c2i", imported / "again", copy_function=os.link)
    with pytest.raises(
        UserError, match=r"several tokenizers \(imported/again, imported/vq_ds16_c2i\); name one by --tok"
    ):
        open_imported(imported / "c2i_B")
    for name in ("again", "vq_ds16_c2i"):
        shutil.rmtree(imported / name)
    with pytest.raises(UserError, match=r"writes codes of 16 pixels a side, imported/vq_ds8_c2i decodes those of 8"):
        open_imported(imported / "c2i_B")


@pytest.mark.parametrize(
    "report", [{}, {"source": {"files": 1, "bytes": 2, "sha256": "0"}}, {"released": {"file": "a"}}]
)
def test_nothing_is_imported_over_a_tokenizer_that_a_stage_made(report: dict[str, object], small_sizes: Path) -> None:
    tiny = Tokenizer(name="tiny", channels=32, multipliers=(1, 1), weights="made up")
    save_tokenizer(Path("made"), VQGAN(tiny), tiny, report)
    torch.save({"model": VQGAN(VQ_8).state_dict()}, "vq.pt")
    with pytest.raises(UserError, match="made holds other weights already; choose another folder by --to"):
        import_vq(Path("vq.pt"), Path("made"))


def test_a_file_under_a_released_name_must_be_the_released_one_and_ones_own_file_any(
    small_sizes: Path, vq_file: Path
) -> None:
    Path("config").mkdir()
    shutil.copy(ROOT / "config/downloads.yaml", "config")
    file = released(transformer().state_dict(), Path("c2i_L_256.pt"))
    for refused in (
        lambda: import_transformer(file, Path("imported/a"), order="llamagen"),
        lambda: import_vq(Path(shutil.copy(vq_file, "vq_ds16_c2i.pt")), Path("imported/vq")),
    ):
        with pytest.raises(UserError, match=r"is not the published \w+\.pt: its SHA-256 is .*another name"):
            refused()
    assert not Path("imported").exists()
    import_transformer(file.rename("my_own.pt"), Path("imported/a"), order="llamagen")
    assert is_published(Path("imported/a/transformer.json"))


def test_a_grid_that_par_cannot_cut_is_refused(small_sizes: Path) -> None:
    tensors = transformer(SMALL.model_copy(update={"token_order": "par-4x"})).state_dict()
    with pytest.raises(UserError, match=r"48 gives 3x3 tokens, which par-4x cannot cut into 2x2 equal regions"):
        import_transformer(released(tensors, Path("par.pt")), Path("imported/par"), order="par", resolution=48)


def test_many_samples_take_the_tokenizer_and_the_precision_that_are_given(imported: Path) -> None:
    command = "sample --weights imported/c2i_B --num-samples 2 --batch-size 2 --out"
    shutil.move(imported / "vq_ds16_c2i", "elsewhere")
    assert main([*command.split(), "a"]) == 2
    assert main([*command.split(), "b", "--tokenizer", "elsewhere", "--dtype", "float32"]) == 0
    manifest = read_json(Path("b/samples.json"))
    assert manifest["tokenizer"] == str(Path("elsewhere").resolve())
    assert manifest["sampling"]["dtype"] == "float32"
