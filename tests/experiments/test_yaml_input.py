"""One sentence per mistake in a YAML file: file, line, key, value, what is allowed. Sentences are asserted whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, PositiveInt

from mirai.errors import UserError
from mirai.experiments.recipe import Recipe, Schedule, Training
from mirai.experiments.yaml_input import joined, overlaid, place, read_yaml, validate

TRAINING_KEYS = (
    "batch_size, betas, clip_norm, dtype, ema_decay, epoch_images, learning_rate, lr_schedule, seed, weight_decay"
)


class Inner(Recipe):
    """A nested recipe for these tests."""

    schedule: Schedule | None = None
    number: float = 1.0


class Circle(Recipe):
    """One of two shapes; its `circle` is no name of a shape."""

    kind: Literal["circle"]
    circle: float = 1.0


class Square(Recipe):
    """The other."""

    kind: Literal["square"]
    side: float = 1.0


class Outer(Recipe):
    """Nested in every way that grids and scales nest."""

    inner: Inner
    many: list[Inner] = []
    named: dict[str, Inner] = {}
    either: str | Schedule | None = None
    last: PositiveInt | Literal["final"] | None = None
    pairs: tuple[tuple[int, int], ...] = ()
    counts: dict[Literal["fid", "recall"], float] = {}
    shape: Annotated[Circle | Square, Field(discriminator="kind")] | None = None


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
        f"own.yaml line 2: unknown key 'learning_rat'; did you mean 'learning_rate'? allowed: {TRAINING_KEYS}"
    )


def test_an_unknown_key_unlike_all_others_is_told_without_a_guess(file: Path) -> None:
    assert mistake(file, "batch_size: 8\nqwxyz: 1") == f"own.yaml line 2: unknown key 'qwxyz'; allowed: {TRAINING_KEYS}"


def test_a_misspelt_mandatory_key_is_told_as_unknown_and_not_as_missing(file: Path) -> None:
    assert mistake(file, "batchsize: 8") == (
        f"own.yaml line 1: unknown key 'batchsize'; did you mean 'batch_size'? allowed: {TRAINING_KEYS}"
    )


@pytest.mark.parametrize(
    ("text", "line", "place"),
    [
        ("inner: {nmber: 1.0}", 1, "inner.nmber"),
        ("inner: {}\nmany: [{}, {nmber: 1.0}]", 2, "many.1.nmber"),
        ("inner: {}\nmany:\n- {}\n-\n  # why\n  nmber: 1.0", 6, "many.1.nmber"),
        ("inner: {}\nnamed:\n\n  A: {}\n  B: {number: 1.0,\n    nmber: 1.0}", 6, "named.B.nmber"),
    ],
)
def test_an_unknown_key_is_found_in_nested_keys_lists_and_names(file: Path, text: str, line: int, place: str) -> None:
    assert mistake(file, text, Outer) == (
        f"own.yaml line {line}: unknown key '{place}'; did you mean 'number'? allowed: number, schedule"
    )


def test_an_unknown_key_inside_an_optional_recipe_is_told_with_that_recipes_keys(file: Path) -> None:
    assert mistake(file, "inner: {schedule: {kind: step, valus: [2.0, 1.0]}}", Outer) == (
        "own.yaml line 1: unknown key 'inner.schedule.valus'; did you mean 'values'? allowed: kind, values, warmup_epochs"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("either: {kind: step, valus: [1.0]}", "unknown key 'either.valus'; did you mean 'values'? allowed: kind,"),
        ("either: {kind: step, values: one}", "key 'either.values' has value 'one': input should be a valid array"),
        (
            "either: {kind: step, values: [1.0]}",
            'key \'either\' has value \'{"kind": "step", "values": [1.0]}\': a step',
        ),
        ("either: 3", "key 'either' has value 3: input should be a valid string, or input should be an object"),
        ("last: 0", "key 'last' has value 0: input should be greater than 0, or input should be 'final'"),
        ("pairs: [[0, 1], [0, x]]", "key 'pairs.1.1' has value 'x': input should be a valid integer"),
        ("counts: {fdi: 1.0}", "unknown key 'counts.fdi'; did you mean 'fid'? allowed: fid, recall"),
        ("shape: {kind: circel}", "key 'shape.kind' has value 'circel': allowed: 'circle', 'square'"),
        ("shape: {side: 1.0}", "key 'shape.kind' is missing"),
        ("shape: {kind: circle, sid: 2.0}", "unknown key 'shape.sid'; allowed: circle, kind"),
        ("shape: {kind: circle, circle: x}", "key 'shape.circle' has value 'x': input should be a valid number"),
    ],
)
def test_of_alternatives_what_comes_closest_is_told(file: Path, text: str, sentence: str) -> None:
    assert mistake(file, f"inner: {{}}\n\n{text}", Outer).startswith(f"own.yaml line 3: {sentence}")


def test_a_mistake_is_told_where_it_is_written_after_mappings_and_lists_are_put_together(tmp_path: Path) -> None:
    below, above = tmp_path / "below.yaml", tmp_path / "above.yaml"
    below.write_text("inner:\n  number: 1.0\nmany:\n- {}\n- nmber: 1.0\n")
    above.write_text("\n\nlast: 0\nmany: [{}]")
    first, second = read_yaml(below), read_yaml(above)
    whole = overlaid(first, second)
    with pytest.raises(UserError, match=r"above\.yaml line 3: key 'last' has value 0"):
        validate(Outer, whole, "nowhere")
    whole = overlaid(whole, {"last": 1, "many": joined(second["many"], first["many"])})
    with pytest.raises(UserError, match=r"below\.yaml line 5: unknown key 'many\.2\.nmber'"):
        validate(Outer, whole, "nowhere")
    assert place(whole, ("many", 0), "nowhere").endswith("above.yaml line 4")
    assert place(whole, ("named", "B"), "nowhere") == "nowhere"


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
        f"own.yaml line 2: key 'learning_rate' has value '{written}': YAML reads {written} as text; write {corrected}"
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
    ],
)
def test_a_wrong_value_is_told_with_its_key_and_what_is_allowed(file: Path, line: str, sentence: str) -> None:
    text = f"# training\n{line}" if line.startswith("batch_size") else f"batch_size: 8\n{line}"
    assert mistake(file, text) == f"own.yaml line 2: {sentence}"


def test_values_that_do_not_go_together_are_told_without_a_line(file: Path) -> None:
    assert mistake(file, "batch_size: 8\nepoch_images: 12") == (
        "own.yaml: epoch_images 12 must be a multiple of batch_size 8"
    )


def test_values_that_do_not_go_together_inside_are_told_with_the_line_of_what_holds_them(file: Path) -> None:
    assert mistake(
        file, "inner: {}\nmany:\n- {}\n- number: 1.0\n  schedule:\n    kind: step\n    values: [1.0]", Outer
    ) == (
        'own.yaml line 5: key \'many.1.schedule\' has value \'{"kind": "step", "values": [1.0]}\': a step schedule takes 2 '
        "value(s) of lambda, none negative; got (1.0,)"
    )


def test_a_whole_number_serves_where_a_real_one_is_wanted(file: Path) -> None:
    file.write_text("batch_size: 8\nlearning_rate: 1")
    training = validate(Training, read_yaml(file), "own.yaml")
    assert training.learning_rate == 1.0
    assert isinstance(training.learning_rate, float)


def test_what_is_no_yaml_is_refused_with_the_line(file: Path) -> None:
    """The parser's words in brackets are libyaml's or PyYAML's."""
    assert mistake(file, "batch_size: [8\nseed: 1").startswith("own.yaml line 2: not valid YAML (")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("batch_size: 8\nseed: 0\nbatch_size: 9", "own.yaml line 3: not valid YAML (key 'batch_size' is given twice)"),
        ("", "own.yaml: expected keys and values, found nothing"),
        ("- batch_size", "own.yaml: expected keys and values, found list"),
        (
            "batch_size: 2020-01-01",
            "own.yaml: Object of type date is not JSON serializable; quote dates and other special YAML values",
        ),
    ],
)
def test_a_file_that_holds_no_mapping_is_refused_with_the_line(file: Path, text: str, sentence: str) -> None:
    assert mistake(file, text) == sentence


