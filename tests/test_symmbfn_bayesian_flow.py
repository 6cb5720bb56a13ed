"""Each Bayesian update against its closed form."""

import math

import pytest
import torch

from symmbfn.bayesian_flow import ErasureFlow, GaussianFlow, random_subset

GAUSSIAN = GaussianFlow(sigma1=0.02, spread=0.5)


def test_accuracies_add_up_to_the_schedule() -> None:
    steps = 40
    total = sum(GAUSSIAN.alpha(i, steps) for i in range(1, steps + 1))
    assert total == pytest.approx(0.02**-2 - 1, rel=1e-6)


def test_gaussian_update_is_the_precision_weighted_mean() -> None:
    steps, step = 10, 4
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
    mu, x = torch.randn(5, 3), torch.randn(5, 3)
    rho, alpha = 0.02 ** (-2 * 3 / 10), GAUSSIAN.alpha(step, steps)
    y = x + noise / math.sqrt(alpha)
    expected = (rho * mu + alpha * y) / (rho + alpha)
    torch.testing.assert_close(GAUSSIAN.update(mu, x, step, steps, generator), expected)
    assert rho + alpha == pytest.approx(0.02 ** (-2 * 4 / 10))


def test_chained_gaussian_updates_follow_the_training_distribution() -> None:
    """Updates towards a fixed x end in N(γ x, γ (1 - γ)), what training draws in one go."""
    steps, samples = 20, 200_000
    generator = torch.Generator().manual_seed(0)
    x = torch.full((samples,), 0.7)
    mu = torch.zeros(samples)
    for step in range(1, 11):
        mu = GAUSSIAN.update(mu, x, step, steps, generator)
    gamma = GAUSSIAN.gamma(torch.tensor(0.5)).item()
    assert mu.mean().item() == pytest.approx(gamma * 0.7, abs=2e-3)
    assert mu.var().item() == pytest.approx(gamma * (1 - gamma), rel=0.02)
    direct = GAUSSIAN.noisy(x, torch.full((samples,), 0.5), generator)
    assert direct.mean().item() == pytest.approx(gamma * 0.7, abs=2e-3)
    assert direct.var().item() == pytest.approx(gamma * (1 - gamma), rel=0.02)


def test_erasure_update_is_bayes_rule() -> None:
    """The likelihood of an erased message is the same for all classes, of another 1 or 0."""
    flow = ErasureFlow(classes=4)
    belief = torch.tensor([4, 4, 2, 2])
    message = torch.tensor([1, 3, 2, 0])
    arrives = torch.tensor([True, False, False, True])

    def distribution(belief: torch.Tensor) -> torch.Tensor:
        certain = torch.nn.functional.one_hot(belief, 5)[:, :4].float()
        return torch.where(belief[:, None] == 4, torch.full((4, 4), 0.25), certain)

    erased = torch.ones(4, 4)
    told = torch.nn.functional.one_hot(message, 4).float()
    posterior = distribution(belief) * torch.where(arrives[:, None], told, erased)
    impossible = posterior.sum(1) == 0  # contradicts what is certain: the belief stays
    posterior[impossible] = distribution(belief)[impossible]
    updated = distribution(flow.update(belief, message, arrives))
    torch.testing.assert_close(updated, posterior / posterior.sum(1, keepdim=True))


def test_messages_one_after_another_end_in_the_classes() -> None:
    flow = ErasureFlow(classes=9)
    x = torch.tensor([[3, 0, 8, 5]])
    belief = flow.noisy(x, torch.zeros(1, 4, dtype=torch.bool))
    assert belief.tolist() == [[9, 9, 9, 9]]
    for orbit in (2, 0, 3, 1):
        belief = flow.update(belief, x, torch.arange(4)[None] == orbit)
        assert belief[0, orbit] == x[0, orbit]
    assert (belief == x).all()


def test_a_random_subset_has_the_share_and_is_fair() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([True, True, True, True, False]).expand(4000, -1)
    subset = random_subset(mask, torch.full((4000,), 0.6), generator)
    assert (subset.sum(1) == 2).all() and not subset[:, 4].any()
    torch.testing.assert_close(
        subset[:, :4].float().mean(0), torch.full((4,), 0.5), atol=0.04, rtol=0
    )
    assert not random_subset(mask, torch.zeros(4000), generator).any()


def test_linear_estimate_is_the_posterior_of_gaussian_data() -> None:
    """For x ~ N(0, s²) seen through μ, E[x|μ] = skip μ, and its standard deviation is `scale`."""
    t = torch.tensor([0.0, 0.3, 0.6, 1.0])
    x = 0.5 * torch.randn(4, 200_000, generator=torch.Generator().manual_seed(0))
    mu = GAUSSIAN.noisy(x, t, torch.Generator().manual_seed(1))
    residual = x - GAUSSIAN.skip(t)[:, None] * mu
    torch.testing.assert_close(residual.std(1), GAUSSIAN.scale(t), rtol=0.02, atol=1e-4)
    covariance = (residual * mu).mean(1)
    torch.testing.assert_close(covariance, torch.zeros(4), atol=3e-3, rtol=0)
