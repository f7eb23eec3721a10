"""Training files: what is read from them, and what is said about their mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.selection import InvalidSelection
from harness.training.config import load_training, with_losses
from harness.yaml_source import InvalidFile

COMPARISONS = sorted(Path("examples").glob("training*.yaml"))
FOR_THEIR_MODELS = sorted([*Path("examples/captured").glob("*.yaml"), *Path("examples/calibration").glob("*.yaml")])


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda p: p.stem)
def test_shipped_trainings_are_valid_and_have_a_yardstick(path: Path) -> None:
    config = load_training(path)
    assert {loss.name for loss in config.loss} >= {"baseline", "torch-compile", "ours-exact", "ours-paper", "cce"}
    assert config.training.label_smoothing == [0.0, 0.1]


@pytest.mark.parametrize("path", FOR_THEIR_MODELS, ids=lambda p: p.stem)
def test_models_are_trained_with_exact_gradients_and_smoothing(path: Path) -> None:
    config = load_training(path)
    assert [loss.name for loss in config.loss] == ["ours-exact"]
    assert {0.0, 0.1} <= set(config.training.label_smoothing)


def test_the_calibration_sweep_is_two_sizes_by_two_softcaps() -> None:
    configs = [load_training(path) for path in FOR_THEIR_MODELS if path.parent.name == "calibration"]
    configs = [config for config in configs if len(config.training.label_smoothing) == 6]
    assert {(c.model.hidden_size, c.model.softcap) for c in configs} == {(d, s) for d in (256, 768) for s in (None, 30)}
    assert all(c.training.label_smoothing == [0.0, 0.05, 0.1, 0.2, 0.3, 0.5] for c in configs)
    script = Path("examples/calibration/run.sh").read_text()
    assert all(path.stem in script for path in FOR_THEIR_MODELS if path.parent.name == "calibration")


def test_the_models_to_be_over_confident_read_their_text_often() -> None:
    configs = [load_training(Path(f"examples/calibration/repeated-d{size}.yaml")) for size in (256, 768)]
    assert [c.model.hidden_size for c in configs] == [256, 768]
    for config in configs:
        tokens = config.training.steps * config.training.batch_size * config.model.context
        text = config.data.max_bytes * (1 - config.data.held_out_fraction)
        assert tokens > 10 * text / 3  # no fewer than 3 bytes to a token


def test_the_parity_run_is_what_it_promises() -> None:
    config = load_training(Path("examples/training.yaml"))
    assert config.training.steps >= 2000
    assert config.model.vocab_size >= 32768
    assert {loss.name for loss in config.loss} >= {
        "liger", "ours-paper-no-sort", "ours-paper-no-filter", "ours-fused", "ours-fused-no-filter",
    }  # fmt: skip


def test_losses_times_smoothings_are_the_curves(toy) -> None:
    config = toy(loss=["baseline", "ours-exact"], training={"label_smoothing": [0.0, 0.1]})
    assert [c.id for c in config.curves()] == ["baseline-b0", "ours-exact-b0", "baseline-b0.1", "ours-exact-b0.1"]
    assert toy(loss="baseline", training={"label_smoothing": 0.1}).curves()[0].id == "baseline-b0.1"


def test_a_case_is_what_a_step_asks_of_the_loss(toy) -> None:
    config = toy(model={"softcap": 30.0}, training={"label_smoothing": 0.1})
    case = config.case(config.curves()[0], "cuda")
    assert (case.tokens, case.hidden_size, case.vocab_size) == (64, 16, 300)
    assert (case.label_smoothing, case.softcap, case.dtype, case.reduction) == (0.1, 30.0, "bfloat16", "mean")
    assert config.case(config.curves()[0], "cpu").dtype == "float32"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("layers: 2", "layers: 2\n  soft_cap: 9.0", 5, "unknown key 'model.soft_cap', did you mean 'softcap'?"),
        ("hidden_size: 16", "hidden_size: 18", 5, "hidden_size 18 is not divisible by 4 heads"),
        ("hidden_size: 16", "hidden_size: 12", 5, "a head is 3 wide (hidden_size 12 / 4)"),
        ("vocab_size: 300", "vocab_size: 200", 2, "model.vocab_size: should be greater than or equal to 257, not 200"),
        ("learning_rate: 0.01", "learning_rate: 1e-2", 12, "write 1.0e-2"),
        ("warmup_steps: 2", "warmup_steps: 6", 13, "training.warmup_steps: 6 is not less than steps, 6"),
        ("warmup_steps: 2", "label_smoothing: [0.1, 0.1]", 13, "0.1 is listed twice"),
        ("warmup_steps: 2", "keep_steps: [3, 9]", 13, "training.keep_steps: 9: the training has 6 steps"),
        ("warmup_steps: 2", "label_smoothing: 1.5", 13, "less than or equal to 1, not 1.5"),
        ("warmup_steps: 2", "schedule: cosin", 13, "'cosin' is none of 'cosine' or 'constant', did you mean 'cosine'?"),
        ("- baseline", "- basline", 15, "no implementation is called 'basline', did you mean 'baseline'?"),
        ("- baseline", "- lower-bound", 14, "'lower-bound' runs nothing, so it trains nothing"),
        ("- baseline", "- baseline\n- baseline", 14, "baseline is listed twice"),
        ("text: TEXT", "text: nowhere", 8, "data.text: no file or directory nowhere (seen from "),
        ("text: TEXT", "dataset: nowhere.parquet", 8, "data.dataset: no file nowhere.parquet"),
        ("text: TEXT", "dataset: pyproject.toml", 8, "pyproject.toml is a file, but none of .parquet, .json, .jsonl"),
        ("text: TEXT", "text: TEXT\n  dataset: x", 9, "give text or dataset, not both"),
    ],
)
def test_mistakes_have_their_line(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    good = (
        "model:\n  vocab_size: 300\n  hidden_size: 16\n  layers: 2\n  heads: 4\n  context: 16\n"
        "data:\n  text: TEXT\ntraining:\n  steps: 6\n  batch_size: 4\n  learning_rate: 0.01\n  warmup_steps: 2\n"
        "loss:\n- baseline\n"
    )
    path = tmp_path / "toy.yaml"
    path.write_text(good.replace("TEXT", str(tmp_path)))
    load_training(path)
    path.write_text(good.replace(old, new).replace("TEXT", str(tmp_path)))
    with pytest.raises(InvalidFile) as caught:
        load_training(path)
    assert len(caught.value.mistakes) == 1
    message = str(caught.value.mistakes[0])
    assert message.startswith(f"{path}:{line}: ")
    assert words in message


def test_the_command_lines_losses_replace_the_files(toy_file: Callable[..., Path]) -> None:
    config = load_training(toy_file(loss=["baseline", {"name": "torchtune-chunked", "options": {"chunks": 2}}]))
    chosen = with_losses(config, ["torchtune-chunked", "ours-exact"])
    assert [(loss.name, loss.options) for loss in chosen.loss] == [
        ("torchtune-chunked", {"chunks": 2}),
        ("ours-exact", {}),
    ]
    assert with_losses(config, []) == config
    for given, words in (
        (["our-exact"], "did you mean 'ours-exact'?"),
        (["baseline,cce"], "repeat --loss for each"),
        (["cce", "cce"], "twice"),
    ):
        with pytest.raises(InvalidSelection, match=words.replace("?", r"\?")):
            with_losses(config, given)
