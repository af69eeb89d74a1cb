"""One sentence per mistake in a YAML file: file, key, value, what is allowed. Sentences are asserted whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mirai.errors import UserError
from mirai.experiments.recipe import Recipe, Schedule, Training
from mirai.experiments.yaml_input import read_yaml, validate

TRAINING_KEYS = (
    "batch_size, betas, clip_norm, dtype, ema_decay, epoch_images, learning_rate, lr_schedule, seed, weight_decay"
)


class Inner(Recipe):
    """A nested recipe for these tests."""

    schedule: Schedule | None = None
    number: float = 1.0


class Outer(Recipe):
    """Nested in every way that grids and scales nest."""

    inner: Inner
    many: list[Inner] = []
    named: dict[str, Inner] = {}


def mistake(path: Path, text: str, model: type[Recipe] = Training) -> str:
    """What a user is told of a YAML file with this text."""
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        validate(model, read_yaml(path), path.name)
    return str(caught.value).replace(f"{path.parent}/", "")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "own.yaml"


def test_an_unknown_key_is_told_with_the_nearest_and_all_allowed_ones(file: Path) -> None:
    assert mistake(file, "batch_size: 8\nlearning_rat: 0.1") == (
        f"own.yaml: unknown key 'learning_rat'; did you mean 'learning_rate'? allowed: {TRAINING_KEYS}"
    )


def test_an_unknown_key_unlike_all_others_is_told_without_a_guess(file: Path) -> None:
    assert mistake(file, "batch_size: 8\nqwxyz: 1") == f"own.yaml: unknown key 'qwxyz'; allowed: {TRAINING_KEYS}"


def test_a_misspelt_mandatory_key_is_told_as_unknown_and_not_as_missing(file: Path) -> None:
    assert mistake(file, "batchsize: 8") == (
        f"own.yaml: unknown key 'batchsize'; did you mean 'batch_size'? allowed: {TRAINING_KEYS}"
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("inner: {nmber: 1.0}", "inner.nmber"),
        ("inner: {}\nmany: [{}, {nmber: 1.0}]", "many.1.nmber"),
        ("inner: {}\nnamed: {B: {nmber: 1.0}}", "named.B.nmber"),
    ],
)
def test_an_unknown_key_is_found_in_nested_keys_lists_and_names(file: Path, text: str, place: str) -> None:
    assert mistake(file, text, Outer) == (
        f"own.yaml: unknown key '{place}'; did you mean 'number'? allowed: number, schedule"
    )


def test_an_unknown_key_inside_an_optional_recipe_is_told_with_that_recipes_keys(file: Path) -> None:
    assert mistake(file, "inner: {schedule: {kind: step, valus: [2.0, 1.0]}}", Outer) == (
        "own.yaml: unknown key 'inner.schedule.valus'; did you mean 'values'? allowed: kind, values, warmup_epochs"
    )


def test_a_missing_key_is_named(file: Path) -> None:
    assert mistake(file, "learning_rate: 0.1") == "own.yaml: key 'batch_size' is missing"


@pytest.mark.parametrize(
    ("written", "corrected"),
    [("1e-4", "1.0e-4"), ("1.5e4", "1.5e+4"), ("-2E5", "-2.0e+5"), ("3e+2", "3.0e+2")],
)
def test_a_number_that_yaml_reads_as_text_is_told_as_it_must_be_written(
    file: Path, written: str, corrected: str
) -> None:
    assert mistake(file, f"batch_size: 8\nlearning_rate: {written}") == (
        f"own.yaml: key 'learning_rate' has value '{written}': YAML reads {written} as text; write {corrected}"
    )
    assert isinstance(read_corrected(file, corrected), float)


def read_corrected(file: Path, corrected: str) -> Any:
    """What YAML makes of the advice."""
    file.write_text(f"learning_rate: {corrected}")
    return read_yaml(file)["learning_rate"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("batch_size: '8'", "key 'batch_size' has value '8': input should be a valid integer"),
        ("batch_size: 8.0", "key 'batch_size' has value 8.0: input should be a valid integer"),
        ("batch_size: yes", "key 'batch_size' has value True: input should be a valid integer"),
        ("batch_size: 0", "key 'batch_size' has value 0: input should be greater than 0"),
        ("batch_size: null", "key 'batch_size' has value None: input should be a valid integer"),
        ("batch_size: [8]", "key 'batch_size' has value '[8]': input should be a valid integer"),
        ("learning_rate: .nan", "key 'learning_rate' has value nan: input should be a finite number"),
        ("learning_rate: .inf", "key 'learning_rate' has value inf: input should be a finite number"),
        ("ema_decay: 1.0", "key 'ema_decay' has value 1.0: input should be less than 1"),
        ("seed: -1", "key 'seed' has value -1: input should be greater than or equal to 0"),
        ("dtype: float16", "key 'dtype' has value 'float16': input should be 'bfloat16' or 'float32'"),
        ("epoch_images: 12", "epoch_images 12 must be a multiple of batch_size 8"),
    ],
)
def test_a_wrong_value_is_told_with_its_key_and_what_is_allowed(file: Path, line: str, sentence: str) -> None:
    text = line if line.startswith("batch_size") else f"batch_size: 8\n{line}"
    assert mistake(file, text) == f"own.yaml: {sentence}"


def test_a_whole_number_serves_where_a_real_one_is_wanted(file: Path) -> None:
    file.write_text("batch_size: 8\nlearning_rate: 1")
    training = validate(Training, read_yaml(file), "own.yaml")
    assert training.learning_rate == 1.0
    assert isinstance(training.learning_rate, float)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("batch_size: [8\nseed: 1", "own.yaml line 2: not valid YAML (expected ',' or ']', but got ':')"),
        ("batch_size: 8\nseed: 0\nbatch_size: 9", "own.yaml line 3: not valid YAML (key 'batch_size' is given twice)"),
        ("", "own.yaml: expected keys and values, found NoneType"),
        ("- batch_size", "own.yaml: expected keys and values, found list"),
        (
            "batch_size: 2020-01-01",
            "own.yaml: Object of type date is not JSON serializable; quote dates and other special YAML values",
        ),
    ],
)
def test_a_file_that_holds_no_mapping_is_refused_with_the_line(file: Path, text: str, sentence: str) -> None:
    assert mistake(file, text) == sentence


def test_a_key_twice_in_a_nested_mapping_is_refused(file: Path) -> None:
    assert mistake(file, "inner:\n  number: 1.0\n  number: 2.0", Outer) == (
        "own.yaml line 3: not valid YAML (key 'number' is given twice)"
    )


def test_a_merged_key_may_be_overridden(file: Path) -> None:
    file.write_text("base: &base {a: 1, b: 2}\nown: {<<: *base, b: 3}")
    assert read_yaml(file)["own"] == {"a": 1, "b": 3}


def test_a_file_that_does_not_exist_or_is_no_text_is_told(file: Path) -> None:
    with pytest.raises(UserError, match=r"own\.yaml does not exist$"):
        read_yaml(file)
    file.write_bytes(b"title: \xe9\n")
    with pytest.raises(UserError, match=r"own\.yaml: not valid YAML \(the file is not UTF-8 text\)$"):
        read_yaml(file)