@pytest.mark.parametrize(
    ("written", "read"), [("010", "8"), ("-0_7", "-7"), ("1:30", "90"), ("-1:30", "-90"), ("1:30.5", "90.5")]
)
def test_numbers_that_yaml_reads_as_others_are_refused_wherever_they_stand(file: Path, written: str, read: str) -> None:
    sentence = f"YAML reads {written} as {read}; write {read}, or quote it"
    assert mistake(file, f"batch_size: 8\nseed: {written}") == f"own.yaml line 2: {sentence}"
    assert mistake(file, f"betas:\n- 0.9\n- {written}") == f"own.yaml line 3: {sentence}"


def test_plain_numbers_are_read_as_before(file: Path) -> None:
    file.write_text("{a: 0, b: -3, c: 1_000, d: 0x10, e: 0.5, f: 00.5, g: '010', h: 1.0e-4}")
    assert list(read_yaml(file).values()) == [0, -3, 1000, 16, 0.5, 0.5, "010", 1e-4]


def test_a_mapping_inside_itself_is_refused(file: Path) -> None:
    assert mistake(file, "inner: &inner\n  schedule: *inner", Outer) == (
        "own.yaml line 1: not valid YAML (found unconstructable recursive node)"
    )


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
    file.write_bytes(b"title: a\0b\n")
    with pytest.raises(UserError, match=r"own\.yaml: not valid YAML \([^\n]+\)$") as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=r"own\.yaml cannot be read: Is a directory$"):
        read_yaml(file)
