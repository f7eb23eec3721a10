"""suites/captured.yaml asks for what examples/captured/ makes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.suite_file import load_suite
from harness.training.config import TrainingConfig, load_training

CASES = load_suite(Path("suites/captured.yaml")).cases_on("cuda")
NAME = re.compile(r"captured/(?P<model>[a-z]+)-b(?P<beta>[0-9.]+)-(?P<when>late|early)(-(?P<tokens>\d+))?\.safetensors")
SCRIPT = Path("examples/captured/run.sh").read_text()


def training(model: str) -> TrainingConfig:
    return load_training(Path(f"examples/captured/{model}.yaml"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.inputs.label)
def test_shapes_are_the_models(case) -> None:
    found = NAME.fullmatch(case.inputs.path)
    assert found is not None
    config = training(found["model"])
    assert (case.hidden_size, case.vocab_size, case.softcap) == (
        config.model.hidden_size,
        config.model.vocab_size,
        config.model.softcap,
    )
    assert case.label_smoothing == float(found["beta"])
    assert case.label_smoothing in config.training.label_smoothing
    assert found["model"] in SCRIPT.split("for model in ")[1].split(";")[0].split()
    assert config.training.keep_steps == [300] and "kept-000300" in SCRIPT
    assert case.tokens == int(found["tokens"] or 32768)


def test_models_sizes_and_moments() -> None:
    """Three models of at least 50000 tokens, with and without smoothing, early and late."""
    kinds = {NAME.fullmatch(case.inputs.path).group("model", "beta", "when") for case in CASES}
    assert len({model for model, _, _ in kinds}) >= 3
    assert {beta for _, beta, _ in kinds} == {"0", "0.1"}
    assert {when for _, _, when in kinds} == {"late", "early"}
    assert all(case.vocab_size >= 50_000 for case in CASES)
    assert max(case.tokens for case in CASES) == 65536
