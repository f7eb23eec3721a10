"""Inputs: deterministic, in the dtype, of the promised shape and kind; checksums; files that do not fit."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.case import Case, Inputs
from harness.worker import inputs
from harness.worker.generators import GENERATORS
from harness.worker.inputs import IGNORE_INDEX, checksum, draw

CPU = torch.device("cpu")
KINDS = sorted(GENERATORS)


def small(**changes) -> Case:
    return Case.model_validate({"tokens": 12, "hidden_size": 16, "vocab_size": 50, "linear_bias": True, **changes})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_dtypes(kind, dtype):
    case = small(inputs=kind, dtype=dtype, label_smoothing=0.1)
    tensors = draw(case, CPU)
    wanted = getattr(torch, dtype)
    assert tensors.linear_bias is not None
    for tensor, shape in ((tensors.input, (12, 16)), (tensors.linear_weight, (50, 16)), (tensors.linear_bias, (50,))):
        assert (tensor.shape, tensor.dtype) == (shape, wanted)
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        assert tensor.isfinite().all()
    assert tensors.target.dtype == torch.int64
    assert ((tensors.target >= 0) & (tensors.target < 50)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_edge_shapes(kind, beta):
    # the smallest of everything; V beyond 256 by one, the ragged tile; a softcap that the peaked kinds cannot reach
    for tokens, vocab_size in ((1, 2), (3, 257)):
        case = small(
            tokens=tokens, hidden_size=8, vocab_size=vocab_size, inputs=kind, label_smoothing=beta, softcap=2.0
        )
        tensors = draw(case, CPU)
        assert tensors.input.isfinite().all()
        assert tensors.input.any()


def test_seed_fixes_the_draw():
    assert checksum(draw(small(seed=3), CPU)) == checksum(draw(small(seed=3), CPU))
    assert checksum(draw(small(seed=3), CPU)) != checksum(draw(small(seed=4), CPU))


def test_equal_in_another_process():
    case = small(seed=5, ignored_fraction=0.25, reduction="none")
    program = (
        "import sys, torch\nfrom harness.case import Case\nfrom harness.worker.inputs import checksum, draw\n"
        "print(checksum(draw(Case.model_validate_json(sys.argv[1]), torch.device('cpu'))))"
    )
    command = [sys.executable, "-c", program, case.model_dump_json()]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert printed.stdout.strip() == checksum(draw(case, CPU))


@pytest.mark.parametrize("block", [1 << 22, 16])  # 16: many blocks, so that their combination is tested as well
def test_checksum_sees_every_single_element(block, monkeypatch):
    monkeypatch.setattr(inputs, "_BLOCK", block)
    tensors = draw(small(tokens=3, hidden_size=9, vocab_size=7, reduction="none"), CPU)
    seen = {checksum(tensors)}
    count = 1
    for name in ("input", "linear_weight", "linear_bias", "target", "upstream"):
        original = getattr(tensors, name)
        for index in range(original.numel()):
            changed = original.clone()
            octets = changed.view(-1).view(torch.uint8)
            octets[index * original.element_size()] ^= 1  # the last bit of the mantissa
            seen.add(checksum(replace(tensors, **{name: changed})))
            count += 1
    assert len(seen) == count


def test_checksum_sees_exchanged_rows_and_a_scalar():
    tensors = draw(small(), CPU)
    assert checksum(replace(tensors, input=tensors.input.roll(1, 0))) != checksum(tensors)
    assert checksum(replace(tensors, upstream=-tensors.upstream)) != checksum(tensors)
    assert checksum(replace(tensors, linear_bias=None)) != checksum(tensors)


def test_checksum_of_an_unaligned_view():
    tensors = draw(small(), CPU)
    storage = torch.empty(tensors.input.numel() + 1, dtype=tensors.input.dtype)
    unaligned = storage[1:].view(tensors.input.shape)
    unaligned.copy_(tensors.input)
    assert checksum(replace(tensors, input=unaligned)) == checksum(tensors)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_ignored_rows(fraction):
    target = draw(small(tokens=25, ignored_fraction=fraction), CPU).target
    assert int((target == IGNORE_INDEX).sum()) == round(25 * fraction)


def test_upstream_is_never_one():
    assert float(draw(small(), CPU).upstream) == pytest.approx(0.7)
    upstream = draw(small(reduction="none"), CPU).upstream
    assert upstream.shape == (12,)
    assert upstream.dtype == torch.float32
    assert ((upstream >= 0.5) & (upstream < 1.5)).all()


# --- files


def write(path: Path, **changes) -> Path:
    tensors = {
        "input": torch.randn(4, 8).bfloat16(),
        "linear_weight": torch.randn(6, 8).bfloat16(),
        "target": torch.tensor([0, 5, IGNORE_INDEX, 3]),
        **changes,
    }
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return path


def file_case(path: Path, **changes) -> Case:
    kind = Inputs(kind="file", path=str(path))
    return Case.model_validate({"tokens": 4, "hidden_size": 8, "vocab_size": 6, "inputs": kind, **changes})


def test_a_file_is_taken_as_it_is(tmp_path):
    bias = torch.randn(6).bfloat16()
    target = torch.tensor([1, 2, 3, 4])
    path = write(tmp_path / "captured.safetensors", linear_bias=bias, target=target)
    tensors = draw(file_case(path, linear_bias=True), CPU)
    assert tensors.linear_bias is not None
    assert tensors.linear_bias.equal(bias)
    assert tensors.target.equal(target)
    assert checksum(tensors) == checksum(draw(file_case(path, linear_bias=True), CPU))


@pytest.mark.parametrize(
    ("changes", "case_changes", "message"),
    [
        ({"target": None}, {}, "has no tensor target; it has input, linear_weight"),
        ({}, {"linear_bias": True}, "has no tensor linear_bias"),
        ({"linear_bias": torch.zeros(6)}, {}, "has linear_bias, but the case says linear_bias: false"),
        ({}, {"tokens": 5}, r"input is \(4, 8\), the case needs \(5, 8\); target is \(4,\), the case needs \(5,\)"),
        ({}, {"vocab_size": 7}, r"linear_weight is \(6, 8\), the case needs \(7, 8\)"),
        ({}, {"dtype": "float16"}, r"input is bfloat16, the case needs float16"),
        ({"target": torch.tensor([0, 6, -1, 3])}, {}, r"2 targets are neither in 0..5 nor -100"),
        ({"target": torch.tensor([0, 1, 2, 3], dtype=torch.int32)}, {}, "target is int32, the case needs int64"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path, changes, case_changes, message):
    path = write(tmp_path / "captured.safetensors", **changes)
    with pytest.raises(ValueError, match=message) as raised:
        draw(file_case(path, **case_changes), CPU)
    assert str(path) in str(raised.value)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        draw(file_case(tmp_path / "absent.safetensors"), CPU)
    (tmp_path / "text.safetensors").write_text("not tensors")
    with pytest.raises(ValueError, match=r"text\.safetensors: not a safetensors file"):
        draw(file_case(tmp_path / "text.safetensors"), CPU)


# --- another batch over the same head


def every_draw(case: Case) -> dict[str, torch.Tensor]:
    """Both draws of a case, as the generators gave them."""
    given = []
    original = GENERATORS[case.inputs.kind]

    def recorded(*arguments):
        given.append(original(*arguments))
        return given[-1]

    GENERATORS[case.inputs.kind] = recorded
    try:
        tensors, (input, target) = draw(case, CPU), inputs.draw_another_batch(case, CPU)
    finally:
        GENERATORS[case.inputs.kind] = original
    assert len(given) == 2
    return {"head": given[0][1], "head again": given[1][1], "input": input, "target": target, "timed": tensors}


@pytest.mark.parametrize("kind", KINDS)
def test_another_batch_is_of_other_tokens_over_the_same_head(kind):
    drawn = every_draw(small(tokens=40, inputs=kind, ignored_fraction=0.25, seed=7))
    assert drawn["head"].equal(drawn["head again"])
    timed = drawn["timed"]
    assert (drawn["input"].shape, drawn["input"].dtype) == (timed.input.shape, timed.input.dtype)
    assert not any(row.equal(other) for row in drawn["input"] for other in timed.input)
    assert not drawn["target"].equal(timed.target)
    assert int((drawn["target"] == IGNORE_INDEX).sum()) == 10
    again, _ = inputs.draw_another_batch(small(tokens=40, inputs=kind, ignored_fraction=0.25, seed=7), CPU)
    assert again.equal(drawn["input"])


def test_a_file_has_no_other_tokens(tmp_path):
    assert inputs.draw_another_batch(file_case(write(tmp_path / "captured.safetensors")), CPU) is None
