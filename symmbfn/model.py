"""SymmBFN: the loss of a batch and the sampler, on top of the flows and the network.

Ruple et al., npj Comput. Mater. 12, 182 (2026), with these changes: the network estimates x̂ rather
than the noise; the Wyckoff position itself is the discrete variable, masked to those of the space
group, instead of fifteen free site-symmetry axes; coordinates are projected on it; cross-entropy
replaces the squared error of the categorical loss.
"""

from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from symmbfn.bayesian_flow import CategoricalFlow, GaussianFlow
from symmbfn.data import Batch, CrystalData, count_kinds
from symmbfn.network import (
    NUM_ELEMENTS,
    Network,
    NetworkConfig,
    NetworkInput,
)
from symmbfn.wyckoff import LATTICE_BASIS, LATTICE_FIXED, LATTICE_FREE, MAX_LETTERS, lattice_family

KINDS_FROM = 0.5  # time from which the sampler holds to the number of elements
UNLIKELY = 12.0  # nats


@dataclass(frozen=True)
class ModelConfig:
    """Everything that makes a model but its weights.

    Attributes:
        network: Size of the network.
        properties: Names of the conditions, in the order of the network's inputs.
        sigma1_coordinates, sigma1_lattice, beta1_elements, beta1_letters: Flow constants.
        weight_coordinates, weight_lattice, weight_elements, weight_letters: Loss weights.
        drop_property, drop_kinds: Probability that a condition is hidden in training.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    properties: tuple[str, ...] = ()
    sigma1_coordinates: float = 0.02
    sigma1_lattice: float = 0.02
    beta1_elements: float = 0.25
    beta1_letters: float = 1.0
    weight_coordinates: float = 1.0
    weight_lattice: float = 0.5
    weight_elements: float = 0.5
    weight_letters: float = 0.5
    drop_property: float = 0.3
    drop_kinds: float = 0.1

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> "ModelConfig":
        """Inverse of `to_dict`."""
        values = dict(values)
        network = NetworkConfig(**values.pop("network"))  # type: ignore[arg-type]
        properties: tuple[str, ...] = tuple(values.pop("properties"))  # type: ignore[arg-type]
        return cls(network=network, properties=properties, **values)  # type: ignore[arg-type]


@dataclass
class Beliefs:
    """Parameters of the input distributions of B crystals at one time.

    Attributes:
        coordinates: (B, N, 3) μ of 2 x - 1.
        lattice: (B, 6) μ of the standardised k.
        elements: (B, N, 100) and
        letters: (B, N, 27) logits.
    """

    coordinates: Tensor
    lattice: Tensor
    elements: Tensor
    letters: Tensor


@dataclass
class Estimates:
    """What the network makes of beliefs: x̂ of the continuous variables, log p of the others."""

    coordinates: Tensor
    lattice: Tensor
    elements: Tensor
    letters: Tensor


@dataclass
class Template:
    """What is drawn before the flow starts.

    Attributes:
        group: (B,) space group - 1.
        mask: (B, N), True for real orbits.
        kinds: (B,) number of distinct elements, 0 where left open.
        properties: (B, P) targets in their own units, NaN where left open.
        allowed: (B, 100) or (100,), elements that may occur.
    """

    group: Tensor
    mask: Tensor
    kinds: Tensor
    properties: Tensor
    allowed: Tensor


@dataclass
class Draw:
    """Finished variables of B crystals.

    Attributes:
        coordinates: (B, N, 3) fractions, not yet on their positions.
        lattice: (B, 6) k-parameters, the family's fixed ones exact.
        elements: (B, N, 100) and
        letters: (B, N, 27) log-probabilities.
    """

    coordinates: Tensor
    lattice: Tensor
    elements: Tensor
    letters: Tensor


class SymmBFN(nn.Module):
    """The generative model.

    Buffers, saved with the weights: lattice_mean, lattice_std (6,); property_mean, property_std
    (P,); elements (100,), True for those of the training data; templates (R, 4), rows of (space
    group - 1, orbits, distinct elements, count) of the training data.
    """

    def __init__(self, config: ModelConfig, num_templates: int = 0) -> None:
        super().__init__()
        self.config = config
        self.network = Network(config.network)
        self.coordinate_flow = GaussianFlow(config.sigma1_coordinates, spread=0.5)
        self.lattice_flow = GaussianFlow(config.sigma1_lattice, spread=1.0)
        self.element_flow = CategoricalFlow(config.beta1_elements, NUM_ELEMENTS)
        self.letter_flow = CategoricalFlow(config.beta1_letters, MAX_LETTERS)

        families = [lattice_family(number) for number in range(1, 231)]
        self.lattice_free: Tensor
        self.lattice_fixed: Tensor
        self.lattice_basis: Tensor
        for name, table in (
            ("lattice_free", LATTICE_FREE[families]),
            ("lattice_fixed", LATTICE_FIXED[families]),
            ("lattice_basis", LATTICE_BASIS),
        ):
            self.register_buffer(name, torch.from_numpy(table).float(), persistent=False)
        self.lattice_mean: Tensor
        self.lattice_std: Tensor
        self.property_mean: Tensor
        self.property_std: Tensor
        self.elements: Tensor
        self.templates: Tensor
        self.register_buffer("lattice_mean", torch.zeros(6))
        self.register_buffer("lattice_std", torch.ones(6))
        self.register_buffer("property_mean", torch.zeros(len(config.properties)))
        self.register_buffer("property_std", torch.ones(len(config.properties)))
        self.register_buffer("elements", torch.ones(NUM_ELEMENTS, dtype=torch.bool))
        self.register_buffer("templates", torch.zeros(num_templates, 4, dtype=torch.long))

    @classmethod
    def for_data(cls, config: ModelConfig, data: CrystalData) -> "SymmBFN":
        """A fresh model with the scales and frequencies of a training set.

        The properties become those of the data that `config` names.
        """
        free = torch.from_numpy(LATTICE_FREE)[
            [lattice_family(g + 1) for g in data.group.tolist()]
        ].float()
        count = free.sum(0).clamp_min(1)
        mean = (data.lattice * free).sum(0) / count
        variance = ((data.lattice - mean) ** 2 * free).sum(0) / count
        rows = torch.stack([data.group.long(), data.orbits, data.kinds()], 1)
        templates, counts = rows.unique(dim=0, return_counts=True)

        model = cls(config, len(templates))
        model.lattice_mean.copy_(mean)
        model.lattice_std.copy_(variance.sqrt().clamp_min(1e-2))
        model.templates.copy_(torch.cat([templates, counts[:, None]], 1))
        for index, name in enumerate(config.properties):
            column = data.properties[:, data.names.index(name)]
            known = column[~column.isnan()]
            model.property_mean[index] = known.mean()
            model.property_std[index] = known.std().clamp_min(1e-6)
        model.elements.copy_(torch.zeros(NUM_ELEMENTS, dtype=torch.bool))
        model.elements[data.species[data.mask()].long().unique()] = True
        return model

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Training losses of a batch at random times.

        Returns:
            Scalars: `loss` (weighted sum); coordinates (per orbit) and lattice (per crystal),
            squared errors of the free components in units of what is unknown at that time;
            elements and letters, cross-entropies per orbit, nats.
        """
        size, device = len(batch.group), batch.group.device

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        t = (torch.arange(size, device=device) + uniform(size)) / size
        t = t[torch.randperm(size, generator=generator, device=device)]
        x = 2 * batch.coordinates - 1
        k = self._standardise(batch.lattice, batch.group)
        species = F.one_hot(batch.species, NUM_ELEMENTS).float()
        letters = F.one_hot(batch.letters, MAX_LETTERS).float()
        beliefs = Beliefs(
            coordinates=self.coordinate_flow.noisy(x, t, generator),
            lattice=self.lattice_flow.noisy(k, t, generator),
            elements=self.element_flow.noisy(species, t, generator),
            letters=self.letter_flow.noisy(letters, t, generator),
        )
        kinds = count_kinds(batch.species, batch.mask)
        properties = batch.properties.masked_fill(
            uniform(*batch.properties.shape) < self.config.drop_property, torch.nan
        )
        template = Template(
            group=batch.group,
            mask=batch.mask,
            kinds=kinds.masked_fill(uniform(size) < self.config.drop_kinds, 0),
            properties=properties,
            allowed=torch.ones_like(self.elements),
        )
        estimates = self.estimate(beliefs, t, template)

        projector = self.network.tables.projectors[batch.group[:, None], batch.letters][..., :3]
        error = torch.einsum("bnij,bnj->bni", projector, estimates.coordinates - x)
        error = error / self.coordinate_flow.scale(t)[:, None, None]
        coordinates = error.square().sum(-1)[batch.mask].mean()

        error = (estimates.lattice - k) / self.lattice_flow.scale(t)[:, None]
        error = error * self.lattice_free[batch.group]
        lattice = error.square().sum(-1).mean()

        elements = F.nll_loss(estimates.elements[batch.mask], batch.species[batch.mask])
        positions = F.nll_loss(estimates.letters[batch.mask], batch.letters[batch.mask])
        weights = self.config
        return {
            "loss": weights.weight_coordinates * coordinates
            + weights.weight_lattice * lattice
            + weights.weight_elements * elements
            + weights.weight_letters * positions,
            "coordinates": coordinates.detach(),
            "lattice": lattice.detach(),
            "elements": elements.detach(),
            "letters": positions.detach(),
        }

    def estimate(self, beliefs: Beliefs, t: Tensor, template: Template) -> Estimates:
        """One network call: estimates of all variables from beliefs at times t (B,).

        An orbit's own belief enters the output exactly: the posterior of a class is its belief
        times what the rest of the crystal says, and x̂ is the linear estimate plus a correction.
        """
        tables, group = self.network.tables, template.group
        skip = self.coordinate_flow.skip(t)[:, None, None] * beliefs.coordinates
        lattice = self.lattice_flow.skip(t)[:, None] * beliefs.lattice
        legal = tables.legal[group][:, None]
        letters = beliefs.letters.masked_fill(~legal, -torch.inf).log_softmax(-1)
        allowed = template.allowed.expand(len(group), -1)[:, None]
        elements = beliefs.elements.masked_fill(~allowed, -torch.inf).log_softmax(-1)
        points = (skip + 1) / 2
        output = self.network(
            NetworkInput(
                t=t,
                group=group,
                mask=template.mask,
                kinds=template.kinds,
                properties=(template.properties - self.property_mean) / self.property_std,
                coordinates=points,
                projected=self._project(points, letters.exp(), group),
                lattice=lattice,
                cell=self._cell(lattice, group),
                elements=elements.exp(),
                letters=letters.exp(),
            )
        )
        scale = self.coordinate_flow.scale(t)[:, None, None]
        return Estimates(
            coordinates=skip + scale * output.coordinates,
            lattice=lattice + self.lattice_flow.scale(t)[:, None] * output.lattice,
            elements=(elements + output.elements).log_softmax(-1),
            letters=(letters + output.letters).log_softmax(-1),
        )

    @torch.no_grad()
    def sample(self, template: Template, steps: int, generator: torch.Generator) -> Draw:
        """Draw crystals (Graves et al., algorithms 3 and 9).

        Args:
            template: What is given.
            steps: Bayesian updates n; n + 1 network calls.
            generator: Source of all randomness.
        """
        size, orbits = template.mask.shape
        group, device = template.group, template.group.device
        beliefs = Beliefs(
            coordinates=torch.zeros(size, orbits, 3, device=device),
            lattice=torch.zeros(size, 6, device=device),
            elements=torch.zeros(size, orbits, NUM_ELEMENTS, device=device),
            letters=torch.zeros(size, orbits, MAX_LETTERS, device=device),
        )
        for step in range(1, steps + 1):
            t = torch.full((size,), (step - 1) / steps, device=device)
            x = self.estimate(beliefs, t, template)
            if (step - 1) / steps >= KINDS_FROM:
                x.elements = limit_kinds(x.elements, template.mask, template.kinds)
            points = self._project((x.coordinates + 1) / 2, x.letters.exp(), group)
            lattice = x.lattice * self.lattice_free[group]
            beliefs = Beliefs(
                coordinates=self.coordinate_flow.update(
                    beliefs.coordinates, 2 * points - 1, step, steps, generator
                ),
                lattice=self.lattice_flow.update(beliefs.lattice, lattice, step, steps, generator),
                elements=self.element_flow.update(
                    beliefs.elements, _draw(x.elements, generator), step, steps, generator
                ),
                letters=self.letter_flow.update(
                    beliefs.letters, _draw(x.letters, generator), step, steps, generator
                ),
            )
        x = self.estimate(beliefs, torch.ones(size, device=device), template)
        x.elements = limit_kinds(x.elements, template.mask, template.kinds)
        return Draw(
            coordinates=(x.coordinates + 1) / 2,
            lattice=self._unstandardise(x.lattice, group),
            elements=x.elements,
            letters=x.letters,
        )

    def _standardise(self, lattice: Tensor, group: Tensor) -> Tensor:
        """(B, 6) free k in units of the data; the family's fixed ones become 0."""
        return (lattice - self.lattice_mean) / self.lattice_std * self.lattice_free[group]

    def _unstandardise(self, lattice: Tensor, group: Tensor) -> Tensor:
        k = lattice * self.lattice_std + self.lattice_mean
        return torch.where(self.lattice_free[group] > 0, k, self.lattice_fixed[group])

    def _cell(self, lattice: Tensor, group: Tensor) -> Tensor:
        """(B, 3, 3) lattice vectors (rows, Å) of standardised k."""
        k = self._unstandardise(lattice, group)
        values, vectors = torch.linalg.eigh(torch.einsum("bk,kij->bij", k, self.lattice_basis))
        cell: Tensor = (vectors * values.exp()[:, None]) @ vectors.mT  # faster than matrix_exp
        return cell

    def _project(self, points: Tensor, letters: Tensor, group: Tensor) -> Tensor:
        """(B, N, 3) points on the expected Wyckoff positions: Σ p (A x + b)."""
        tables = self.network.tables.projectors[group]
        expected = torch.einsum("bnl,blij->bnij", letters, tables)
        return torch.einsum("bnij,bnj->bni", expected[..., :3], points) + expected[..., 3]


