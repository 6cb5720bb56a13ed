"""The Bayesian flows: one small class per kind of variable (Graves et al. 2023, arXiv 2308.07037).

A flow knows how beliefs about a variable sharpen with time t in [0, 1]: `noisy` draws the belief a
training step sees, and `update` is one Bayesian update with a sender sample. At t = 0 all
parameters are 0: μ of the prior, and the logits of equal classes. Symbols are the paper's. Times
have shape (B,); variables (B, ...).
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
class CategoricalFlow:
    """Discrete variables of K classes; the belief is kept as logits, softmax(y) = θ (section 6).

    Attributes:
        beta1: Accuracy at t = 1.
        classes: K.
    """

    beta1: float
    classes: int

    def alpha(self, step: int, steps: int) -> float:
        """Accuracy of the sender at step 1..steps: αᵢ = β₁ (2i - 1) / n² (eq. 193)."""
        return self.beta1 * (2 * step - 1) / steps**2

    def noisy(self, one_hot: Tensor, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits y ~ N(β(t) (K e - 1), β(t) K) with β = β₁ t² (eq. 182-185)."""
        beta = self.beta1 * _expand(t, one_hot) ** 2
        return self._sender(one_hot, beta, generator)

    def update(
        self,
        logits: Tensor,
        one_hot: Tensor,
        step: int,
        steps: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Logits after a sender sample: θ' ∝ exp(y) θ (eq. 171)."""
        alpha = torch.full((), self.alpha(step, steps), device=logits.device)
        return logits + self._sender(one_hot, alpha, generator)

    def _sender(
        self, one_hot: Tensor, accuracy: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        mean = accuracy * (self.classes * one_hot - 1)
        return mean + (accuracy * self.classes).sqrt() * _randn(one_hot, generator)
