"""Training: what a step does, what repeats, and that ours is torch's on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.running.run_directory import UnusableRun
from harness.training import execution, trainer
from harness.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from harness.training.config import Curve, TrainingConfig
from harness.training.curve_log import CurveLog
from harness.training.trainer import batch_loss, learning_rate, train_curve
from harness.training.training_run import TrainingRun
from implementations.registry import load

TrainToy = Callable[..., CurveLog]


@pytest.fixture
def train_toy(tmp_path: Path) -> TrainToy:
    """Trains the config's first curve, with `loss_function` in place of its own, into a directory of this name."""

    def train(config: TrainingConfig, name: str, loss_function: Callable[..., torch.Tensor] | None = None) -> CurveLog:
        curve: Curve = config.curves()[0]
        log = CurveLog(tmp_path / name)
        text = execution._encoded(config, execution._read(config))
        loss = loss_function or load(curve.loss.location).build()
        train_curve(curve, config, loss, text, torch.device("cpu"), log, lambda step: None)
        return log

    return train


def test_ours_follows_torch_to_rounding(toy, train_toy: TrainToy) -> None:
    for beta, softcap in ((0.0, None), (0.1, None), (0.1, 5.0)):
        settings = {"model": {"softcap": softcap}, "training": {"label_smoothing": beta, "steps": 12}}
        theirs, ours = (
            train_toy(toy(loss=name, **settings), f"{name}-{beta}-{softcap}").steps()
            for name in ("baseline", "ours-exact")
        )
        for name in ("loss", "grad_norm"):
            expected = [getattr(step, name) for step in theirs]
            assert [getattr(step, name) for step in ours] == pytest.approx(expected, rel=2e-5), (beta, softcap, name)
    # and what is compared is no constant
    assert ours[-1].loss < ours[0].loss - 0.1


def test_what_a_loss_says_of_itself_is_kept_and_touches_nothing(toy, train_toy: TrainToy) -> None:
    baseline = load("implementations.baseline:baseline").build()

    class Telling:
        def __call__(self, *operands: torch.Tensor, **settings: object) -> torch.Tensor:
            return baseline(*operands, **settings)

        def figures(self, input: torch.Tensor, linear_weight: torch.Tensor, *rest: object, **settings: object):
            upstream = settings.pop("upstream")
            baseline(input, linear_weight, *rest, **settings).backward(upstream)
            assert input.grad is not None and linear_weight.grad is not None
            return {"rows": float(len(input))}

    config = toy(training={"steps": 6, "evaluate_every": 3})
    plain, telling = train_toy(config, "plain"), train_toy(config, "telling", Telling())
    assert [e.figures for e in telling.evaluations()] == [{"rows": 64.0}] * 2
    assert [e.figures for e in plain.evaluations()] == [{}] * 2
    assert [(s.loss, s.grad_norm) for s in plain.steps()] == [(s.loss, s.grad_norm) for s in telling.steps()]


def test_the_default_row_trains_and_tells(toy, train_toy: TrainToy) -> None:
    log = train_toy(toy(loss="ours", training={"steps": 3}), "ours")
    assert log.steps()[-1].step == 3
    assert all(math.isfinite(value) for e in log.evaluations() for value in e.figures.values())


def test_the_first_loss_is_that_of_the_formula(toy, train_toy: TrainToy) -> None:
    config = toy(training={"label_smoothing": 0.1})
    log = train_toy(config, "b")
    # fresh weights know nothing: every class is about equally likely, smoothed or not
    assert log.steps()[0].loss == pytest.approx(math.log(300), abs=0.05)


def test_equal_seeds_are_equal_curves_and_others_are_not(toy, train_toy: TrainToy) -> None:
    def curve(name: str, **training: object) -> list[tuple[float, float]]:
        return [(s.loss, s.grad_norm) for s in train_toy(toy(training=training), name).steps()]

    assert curve("a") == curve("b")
    assert curve("c", seed=1) != curve("b")