def limit_kinds(log_probabilities: Tensor, mask: Tensor, kinds: Tensor) -> Tensor:
    """Make all but the `kinds` elements that explain the orbits best very unlikely.

    The flow draws the elements of different orbits too independently; this conditions it on their
    number. The elements are chosen one by one, each the one that most raises the joint probability
    of the orbits.

    Args:
        log_probabilities: (B, N, 100).
        mask: (B, N), True for real orbits.
        kinds: (B,) number of distinct elements, 0 for any.

    Returns:
        (B, N, 100) log-probabilities.
    """
    probabilities = log_probabilities.exp() * mask[..., None]
    chosen = torch.zeros_like(probabilities[:, 0], dtype=torch.bool)
    covered = torch.full_like(probabilities[..., 0], 1e-3)
    for count in range(int(kinds.max())):
        gain = (covered[..., None] + probabilities).log().sum(1)
        best = gain.masked_fill(chosen, -torch.inf).argmax(-1)
        wanted = kinds > count
        chosen[wanted, best[wanted]] = True
        added = probabilities.gather(2, best[:, None, None].expand(*mask.shape, 1))[..., 0]
        covered = covered + added * wanted[:, None]
    unlikely = ~chosen & (kinds > 0)[:, None]
    return (log_probabilities - UNLIKELY * unlikely[:, None]).log_softmax(-1)


def _draw(log_probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One-hot samples of (..., K) distributions."""
    classes = log_probabilities.shape[-1]
    flat = log_probabilities.exp().reshape(-1, classes)
    index = torch.multinomial(flat, 1, generator=generator)[:, 0]
    return F.one_hot(index, classes).view(log_probabilities.shape).float()
