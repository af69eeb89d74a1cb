"""A tokenizer's files: what is saved comes back, what was damaged is named, released weights load strictly."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mirai.errors import UserError
from mirai.tokenizer.store import decode_images, decoded_batches, import_tokenizer, load_tokenizer, save_tokenizer
from mirai.tokenizer.vqgan import VQGAN, to_uint8
from tests.tokenizers import TINY

RECIPE = TINY.model_copy(update={"weights": "released"})


@pytest.fixture
def model() -> VQGAN:
    return VQGAN(RECIPE).eval()


@pytest.fixture
def codes() -> np.ndarray:
    return np.random.default_rng(0).integers(16, size=(5, 9)).astype(np.uint16)


def test_a_saved_tokenizer_comes_back_in_eval_mode_with_the_same_images(
    tmp_path: Path, model: VQGAN, codes: np.ndarray
) -> None:
    save_tokenizer(tmp_path, model, RECIPE, {"psnr": 20.5})
    loaded = load_tokenizer(tmp_path)
    assert not loaded.training
    assert np.array_equal(decode_images(loaded, codes), decode_images(model, codes))
    assert json.loads((tmp_path / "tokenizer.json").read_text())["report"] == {"psnr": 20.5}


def test_altered_weights_are_refused(tmp_path: Path, model: VQGAN) -> None:
    save_tokenizer(tmp_path, model, RECIPE, {})
    file = tmp_path / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"weights\.safetensors was altered"):
        load_tokenizer(tmp_path)


def test_a_manifest_with_an_unknown_recipe_key_is_named(tmp_path: Path, model: VQGAN) -> None:
    save_tokenizer(tmp_path, model, RECIPE, {})
    manifest = json.loads((tmp_path / "tokenizer.json").read_text())
    manifest["recipe"]["colour"] = 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer of this version"):
        load_tokenizer(tmp_path)


def test_a_released_file_is_imported_with_its_weights(tmp_path: Path, model: VQGAN, codes: np.ndarray) -> None:
    file = tmp_path / "vq.pt"
    torch.save({"model": model.state_dict(), "args": argparse.Namespace(vq_model="VQ-16")}, file)
    assert np.array_equal(decode_images(import_tokenizer(file, RECIPE), codes), decode_images(model, codes))


def test_a_released_file_of_another_structure_is_refused(tmp_path: Path, model: VQGAN) -> None:
    file = tmp_path / "vq.pt"
    torch.save({"model": model.state_dict()}, file)
    wider = RECIPE.model_copy(update={"channels": 8})
    with pytest.raises(UserError, match="does not hold the weights of tokenizer 'tiny'"):
        import_tokenizer(file, wider)


def test_files_that_are_no_released_weights_are_refused(tmp_path: Path) -> None:
    broken, other = tmp_path / "broken.pt", tmp_path / "other.pt"
    broken.write_bytes(b"not a checkpoint")
    torch.save({"ema": {}}, other)
    with pytest.raises(UserError, match="holds no plain tensors"):
        import_tokenizer(broken, RECIPE)
    with pytest.raises(UserError, match="no weights under model or module or state_dict; its keys are ema"):
        import_tokenizer(other, RECIPE)


def test_a_pickled_object_in_a_released_file_is_not_run(tmp_path: Path) -> None:
    file, trace = tmp_path / "vq.pt", tmp_path / "trace"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (trace,)

    torch.save({"model": Payload()}, file)
    with pytest.raises(UserError, match=r"vq\.pt holds a pickled \S+, which is not read"):
        import_tokenizer(file, RECIPE)
    assert not trace.exists()


def test_decoding_in_batches_gives_each_image_in_its_place(model: VQGAN, codes: np.ndarray) -> None:
    images = decode_images(model, codes, batch_size=2)
    assert (images.shape, images.dtype) == ((5, 6, 6, 3), np.uint8)
    with torch.no_grad():
        alone = to_uint8(model.decode(torch.from_numpy(codes[4:].astype(np.int64))))
    assert np.abs(images[4].astype(int) - alone[0].numpy()).max() <= 1  # batch size may move a float by an ulp
    assert np.abs(images[4].astype(int) - images[0]).max() > 1


def test_batches_that_are_streamed_are_those_decoded_at_once(model: VQGAN, codes: np.ndarray) -> None:
    for size in (None, 4):
        streamed = list(decoded_batches(model, codes, 2, size))
        assert [batch.shape[0] for batch in streamed] == [2, 2, 1]
        assert np.array_equal(np.concatenate(streamed), decode_images(model, codes, 2, size=size))
        assert streamed[0].shape[1:] == (size or 6, size or 6, 3)
