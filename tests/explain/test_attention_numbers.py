"""Numbers of attention maps, against loops over numpy arrays and on maps whose numbers are known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from videornn.explain import attention_numbers
from videornn.explain.attention_numbers import MEANING, block_numbers, logit_variances
from videornn.models import ATTENTION_KINDS
from videornn.models.nonlocal_block import DisentangledNonLocal, GaussianNonLocal, NonLocal, PairwiseNonLocal


def _block(kind: str, axes: str = "spacetime", **options) -> nn.Module:
    torch.manual_seed(1)
    block = ATTENTION_KINDS[kind](6, axes=axes, **options)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.6)
    return block.eval()


def _in_loops(maps: np.ndarray | None, unary: np.ndarray | None) -> dict[str, float]:
    """The numbers from maps [groups, N, M] and unary weights [groups, M], element by element."""
    found: dict[str, list[float]] = {"query_dependence": [], "effective_keys": [], "unary_effective_keys": [], "overlap": []}
    for group in range(len(unary if maps is None else maps)):
        if unary is not None:
            found["unary_effective_keys"].append(_perplexity(unary[group]) / unary.shape[1])
        if maps is None:
            continue
        num_queries, num_keys = maps.shape[1:]
        strengths = [[abs(w) for w in row] if any(row) else [1.0] * num_keys for row in maps[group].tolist()]
        shares = [[strength / sum(row) for strength in row] for row in strengths]
        mean = [sum(row[j] for row in shares) / num_queries for j in range(num_keys)]
        distances = [sum(abs(row[j] - mean[j]) for j in range(num_keys)) / 2 for row in shares]
        found["query_dependence"].append(sum(distances) / num_queries)
        found["effective_keys"].append(sum(_perplexity(row) for row in shares) / num_queries / num_keys)
        if unary is not None:
            found["overlap"].append(sum(min(unary[group, j], mean[j]) for j in range(num_keys)))
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def _perplexity(shares) -> float:
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


@pytest.mark.parametrize("kind", list(ATTENTION_KINDS))
@pytest.mark.parametrize("axes", ["spacetime", "space", "time"])
def test_numbers_are_those_of_loops_over_the_whole_map(kind: str, axes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = _block(kind, axes)
    x = torch.randn(1, 6, 3, 4, 2)
    maps, unary = (None if part is None else part.double().numpy() for part in block.attention(x))
    expected = _in_loops(maps, unary)
    with torch.no_grad():
        output = block(x)
    expected["change"] = np.linalg.norm((output - x).numpy()) / np.linalg.norm(x.numpy())
    if isinstance(block, NonLocal):
        of_pairwise, of_unary = (part.double().numpy() for part in block.split(x))
        shared = 0 if isinstance(block, PairwiseNonLocal) else of_unary[:, None]  # a softmax of its own, or none
        expected["logit_deviation"] = math.sqrt(np.mean([np.var(row) for group in of_pairwise + shared for row in group]))
    numbers = block_numbers(block, x, output)
    share = {"pairwise_share"} if kind in ("nl", "nl_gaussian", "nl_own_mask") else set()
    assert set(numbers) == set(expected) | share and set(numbers) <= set(MEANING)
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(value, rel=1e-4), name
    monkeypatch.setattr(attention_numbers, "CHUNK_ENTRIES", 60)
    assert block_numbers(block, x, output) == pytest.approx(numbers, rel=1e-5)


@pytest.mark.parametrize("kind", ["nl", "nl_gaussian", "nl_own_mask"])
@pytest.mark.parametrize("axes", ["spacetime", "space"])
def test_the_shares_of_both_terms_are_those_of_the_variance_of_the_logits(kind: str, axes: str) -> None:
    block = _block(kind, axes, key_pool=(1, 2, 2))
    x = torch.randn(1, 6, 3, 4, 6) + 0.5
    pairwise, unary = (part.double().numpy() for part in block.split(x))
    of_pairwise = np.array([np.mean([np.var(row) for row in group]) for group in pairwise])
    of_unary = np.array([np.var(row) for row in unary])
    of_sum = np.array([np.mean([np.var(row) for row in group]) for group in pairwise + unary[:, None]])
    np.testing.assert_allclose(of_pairwise + of_unary, of_sum, rtol=1e-5)  # the terms do not covary
    for found, expected in zip(logit_variances(block, x), (of_pairwise, of_unary), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert block_numbers(block, x, x)["pairwise_share"] == pytest.approx(np.mean(of_pairwise / of_sum), rel=1e-4)


def test_logits_that_all_queries_share_are_not_pairwise() -> None:
    block = _block("nl")
    nn.init.zeros_(block.query.weight)  # every query is the bias
    x = torch.randn(1, 6, 3, 4, 4)
    numbers = block_numbers(block, x, x)
    assert numbers["query_dependence"] == pytest.approx(0, abs=1e-6)
    assert numbers["pairwise_share"] == pytest.approx(0, abs=1e-6) and numbers["change"] == 0
    alone = PairwiseNonLocal(6)
    nn.init.zeros_(alone.query.weight)
    numbers = block_numbers(alone, x, x)
    assert numbers["query_dependence"] == pytest.approx(0, abs=1e-6) and numbers["effective_keys"] == pytest.approx(1)


def test_queries_that_attend_to_themselves_have_nothing_in_common() -> None:
    x = 20 * torch.eye(24).reshape(1, 24, 2, 3, 4)  # every position has a channel of its own
    numbers = block_numbers(GaussianNonLocal(24), x, 2 * x)
    assert numbers["query_dependence"] == pytest.approx(23 / 24) and numbers["effective_keys"] == pytest.approx(1 / 24)
    assert numbers["change"] == pytest.approx(1)


def test_halves_that_do_the_same_overlap_fully_and_apart_not_at_all() -> None:
    block = DisentangledNonLocal(6)
    for convolution in (block.query, block.mask):
        nn.init.zeros_(convolution.weight)  # both even
    numbers = block_numbers(block, x := torch.randn(1, 6, 2, 4, 4), x)
    assert numbers["overlap"] == pytest.approx(1) and numbers["unary_effective_keys"] == pytest.approx(1)
    left, right = torch.tensor([[0.5, 0.5, 0, 0]]), torch.tensor([[0, 0, 0.1, 0.9]])
    assert attention_numbers.overlap(left, right) == 0


def test_no_more_than_a_chunk_of_a_large_map_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_numbers, "CHUNK_ENTRIES", 5000)
    block, x = _block("nl"), torch.randn(1, 6, 4, 16, 16)
    sizes, asked = [], []
    rows = block.map_rows(x, x)

    def counted(part: torch.Tensor) -> torch.Tensor:
        sizes.append(rows(part).numel())
        asked.append(len(part))
        return rows(part)

    with torch.no_grad():
        _, dependence, effective = attention_numbers.map_numbers(counted, 1024, x.device, 300)
        _, exact_dependence, exact_effective = attention_numbers.map_numbers(block.map_rows(x, x), 1024, x.device, 1024)
    assert max(sizes) <= 5000 and sum(asked) == 2 * (300 + 1)
    assert float(dependence) == pytest.approx(float(exact_dependence), rel=0.05)
    assert float(effective) == pytest.approx(float(exact_effective), rel=0.05)


def test_a_query_without_any_weight_counts_as_even() -> None:
    shares, dependence, effective = attention_numbers.map_numbers(
        lambda rows: torch.zeros(1, len(rows), 5), 4, torch.device("cpu"), 4
    )
    assert shares.tolist() == [pytest.approx([0.2] * 5)] and dependence == 0 and effective == pytest.approx(1)
