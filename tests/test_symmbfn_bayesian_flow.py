"""Each Bayesian update against its closed form."""

import math

import pytest
import torch

from symmbfn.bayesian_flow import CategoricalFlow, GaussianFlow

GAUSSIAN = GaussianFlow(sigma1=0.02, spread=0.5)
CATEGORICAL = CategoricalFlow(beta1=0.25, classes=100)


def test_accuracies_add_up_to_the_schedule() -> None:
    steps = 40
    total = sum(GAUSSIAN.alpha(i, steps) for i in range(1, steps + 1))
    assert total == pytest.approx(0.02**-2 - 1, rel=1e-6)
    total = sum(CATEGORICAL.alpha(i, steps) for i in range(1, steps + 1))
    assert total == pytest.approx(0.25)


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


def test_categorical_update_is_bayes_rule() -> None:
    """With equal norms, the likelihood of y under class k is proportional to exp(y_k)."""
    flow = CategoricalFlow(beta1=1.0, classes=4)
    logits = torch.randn(6, 4)
    one_hot = torch.eye(4)[torch.tensor([0, 1, 2, 3, 0, 1])]
    updated = flow.update(logits, one_hot, 3, 5, torch.Generator().manual_seed(1))
    y = updated - logits
    alpha = flow.alpha(3, 5)
    means = alpha * (4 * torch.eye(4) - 1)
    log_likelihood = -((y[:, None] - means) ** 2).sum(-1) / (2 * alpha * 4)
    posterior = (log_likelihood + logits.log_softmax(-1)).softmax(-1)
    torch.testing.assert_close(updated.softmax(-1), posterior)


def test_chained_categorical_updates_follow_the_training_distribution() -> None:
    steps, samples = 8, 100_000
    generator = torch.Generator().manual_seed(0)
    flow = CategoricalFlow(beta1=1.0, classes=3)
    one_hot = torch.tensor([0.0, 1.0, 0.0]).expand(samples, 3)
    logits = torch.zeros(samples, 3)
    for step in range(1, 5):
        logits = flow.update(logits, one_hot, step, steps, generator)
    beta = 0.5**2
    expected = beta * (3 * one_hot[0] - 1)
    torch.testing.assert_close(logits.mean(0), expected, atol=1.5e-2, rtol=0)
    torch.testing.assert_close(logits.var(0), torch.full((3,), beta * 3), atol=2e-2, rtol=0)
    direct = flow.noisy(one_hot, torch.full((samples,), 0.5), generator)
    torch.testing.assert_close(direct.mean(0), expected, atol=1.5e-2, rtol=0)
    torch.testing.assert_close(direct.var(0), torch.full((3,), beta * 3), atol=2e-2, rtol=0)


def test_linear_estimate_is_the_posterior_of_gaussian_data() -> None:
    """For x ~ N(0, s²) seen through μ, E[x|μ] = skip μ, and its standard deviation is `scale`."""
    t = torch.tensor([0.0, 0.3, 0.6, 1.0])
    x = 0.5 * torch.randn(4, 200_000, generator=torch.Generator().manual_seed(0))
    mu = GAUSSIAN.noisy(x, t, torch.Generator().manual_seed(1))
    residual = x - GAUSSIAN.skip(t)[:, None] * mu
    torch.testing.assert_close(residual.std(1), GAUSSIAN.scale(t), rtol=0.02, atol=1e-4)
    covariance = (residual * mu).mean(1)
    torch.testing.assert_close(covariance, torch.zeros(4), atol=3e-3, rtol=0)
