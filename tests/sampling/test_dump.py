from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mirai.errors import UserError
from mirai.experiments import recipe
from mirai.models.transformer import Transformer
from mirai.sampling import streams
from mirai.sampling.dump import load_samples, sample_codes
from mirai.sampling.generate import generate
from mirai.states import is_published, read_json

SAMPLING = recipe.Sampling(num_samples=10, batch_size=4, guidance=2.0, dtype="float32", seed=5)


@pytest.fixture(scope="module")
def model() -> Transformer:
    size = recipe.Model(num_layers=2, num_heads=2, width=16, ffn_multiple=16)
    model = Transformer(size, num_classes=3, codebook_size=12, grid_side=3)
    model.init_weights(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    return model.eval()


def sample(
    folder: Path, model: Transformer, sampling: recipe.Sampling = SAMPLING, rank: int = 0, ranks: int = 1
) -> bool:
    return sample_codes(folder, model, sampling, state_key="abc", device="cpu", progress=False, rank=rank, ranks=ranks)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_dump_holds_exactly_the_wanted_samples_in_index_order(tmp_path: Path, model: Transformer) -> None:
    assert sample(tmp_path, model)
    codes, labels = load_samples(tmp_path)
    assert codes.shape == (10, 9)
    assert codes.dtype == labels.dtype == torch.int64
    assert torch.equal(labels, torch.from_numpy(streams.labels(5, range(10), 3, "uniform")))
    numbers = torch.from_numpy(streams.uniforms(5, range(4, 8), 9))
    assert torch.equal(codes[4:8], generate(model, labels[4:8], numbers, guidance=2.0))
    manifest = read_json(tmp_path / "samples.json")
    assert (manifest["state"], manifest["codebook_size"], manifest["grid_side"]) == ("abc", 12, 3)
    assert manifest["sampling"]["num_samples"] == 10
    assert sorted(manifest["payloads"]) == ["shard-00000", "shard-00001", "shard-00002"]


def test_the_last_batch_is_computed_whole_and_equals_that_of_a_larger_dump(tmp_path: Path, model: Transformer) -> None:
    rows: list[int] = []
    hook = model.cls_embedding.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    sample(tmp_path / "ten", model)
    hook.remove()
    assert rows == [8, 8, 8]  # labels and nulls of four samples
    sample(tmp_path / "twelve", model, SAMPLING.model_copy(update={"num_samples": 12}))
    assert torch.equal(load_samples(tmp_path / "ten")[0], load_samples(tmp_path / "twelve")[0][:10])


def test_two_ranks_write_what_one_writes_and_the_last_one_publishes(tmp_path: Path, model: Transformer) -> None:
    sample(tmp_path / "one", model)
    assert not sample(tmp_path / "two", model, rank=0, ranks=2)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"shard-00000.npz", "shard-00002.npz"}
    assert sample(tmp_path / "two", model, rank=1, ranks=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_restart_redoes_missing_truncated_and_altered_shards_only(tmp_path: Path, model: Transformer) -> None:
    sampling = SAMPLING.model_copy(update={"num_samples": 16})
    sample(tmp_path, model, sampling)
    before = contents(tmp_path)
    shards = [tmp_path / f"shard-{number:05d}.npz" for number in range(4)]
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-40])
    altered = bytearray(shards[2].read_bytes())
    altered[altered.index(b"NUMPY") + 140] ^= 1
    shards[2].write_bytes(altered)
    kept = shards[3].stat().st_mtime_ns
    (tmp_path / "samples.json").unlink()
    assert sample(tmp_path, model, sampling)
    assert contents(tmp_path) == before
    assert shards[3].stat().st_mtime_ns == kept


def test_shards_of_other_settings_or_another_state_are_not_kept(tmp_path: Path, model: Transformer) -> None:
    other = SAMPLING.model_copy(update={"guidance": 1.0})
    sample(tmp_path / "used", model)
    sample(tmp_path / "used", model, other)
    sample(tmp_path / "fresh", model, other)
    assert contents(tmp_path / "used") == contents(tmp_path / "fresh")


def test_no_flipped_bit_of_a_shard_goes_unnoticed(tmp_path: Path, model: Transformer) -> None:
    sampling = SAMPLING.model_copy(update={"num_samples": 2, "batch_size": 2})
    sample(tmp_path, model, sampling)
    shard = tmp_path / "shard-00000.npz"
    content = shard.read_bytes()
    codes, _ = load_samples(tmp_path)
    for position in range(0, len(content), 41):
        shard.write_bytes(content[:position] + bytes([content[position] ^ 8]) + content[position + 1 :])
        sample(tmp_path, model, sampling)
        assert torch.equal(load_samples(tmp_path)[0], codes)


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_reading_names_the_damaged_shard(tmp_path: Path, model: Transformer, damage: str) -> None:
    sample(tmp_path, model)
    shard = tmp_path / "shard-00001.npz"
    content = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(content[:-1])
    else:
        content[150] ^= 1
        shard.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00001\.npz"):
        load_samples(tmp_path)
    if damage != "altered":
        assert not is_published(tmp_path / "samples.json")


def test_reading_without_a_manifest_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"samples\.json is missing"):
        load_samples(tmp_path)


def test_half_precision_casts_the_whole_model(tmp_path: Path) -> None:
    size = recipe.Model(num_layers=1, num_heads=1, width=8, ffn_multiple=8)
    model = Transformer(size, num_classes=2, codebook_size=5, grid_side=2)
    model.init_weights(0)
    sample(tmp_path, model, recipe.Sampling(num_samples=2, batch_size=2))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert load_samples(tmp_path)[0].shape == (2, 4)
