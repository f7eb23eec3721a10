"""The classwise errors at a vocabulary where (N, V) or (N, V, bins) in one piece would be seen."""

import pytest
import torch

from harness.calibration.classwise import adaptive_class_errors, static_class_errors
from harness.calibration.tokens import token_statistics
from harness.worker.products import slices
from tests.harness.calibration import naive


@pytest.fixture
def largest(monkeypatch):
    """The largest number of elements of any tensor that an operation returns inside."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
            return result

    return Watch()


def test_nothing_of_tokens_times_vocabulary(largest):
    tokens, vocab_size, bins, chunk = 400, 4096, 15, 4 * 200_000
    head = naive.random_head(0, vocab_size=vocab_size)
    hidden, target = naive.random_tokens(0, head, tokens)
    with largest:
        statistics = token_statistics(hidden, target, head, chunk_bytes=chunk)
        static = static_class_errors(hidden, target, head, bin_count=bins, chunk_bytes=chunk)
        adaptive = adaptive_class_errors(hidden, head, statistics, bin_count=bins, chunk_bytes=chunk)
    assert largest.elements <= max(vocab_size * bins, chunk // 4)
    assert largest.elements < tokens * vocab_size / 4
    assert len(slices(tokens, 4 * vocab_size, chunk)) > 4  # so that there was something to chunk
    # the two agree where they must: each is at least the classes' overall gap, and both are about the sampling noise
    p, frequency = naive.probabilities(hidden, head).mean(0), torch.bincount(target, minlength=vocab_size) / tokens
    overall = (p - frequency).abs()
    assert bool((static.absolute >= overall - 1e-6).all())
    assert bool((adaptive.absolute >= overall - 1e-6).all())
    assert static.total <= 2
    assert adaptive.total <= 2


def test_squared_errors_by_definition():
    head = naive.random_head(3, vocab_size=9, temperature=0.5)
    hidden, target = naive.random_tokens(3, head, 120)
    options = {"bin_count": 4, "chunk_bytes": 3000, "dtype": torch.float64}
    statistics = token_statistics(hidden, target, head, dtype=torch.float64)
    p = naive.probabilities(hidden, head)
    for found, gaps in (
        (static_class_errors(hidden, target, head, **options), naive.width_gaps),
        (adaptive_class_errors(hidden, head, statistics, **options), naive.mass_gaps),
    ):
        expected = torch.tensor([naive.l2(gaps(p[:, k], target == k, 4)) ** 2 for k in range(9)], dtype=torch.float64)
        torch.testing.assert_close(found.squared, expected, rtol=1e-10, atol=1e-14)
        assert found.root_mean_square == pytest.approx(float(expected.mean().sqrt()))


def test_one_bin_is_the_overall_gap():
    head = naive.random_head(4)
    hidden, target = naive.random_tokens(4, head)
    statistics = token_statistics(hidden, target, head, dtype=torch.float64)
    options = {"bin_count": 1, "dtype": torch.float64}
    overall = (naive.probabilities(hidden, head).mean(0) - torch.bincount(target, minlength=23) / 200).abs()
    torch.testing.assert_close(static_class_errors(hidden, target, head, **options).absolute, overall)
    torch.testing.assert_close(adaptive_class_errors(hidden, head, statistics, **options).absolute, overall)


def test_other_tokens_than_those_of_the_statistics():
    head = naive.random_head(4)
    hidden, target = naive.random_tokens(4, head, ignored=0.5)
    with pytest.raises(ValueError, match=r"hidden must be \(100, D\)"):
        adaptive_class_errors(hidden, head, token_statistics(hidden, target, head))
