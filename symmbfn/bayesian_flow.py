"""The Bayesian flows: one small class per kind of variable (Graves et al. 2023, arXiv 2308.07037).

A flow knows how beliefs about a variable sharpen: `noisy` draws the belief that a training step
sees, and `update` is one Bayesian update with a sender's message. Continuous beliefs sharpen with
time t in [0, 1], from μ = 0, the prior's; discrete ones with each message that arrives. Symbols are
the paper's. Times have shape (B,); variables (B, ...).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def _expand(t: Tensor, like: Tensor) -> Tensor:
    """View (B,) times as (B, 1, …) beside a variable."""
    return t.view(-1, *([1] * (like.dim() - 1)))


def _randn(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


@dataclass(frozen=True)
class GaussianFlow:
    """Continuous variables; the belief is N(μ, 1/ρ), known to ±σ₁ at t = 1 (section 4).

    Attributes:
        sigma1: Standard deviation of the belief at t = 1.
        spread: Standard deviation of the data, for `skip` and `scale`.
    """

    sigma1: float
    spread: float

    def gamma(self, t: Tensor) -> Tensor:
        """γ(t) = 1 - σ₁^(2t) (eq. 80)."""
        return -torch.expm1(2 * t * math.log(self.sigma1))

    def alpha(self, step: int, steps: int) -> float:
        """Accuracy of the sender at step 1..steps: αᵢ = σ₁^(-2i/n) (1 - σ₁^(2/n)) (eq. 95)."""
        return float(self.sigma1 ** (-2 * step / steps) * (1 - self.sigma1 ** (2 / steps)))

    def noisy(self, x: Tensor, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """μ at time t: N(γ x, γ (1 - γ)) (eq. 77)."""
        gamma = _expand(self.gamma(t), x)
        return gamma * x + (gamma * (1 - gamma)).sqrt() * _randn(x, generator)

    def update(
        self,
        mu: Tensor,
        x: Tensor,
        step: int,
        steps: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """μ after a sender sample y ~ N(x, 1/α): (ρ μ + α y) / (ρ + α) (eq. 50)."""
        rho = float(self.sigma1 ** (-2 * (step - 1) / steps))
        alpha = self.alpha(step, steps)
        y = x + _randn(x, generator) / math.sqrt(alpha)
        return (rho * mu + alpha * y) / (rho + alpha)

    def skip(self, t: Tensor) -> Tensor:
        """The c in E[x | μ] = c μ for data N(0, spread²): s² / (γ s² + 1 - γ)."""
        gamma, variance = self.gamma(t), self.spread**2
        skip: Tensor = variance / (gamma * variance + 1 - gamma)
        return skip

    def scale(self, t: Tensor) -> Tensor:
        """Standard deviation left in x - c μ: s √((1 - γ) / (γ s² + 1 - γ)).

        A network output F makes the estimate x̂ = c μ + scale · F, which is precise at t = 1 and
        does not blow up at t = 0; the loss (eq. 101) is then nearly uniform in F.
        """
        gamma, variance = self.gamma(t), self.spread**2
        return torch.sqrt(variance * (1 - gamma) / (gamma * variance + 1 - gamma))


@dataclass(frozen=True)
class ErasureFlow:
    """Discrete variables of K classes; the sender tells the class or erases it.

    Bayes' rule then has two outcomes: an erased message leaves the belief what it was, the prior,
    and one that arrives makes it certain. A belief is a class index, with K for "not known yet".
    When the messages arrive one after another in random order, the loss of eq. 9 of Graves et al.
    is the exact -log p of the variables (Hoogeboom et al., arXiv 2110.02037), and a sampler that
    follows makes no error by drawing variables independently of each other, as the Gaussian sender
    of section 6 does in few steps.

    Attributes:
        classes: K.
    """

    classes: int

    def noisy(self, x: Tensor, arrived: Tensor) -> Tensor:
        """Beliefs about classes x of which those in the mask `arrived` are known."""
        return torch.where(arrived, x, self.classes)

    def update(self, belief: Tensor, message: Tensor, arrives: Tensor) -> Tensor:
        """Beliefs after messages of which those in the mask `arrives` are not erased."""
        return torch.where(arrives & (belief == self.classes), message, belief)


def random_subset(mask: Tensor, share: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(B, N) mask of ⌊share · n⌋ random members of the n in each row of a (B, N) mask."""
    draws = torch.rand(mask.shape, generator=generator, device=mask.device)
    ranks = draws.masked_fill(~mask, 2.0).argsort(1).argsort(1)
    return ranks < (share * mask.sum(1)).long()[:, None]