def test_a_run_in_two_parts_is_a_run_in_one(toy, train_toy: TrainToy, tmp_path: Path) -> None:
    whole = train_toy(toy(training={"checkpoint_every": 2, "evaluate_every": 2}), "whole")
    calls = 0

    def dies(*arguments: torch.Tensor, **settings: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("killed")
        return load("implementations.baseline:baseline").build()(*arguments, **settings)

    parted = toy(training={"checkpoint_every": 2, "evaluate_every": 2})
    with pytest.raises(RuntimeError, match="killed"):
        train_toy(parted, "parts", dies)
    log = CurveLog(tmp_path / "parts")
    assert [s.step for s in log.steps()] == [1, 2, 3]  # step 3 is ahead of the checkpoint, and is made again
    log = train_toy(parted, "parts")
    assert [(s.step, s.loss, s.grad_norm, s.learning_rate) for s in log.steps()] == [
        (s.step, s.loss, s.grad_norm, s.learning_rate) for s in whole.steps()
    ]
    assert log.evaluations() == whole.evaluations()
    assert [e.step for e in log.evaluations()] == [2, 4, 6]


def test_a_step_says_all_that_a_curve_needs(toy, train_toy: TrainToy) -> None:
    steps = train_toy(toy(training={"steps": 12}), "run").steps()
    assert [s.step for s in steps] == list(range(1, 13))
    assert [s.warm for s in steps] == [False] * 10 + [True] * 2
    assert all(s.tokens_per_s == pytest.approx(64 / (s.step_ms / 1e3)) for s in steps)
    assert all(s.peak_bytes is None for s in steps)


def test_the_learning_rate_warms_up_and_falls(toy) -> None:
    settings = toy(training={"steps": 102, "warmup_steps": 2, "learning_rate": 1.0}).training
    rates = [learning_rate(step, settings) for step in (1, 2, 52, 102)]
    assert rates == pytest.approx([0.5, 1.0, 0.55, 0.1])
    constant = toy(training={"schedule": "constant", "warmup_steps": 0, "learning_rate": 1.0}).training
    assert [learning_rate(step, constant) for step in (1, 6)] == [1.0, 1.0]


def test_clipping_bounds_the_update_not_the_record(toy, train_toy: TrainToy) -> None:
    free = train_toy(toy(training={"gradient_clip": None}), "free").steps()
    tight = train_toy(toy(training={"gradient_clip": 1e-6}), "tight").steps()
    assert free[0].grad_norm == tight[0].grad_norm > 1e-3
    assert free[-1].loss != tight[-1].loss


def test_a_loss_that_is_no_number_stops_its_curve(toy, train_toy: TrainToy) -> None:
    def nan(input: torch.Tensor, weight: torch.Tensor, *arguments: object, **settings: object) -> torch.Tensor:
        return input.sum() * math.nan + weight.sum()

    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        train_toy(toy(), "nan", nan)


def test_a_checkpoint_is_the_model_and_its_tokenizer(toy, train_toy: TrainToy) -> None:
    config = toy(training={"label_smoothing": 0.1}, model={"tied": False})
    log = train_toy(config, "run")
    path = latest_checkpoint(log.checkpoints)
    assert path is not None
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert [p.name for p in log.checkpoints.iterdir()] == ["step-000006"]
    for given in (path, log.path):
        loaded = load_checkpoint(given, "cpu")
        assert (loaded.step, loaded.loss, loaded.label_smoothing, loaded.config) == (6, "baseline", 0.1, config)
    ids = loaded.tokenizer.encode("abc def abc def abc def abc def").ids
    windows = torch.tensor([ids[:17]])
    value = batch_loss(loaded.model, load("implementations.baseline:baseline").build(), windows, 0.0)
    assert 0 < value.item() < math.log(300)


def test_only_a_training_that_goes_on_keeps_its_moments(
    toy, train_toy: TrainToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[int, bool]] = []

    def note(directory: Path, model: object, optimizer: object, *rest: object) -> Path:
        path = save_checkpoint(directory, model, optimizer, *rest)  # type: ignore[arg-type]
        saved.append((int(path.name[-6:]), (path / "state.pt").exists()))
        return path

    monkeypatch.setattr(trainer, "save_checkpoint", note)
    config = toy(training={"checkpoint_every": 3})
    lines = train_toy(config, "run").steps()
    assert saved == [(3, True), (6, False)]
    assert train_toy(config, "run").steps() == lines  # killed between the last checkpoint and the outcome


def test_kept_steps_are_models_and_do_not_disturb(toy, train_toy: TrainToy) -> None:
    log = train_toy(toy(training={"keep_steps": [2, 4], "checkpoint_every": 3}), "run")
    assert sorted(p.name for p in log.checkpoints.iterdir()) == ["kept-000002", "kept-000004", "step-000006"]
    kept, last = load_checkpoint(log.checkpoints / "kept-000002", "cpu"), load_checkpoint(log.path, "cpu")
    assert (kept.step, last.step) == (2, 6)
    assert not torch.equal(kept.model.head_weight, last.model.head_weight)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UnusableRun, match=r"holds no checkpoint: model.safetensors, config.json, tokenizer.json miss"):
        load_checkpoint(tmp_path, "cpu")


def test_of_two_checkpoints_the_later_counts_and_half_ones_do_not(tmp_path: Path) -> None:
    for name in ("step-000002", "step-000010", "step-000012.new"):  # killed before the older was removed
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000010"


def test_no_plan(tmp_path: Path) -> None:
    with pytest.raises(UnusableRun, match=r"holds no training run: plan.json is missing"):
        TrainingRun(tmp_path).plan()
