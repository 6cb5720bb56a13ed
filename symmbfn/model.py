"""SymmBFN: the loss of a batch and the sampler, on top of the flows and the networks.

Ruple et al., npj Comput. Mater. 12, 182 (2026), with these changes. The Wyckoff position itself is
the discrete variable, masked to those of the space group, instead of fifteen free site-symmetry
axes. Positions and elements flow first, through an erasing sender, one variable after another, so
that every one is drawn in sight of all before it (see `bayesian_flow.ErasureFlow`); coordinates and
lattice follow, given all sites, on their Gaussian flows; the network estimates x̂ rather than the
noise; coordinates stay on their Wyckoff positions.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor, nn

from symmbfn.bayesian_flow import ErasureFlow, GaussianFlow, random_subset
from symmbfn.critic import UNIT
from symmbfn.data import Batch, CrystalData, count_kinds
from symmbfn.elements import NUM_ELEMENTS
from symmbfn.errors import SymmBFNError
from symmbfn.geometry_network import GeometryInput, GeometryNetwork, pair_features
from symmbfn.group_tables import Atoms, GroupTables, expand
from symmbfn.layers import NetworkConfig, Template
from symmbfn.site_heads import Head, summarise
from symmbfn.site_network import SiteNetwork, Sites
from symmbfn.wyckoff import LATTICE_BASIS, LATTICE_FIXED, LATTICE_FREE, MAX_LETTERS, lattice_family


@dataclass(frozen=True)
class ModelConfig:
    """Everything that makes a model but its weights.

    Attributes:
        sites: Size of the site network.
        geometry: Size of the geometry network.
        properties: Names of the conditions, in the order of the networks' inputs.
        sigma1_coordinates, sigma1_lattice: Flow constants.
        weight_letters, weight_elements, weight_coordinates, weight_lattice: Loss weights.
        drop_all: Share of training without any property; in the rest each is hidden with
            probability `drop_property`, and the number of elements with `drop_kinds` everywhere.
        critic: Width of the critic, 0 where there is none; see `symmbfn.critic`.
        estimator: Width of the estimator, 0 where there is none; see `symmbfn.estimator`.
        any_order: Share of training in which positions and elements become known in any order;
            in the rest, as in sampling, all positions come before the first element.
    """

    sites: NetworkConfig = field(default_factory=lambda: NetworkConfig(layers=4, dropout=0.25))
    geometry: NetworkConfig = field(
        default_factory=lambda: NetworkConfig(pair_width=32, dropout=0.05)
    )
    properties: tuple[str, ...] = ()
    sigma1_coordinates: float = 0.02
    sigma1_lattice: float = 0.02
    weight_letters: float = 1.0
    weight_elements: float = 1.0
    weight_coordinates: float = 1.0
    weight_lattice: float = 0.5
    drop_all: float = 0.5
    drop_property: float = 0.3
    drop_kinds: float = 0.1
    any_order: float = 0.15
    critic: int = 0
    estimator: int = 0

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> "ModelConfig":
        """Inverse of `to_dict`."""
        values = dict(values)
        sites = NetworkConfig(**values.pop("sites"))  # type: ignore[arg-type]
        geometry = NetworkConfig(**values.pop("geometry"))  # type: ignore[arg-type]
        properties: tuple[str, ...] = tuple(values.pop("properties"))  # type: ignore[arg-type]
        return cls(sites, geometry, properties, **values)  # type: ignore[arg-type]


@dataclass
class Geometry:
    """Continuous variables of B crystals.

    Attributes:
        coordinates: (B, N, 3): of beliefs and estimates 2 x - 1 of fractions x, of finished
            crystals the fractions.
        lattice: (B, 6) k-parameters: of beliefs and estimates in units of the data, 0 where the
            family fixes them; of finished crystals as they are.
    """

    coordinates: Tensor
    lattice: Tensor


NETWORKS = ("sites", "geometry")
_OF_THE_DATA = ("elements", "templates", "template_properties", "known_sites")


class SymmBFN(nn.Module):
    """The generative model.

    Buffers, saved with the weights: lattice_mean, lattice_std (6,); property_mean, property_std
    (P,); where there is an estimator, estimator_skill (P,), from 0, knows nothing, to 1; elements
    (100,), True for those of the training data; known_sites (K,), the sites of its crystals as
    `Sites.codes`, ascending; and of its n crystals templates (n, 3), space group - 1, orbits and
    distinct elements, with template_properties (n, P).
    """

    def __init__(self, config: ModelConfig, num_crystals: int = 0) -> None:
        super().__init__()
        self.config = config
        self.bf16 = False
        self.tables = GroupTables()
        properties = len(config.properties)
        self.sites = SiteNetwork(config.sites, self.tables, properties)
        self.geometry = GeometryNetwork(config.geometry, self.tables, properties)
        width = config.sites.width
        self.critic = Head(width, config.critic) if config.critic else None
        self.estimator = Head(width, config.estimator, properties) if config.estimator else None
        self.letter_flow = ErasureFlow(MAX_LETTERS)
        self.element_flow = ErasureFlow(NUM_ELEMENTS)
        self.coordinate_flow = GaussianFlow(config.sigma1_coordinates, spread=0.5)
        self.lattice_flow = GaussianFlow(config.sigma1_lattice, spread=1.0)

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
        self.known_sites: Tensor
        self.templates: Tensor
        self.template_properties: Tensor
        self.register_buffer("lattice_mean", torch.zeros(6))
        self.register_buffer("lattice_std", torch.ones(6))
        self.register_buffer("property_mean", torch.zeros(properties))
        self.register_buffer("property_std", torch.ones(properties))
        if config.estimator:
            self.estimator_skill: Tensor
            self.register_buffer("estimator_skill", torch.zeros(properties))
        self.register_buffer("elements", torch.ones(NUM_ELEMENTS, dtype=torch.bool))
        self.register_buffer("known_sites", torch.zeros(0, dtype=torch.long))
        self.register_buffer("templates", torch.zeros(num_crystals, 3, dtype=torch.int16))
        self.register_buffer("template_properties", torch.zeros(num_crystals, properties).half())

    @classmethod
    def for_data(cls, config: ModelConfig, data: CrystalData) -> "SymmBFN":
        """A fresh model with the scales and frequencies of a training set."""
        free = torch.from_numpy(LATTICE_FREE)[
            [lattice_family(g + 1) for g in data.group.tolist()]
        ].float()
        count = free.sum(0).clamp_min(1)
        mean = (data.lattice * free).sum(0) / count
        variance = ((data.lattice - mean) ** 2 * free).sum(0) / count

        model = cls(config, len(data))
        model.lattice_mean.copy_(mean)
        model.lattice_std.copy_(variance.sqrt().clamp_min(1e-2))
        model.templates.copy_(torch.stack([data.group.long(), data.orbits, data.kinds()], 1))
        model.known_sites = data.site_codes().unique()
        for index, name in enumerate(config.properties):
            column = data.properties[:, data.names.index(name)]
            known = column[~column.isnan()]
            if len(known):
                model.property_mean[index] = known.mean()
                model.property_std[index] = known.std(correction=0).clamp_min(1e-6)
            model.template_properties[:, index] = column
        model.elements.copy_(torch.zeros(NUM_ELEMENTS, dtype=torch.bool))
        model.elements[data.species[data.mask()].long().unique()] = True
        return model

    @torch.no_grad()
    def start_from(self, parent: "SymmBFN") -> None:
        """Take over the weights and scales of another model; templates and elements stay.

        The parent's properties must be the first of this model's; further ones start untrained.

        Raises:
            SymmBFNError: the models differ in more than further properties.
        """
        shared = parent.config.properties
        for head in ("critic", "estimator"):
            if (width := getattr(self.config, head)) not in (0, getattr(parent.config, head)):
                raise SymmBFNError(
                    f"the model to start from has no {head} of width {width}: drop it"
                )
        sizes, others = (
            [replace(network, dropout=0.0) for network in (config.sites, config.geometry)]
            for config in (self.config, parent.config)
        )
        if sizes != others or self.config.properties[: len(shared)] != shared:
            raise SymmBFNError(
                "the model to start from has other sizes or properties "
                f"({', '.join(shared) or 'none'}): name its properties first, in its order"
            )
        values = parent.state_dict()
        for name, value in self.state_dict().items():
            if name not in values or name in _OF_THE_DATA:
                continue
            value[: len(values[name])] = values[name]

    # ---------------------------------------------------------------- training

    def loss(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,
        frozen: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """Training losses of a batch at random times.

        Args:
            batch: Crystals.
            generator: Source of all randomness.
            frozen: Networks, of `NETWORKS`, whose losses are left at 0.

        Returns:
            Scalars: `loss` (weighted sum); letters and elements, -log p per orbit, nats, given
            what the template tells, and for elements all letters; coordinates (per orbit) and
            lattice (per crystal), squared errors of the free components in units of what is
            unknown at that time.
        """
        weights = self.config
        template = self._template(batch, generator)
        letters = elements = coordinates = lattice = batch.lattice.new_zeros(())
        if "sites" not in frozen:
            letters, elements = self._site_losses(batch, template, generator)
        if "geometry" not in frozen:
            coordinates, lattice = self._geometry_losses(batch, template, generator)
        return {
            "loss": weights.weight_letters * letters
            + weights.weight_elements * elements
            + weights.weight_coordinates * coordinates
            + weights.weight_lattice * lattice,
            "letters": letters.detach(),
            "elements": elements.detach(),
            "coordinates": coordinates.detach(),
            "lattice": lattice.detach(),
        }

    def _template(self, batch: Batch, generator: torch.Generator | None) -> Template:
        """What a batch's crystals are told of themselves: conditions, some of them hidden."""
        size, device = len(batch.group), batch.group.device

        def rarely(*shape: int, p: float) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device) < p

        hidden = rarely(*batch.properties.shape, p=self.config.drop_property)
        hidden = hidden | rarely(size, 1, p=self.config.drop_all)
        kinds = count_kinds(batch.species, batch.mask)
        return Template(
            group=batch.group,
            mask=batch.mask,
            kinds=kinds.masked_fill(rarely(size, p=self.config.drop_kinds), 0),
            properties=self.standardise(batch.properties).masked_fill(hidden, torch.nan),
        )

    def _site_losses(
        self, batch: Batch, template: Template, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Of crystals caught while their positions, or after them their elements, become known."""
        mask, size, device = batch.mask, len(batch.group), batch.group.device
        letters_known = random_subset(mask, _times(size, device, generator), generator)
        species_known = random_subset(mask, _times(size, device, generator), generator)
        phase = torch.rand(size, 1, generator=generator, device=device)
        any_order = phase < (self.config.any_order if self.training else 0.0)
        first = ~any_order & (phase > (1 + self.config.any_order) / 2)  # positions are drawn
        second = ~any_order & ~first
        letters_known = letters_known | (second & mask)
        species_known = species_known & ~first
        sites = Sites(
            self.letter_flow.noisy(batch.letters, letters_known),
            self.element_flow.noisy(batch.species, species_known),
        )
        letters, species = self.site_estimates(sites, template)
        return (
            _erasure_loss(letters, batch.letters, mask & ~letters_known, mask),
            _erasure_loss(species, batch.species, mask & ~species_known & ~first, mask),
        )

    def _geometry_losses(
        self, batch: Batch, template: Template, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        t = _times(len(batch.group), batch.group.device, generator)
        x = 2 * batch.coordinates - 1
        k = self._standardise_lattice(batch.lattice, batch.group)
        beliefs = Geometry(
            self.coordinate_flow.noisy(x, t, generator), self.lattice_flow.noisy(k, t, generator)
        )
        sites = Sites(batch.letters, batch.species)
        atoms = expand(self.tables, batch.group, batch.letters, batch.mask)
        estimate = self.estimate(beliefs, t, sites, atoms, template)

        projector = self.tables.projectors[batch.group[:, None], batch.letters][..., :3]
        error = torch.einsum("bnij,bnj->bni", projector, estimate.coordinates - x)
        error = error / self.coordinate_flow.scale(t)[:, None, None]
        coordinates = error.square().sum(-1)[batch.mask].mean()
        error = (estimate.lattice - k) / self.lattice_flow.scale(t)[:, None]
        lattice = (error * self.lattice_free[batch.group]).square().sum(-1).mean()
        return coordinates, lattice

    # ---------------------------------------------------------------- one network call

    def site_estimates(self, sites: Sites, template: Template) -> tuple[Tensor, Tensor]:
        """Log-probabilities of positions (B, N, 27) and elements (B, N, 100) of all orbits."""
        with torch.autocast(template.group.device.type, torch.bfloat16, enabled=self.bf16):
            letters, species = self.sites(sites, template)
        return letters, species

    def site_summaries(self, sites: Sites, template: Template) -> Tensor:
        """(B, F) what heads are told of finished sites, whatever properties are asked for."""
        nothing = torch.full_like(template.properties, torch.nan)
        with torch.autocast(template.group.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.sites.features(sites, replace(template, properties=nothing))
        atoms = self.tables.atoms_of(template.group, sites.letters, template.mask)
        return summarise(features.float(), atoms)

    def energies_above_hull(self, summaries: Tensor) -> Tensor:
        """(B,) what the critic expects of `site_summaries`, eV/atom; there must be one."""
        assert self.critic is not None
        with torch.autocast(summaries.device.type, torch.bfloat16, enabled=self.bf16):
            energies: Tensor = self.critic(summaries)[:, 0] * UNIT
        return energies.float()

    def expected_properties(self, summaries: Tensor) -> Tensor:
        """(B, P) what the estimator, which there must be, expects; standardised."""
        assert self.estimator is not None
        with torch.autocast(summaries.device.type, torch.bfloat16, enabled=self.bf16):
            properties: Tensor = self.estimator(summaries)
        return properties.float()

    def estimate(
        self, beliefs: Geometry, t: Tensor, sites: Sites, atoms: Atoms, template: Template
    ) -> Geometry:
        """x̂ of coordinates and lattice from beliefs at times t (B,).

        x̂ is the linear estimate plus a correction in units of what is left unknown. Matrix
        products run in bfloat16 where that is switched on, but never those of the geometry.
        """
        group = template.group
        skip = self.coordinate_flow.skip(t)[:, None, None] * beliefs.coordinates
        lattice = self.lattice_flow.skip(t)[:, None] * beliefs.lattice
        x = GeometryInput(
            t=t,
            coordinates=self.on_positions((skip + 1) / 2, sites.letters, group),
            lattice=lattice,
            cell=self._cell(lattice, group),
        )
        features = pair_features(
            x.coordinates,
            x.cell,
            atoms,
            self.tables.primitive[group],
            self.tables.to_primitive[group],
        )
        with torch.autocast(group.device.type, torch.bfloat16, enabled=self.bf16):
            coordinates, k = self.geometry(x, features, sites, template)
        return Geometry(
            skip + self.coordinate_flow.scale(t)[:, None, None] * coordinates,
            lattice + self.lattice_flow.scale(t)[:, None] * k,
        )

    # ---------------------------------------------------------------- units

    def use_bf16(self) -> None:
        """Run in bfloat16 from now on, with the weights themselves cast once; not for training."""
        self.bf16 = True
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                layer.bfloat16()

    def standardise(self, properties: Tensor) -> Tensor:
        """(B, P) properties in units of the data."""
        return (properties - self.property_mean) / self.property_std

    def on_positions(self, points: Tensor, letters: Tensor, group: Tensor) -> Tensor:
        """(B, N, 3) nearest points on the Wyckoff positions (B, N): A x + b."""
        table = self.tables.projectors[group[:, None], letters]
        return torch.einsum("bnij,bnj->bni", table[..., :3], points) + table[..., 3]

    def lattice_parameters(self, lattice: Tensor, group: Tensor) -> Tensor:
        """(B, 6) k-parameters of standardised ones; those the family fixes are exact."""
        k = lattice * self.lattice_std + self.lattice_mean
        return torch.where(self.lattice_free[group] > 0, k, self.lattice_fixed[group])

    def _standardise_lattice(self, lattice: Tensor, group: Tensor) -> Tensor:
        return (lattice - self.lattice_mean) / self.lattice_std * self.lattice_free[group]

    def _cell(self, lattice: Tensor, group: Tensor) -> Tensor:
        """(B, 3, 3) lattice vectors (rows, Å) of standardised k: exp(S)."""
        k = self.lattice_parameters(lattice, group)
        values, vectors = torch.linalg.eigh(torch.einsum("bk,kij->bij", k, self.lattice_basis))
        cell: Tensor = (vectors * values.exp()[:, None]) @ vectors.mT  # faster than matrix_exp
        return cell


def _times(size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(B,) times in [0, 1), spread evenly, in random order."""
    jitter = torch.rand(size, generator=generator, device=device)
    t = (torch.arange(size, device=device) + jitter) / size
    return t[torch.randperm(size, generator=generator, device=device)]


def _erasure_loss(log_p: Tensor, classes: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
    """-log p per orbit of classes (B, N), from the mean over those hidden (B, N)."""
    nll = -log_p.gather(2, classes[..., None])[..., 0].masked_fill(~hidden, 0.0)
    count, orbits = hidden.sum(1), mask.sum(1)
    total = (nll.sum(1) * orbits / count.clamp_min(1)).sum()
    return total / (orbits * (count > 0)).sum().clamp_min(1)
