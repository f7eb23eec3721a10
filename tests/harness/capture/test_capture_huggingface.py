"""Captures of tiny, randomly initialised Hugging Face models, read back as a suite reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.capture.activations import capture, suite_case, write
from harness.capture.describe import capture_to, inspect
from harness.capture.orders import ORDERS
from harness.capture.source import InvalidSource, Source, from_huggingface
from harness.suite_file import load_suite
from harness.worker.inputs import checksum, draw

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
WORDS = "".join(f"the {n} quick brown foxes jump over {n * n} lazy dogs. " for n in range(400))
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "gemma2": ("Gemma2", {"head_dim": 16, "final_logit_softcapping": 3.0, "sliding_window": 32}),
    "granite": ("Granite", {"logits_scaling": 4.0}),
}


def saved(kind: str, directory: Path) -> Any:
    """A model of that family and its tokenizer in `directory`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    family, settings = MODELS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE, **settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # logits of some size, else a softcap would not show
    model.save_pretrained(directory)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([WORDS], trainer=trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    return model


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(WORDS)
    return file


def source(kind: str, tmp_path: Path, text: Path, context: int = 48) -> tuple[Any, Source]:
    model = saved(kind, tmp_path / kind)
    return model, from_huggingface(str(tmp_path / kind), [text], context, CPU)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_the_captured_loss_is_the_models_own(kind: str, tmp_path: Path, text: Path) -> None:
    model, found = source(kind, tmp_path, text)
    tensors = capture(found, 96, "float32", tmp_path / "x.safetensors").tensors
    tokens = torch.from_numpy(found.tokens[:97])
    windows = tokens[:96].view(2, 48)
    with torch.no_grad():
        logits = model(input_ids=windows).logits.flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, tokens[1:])
        z = tensors.input @ tensors.linear_weight.t()
        z = z if found.softcap is None else torch.tanh(z / found.softcap) * found.softcap
    assert torch.equal(tensors.target, tokens[1:])
    torch.testing.assert_close(torch.nn.functional.cross_entropy(z, tensors.target), expected)
    assert found.softcap == (3.0 if kind == "gemma2" else None)


def test_the_file_is_a_suites_input(tmp_path: Path, text: Path) -> None:
    _, found = source("gemma2", tmp_path, text)
    path = tmp_path / "gemma2.safetensors"
    activations = capture(found, 100, "bfloat16", path)  # two windows and a bit
    write(activations, path)
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"name: x\ndescription: y\ncases:\n  {suite_case(activations.case)}\nimplementations: [baseline]\n"
    )
    (case,) = load_suite(suite, to_be_run=True).cases_on("cpu")
    assert case == activations.case
    assert case.softcap == 3.0
    assert checksum(draw(case, CPU)) == checksum(activations.tensors)
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["class"] == "Gemma2ForCausalLM"
    assert metadata["checksum"] == checksum(activations.tensors)
    statistics = json.loads(metadata["statistics"])
    assert 0 < statistics["entropy_nats"] < 5.71 and statistics["counted_rows"] == 100


def test_inspect_shows_every_order(tmp_path: Path, text: Path) -> None:
    saved("gemma2", tmp_path / "gemma2")
    path = tmp_path / "gemma2.safetensors"
    printed = capture_to(
        str(tmp_path / "gemma2"), path, text=[text], tokens=96, context=48, dtype="bfloat16", device=CPU
    )
    assert "inputs: {kind: file, path: " in printed and "| entropy_nats" in printed
    lines = inspect(path, tile=32, orders=list(ORDERS), device=CPU).splitlines()
    assert lines[0].endswith("N 96, D 32, V 300, tiles of 32 classes")
    assert [line.split("|")[1].strip() for line in lines[4::3]] == list(ORDERS)
    assert len(lines) == 4 + 3 * len(ORDERS)
    with pytest.raises(InvalidSource, match="no order alphabetic; there are tokenizer, average-logit"):
        inspect(path, tile=32, orders=["alphabetic"], device=CPU)
    with pytest.raises(InvalidSource, match="nowhere is no captured file"):
        inspect(tmp_path / "nowhere", tile=32, orders=["tokenizer"], device=CPU)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": None}, "it has no tensor target; it has input, linear_weight"),
        ({"input": torch.ones(3, 5)}, r"input (3, 5), linear_weight (8, 4), target (3,) are not (N, D), (V, D), (N,)"),
        ({"target": torch.tensor([0, 8, -1])}, "2 of the targets are neither in 0..7 nor -100"),
        ({"target": torch.zeros(3)}, "target is torch.float32, not torch.int64"),
        ({"input": torch.ones(3, 4).half()}, "input is torch.float16 and linear_weight torch.float32"),
    ],
)
def test_inspect_names_what_is_wrong_in_a_file(tmp_path: Path, changes: dict[str, Tensor | None], said: str) -> None:
    good = {"input": torch.eye(3, 4), "linear_weight": torch.eye(8, 4), "target": torch.tensor([0, 7, -100])}
    save_file(good, tmp_path / "good")
    assert inspect(tmp_path / "good", tile=4, orders=["tokenizer"], device=CPU).startswith(f"{tmp_path / 'good'}: N 3")
    save_file({name: value for name, value in (good | changes).items() if value is not None}, tmp_path / "bad")
    with pytest.raises(InvalidSource, match=re.escape(f"bad is no captured file: {said}")):
        inspect(tmp_path / "bad", tile=4, orders=["tokenizer"], device=CPU)


def test_a_scale_on_the_logits_is_refused(tmp_path: Path, text: Path) -> None:
    with pytest.raises(InvalidSource, match=r"does not end in its head: its logits differ by .* standard deviations"):
        source("granite", tmp_path, text)


def test_a_text_that_is_too_short(tmp_path: Path, text: Path) -> None:
    _, found = source("llama", tmp_path, text)
    with pytest.raises(InvalidSource, match="1000000 were asked for"):
        capture(found, 1_000_000, "float32", tmp_path / "x")


def test_what_cannot_be_read_is_named(tmp_path: Path, text: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    with pytest.raises(InvalidSource, match=r"no text to run model on: nothing in .*empty\.txt"):
        from_huggingface("model", [empty], 48, CPU)
    with pytest.raises(InvalidSource, match=r"--text FILE \(model is no directory here, .* on the Hugging Face hub\)$"):
        from_huggingface("model", [], 48, CPU)
    with pytest.raises(InvalidSource, match=r"--text FILE$"):
        from_huggingface(str(tmp_path), [], 48, CPU)
    with pytest.raises(InvalidSource, match=r"nowhere\.txt cannot be read as text"):
        from_huggingface("model", [tmp_path / "nowhere.txt"], 48, CPU)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InvalidSource, match="nothing cannot be loaded by transformers"):
        from_huggingface(str(tmp_path / "nothing"), [text], 48, CPU)
