"""Training data: crystals as padded tensors, in one safetensors file.

Only `preprocess` needs pymatgen; reading the file and making batches need torch, numpy and
safetensors alone, so that training runs where nothing else is installed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from symmbfn.elements import NUM_ELEMENTS
from symmbfn.errors import SymmBFNError
from symmbfn.layers import MAX_KINDS, MAX_ORBITS

if TYPE_CHECKING:
    from pymatgen.core import Structure

FORMAT = "symmbfn-data-1"


@dataclass
class Batch:
    """B crystals of at most N orbits.

    Attributes:
        group: (B,) space group - 1.
        lattice: (B, 6) k-parameters.
        species: (B, N) atomic number - 1.
        letters: (B, N) Wyckoff positions, 0 = a.
        coordinates: (B, N, 3) representatives, fractions of the conventional cell.
        mask: (B, N), True for real orbits.
        properties: (B, P), NaN where unknown.
    """

    group: Tensor
    lattice: Tensor
    species: Tensor
    letters: Tensor
    coordinates: Tensor
    mask: Tensor
    properties: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass
class CrystalData:
    """n crystals, each in one or more equivalent descriptions (views).

    Attributes:
        group: (n,) space group - 1.
        lattice: (n, 6) k-parameters.
        orbits: (n,) number of orbits.
        species: (n, 20) atomic number - 1, zero padded.
        properties: (n, P), NaN where unknown.
        view_starts: (n + 1,), rows of the views of crystal i: starts[i] .. starts[i + 1].
        letters: (v, 20) Wyckoff positions of each view.
        coordinates: (v, 20, 3) representatives of each view.
        names: the P properties' names.
    """

    group: Tensor
    lattice: Tensor
    orbits: Tensor
    species: Tensor
    properties: Tensor
    view_starts: Tensor
    letters: Tensor
    coordinates: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.group)

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file.

        Raises:
            SymmBFNError: it cannot be written.
        """
        tensors = {k: v.contiguous() for k, v in vars(self).items() if k != "names"}
        metadata = {"format": FORMAT, "properties": json.dumps(self.names)}
        temporary = Path(f"{path}.tmp")
        try:
            save_file(tensors, str(temporary), metadata)
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            raise SymmBFNError(f"{path} cannot be written: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> "CrystalData":
        """Read a file that `save` wrote.

        Raises:
            SymmBFNError: the file is missing, damaged or of another kind.
        """
        try:
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise SymmBFNError(
                        f"{path} holds no training data: make it with 'symmbfn data import'"
                    )
                names = tuple(json.loads(metadata["properties"]))
                return cls(**{key: file.get_tensor(key) for key in file.keys()}, names=names)
        except (OSError, SafetensorError) as error:
            raise SymmBFNError(
                f"{path} cannot be read as training data ({error}): "
                "make it with 'symmbfn data import'"
            ) from error

    def batch(
        self,
        indices: Sequence[int] | Tensor,
        generator: torch.Generator | None = None,
        columns: Sequence[int] | None = None,
    ) -> Batch:
        """Collate crystals; with a generator each is shown in a random view, else in its first.

        Args:
            indices: Crystals.
            generator: Source of randomness for the views.
            columns: Property columns in the order wanted, -1 for one that is not in the data.
        """
        rows = torch.as_tensor(indices)
        starts, stops = self.view_starts[rows], self.view_starts[rows + 1]
        views = starts
        if generator is not None:
            draw = torch.rand(len(rows), generator=generator, dtype=torch.float64)
            views = starts + (draw * (stops - starts)).long()
        size = int(self.orbits[rows].max())
        properties = self.properties[rows]
        if columns is not None:
            nothing = torch.full((len(rows), 1), torch.nan)
            properties = torch.cat([properties, nothing], 1)[:, list(columns)]
        return Batch(
            group=self.group[rows].long(),
            lattice=self.lattice[rows],
            species=self.species[rows, :size].long(),
            letters=self.letters[views, :size].long(),
            coordinates=self.coordinates[views, :size],
            mask=torch.arange(size) < self.orbits[rows, None],
            properties=properties,
        )

    def epoch(
        self, batch_size: int, generator: torch.Generator, *, pool: int = 16
    ) -> Iterator[Tensor]:
        """Shuffled (batch_size,) index batches of crystals of like size.

        Crystals are sorted by orbits within pools of `pool` batches, so that padding stays small.
        """
        order = torch.randperm(len(self), generator=generator)
        batches = []
        for chunk in order.split(batch_size * pool):
            chunk = chunk[self.orbits[chunk].argsort(stable=True)]
            batches += list(chunk.split(batch_size))
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[index]

    def digest(self) -> str:
        """Hash of the crystals and their properties, to tell one data set from another."""
        hasher = hashlib.sha256()
        for tensor in (self.group, self.orbits, self.species, self.lattice, self.coordinates):
            hasher.update(tensor.contiguous().numpy().tobytes())
        hasher.update(json.dumps(self.names).encode())
        hasher.update(self.properties.contiguous().numpy().tobytes())
        return hasher.hexdigest()

    def site_codes(self) -> Tensor:
        """(v,) `Sites.codes` of all views of the crystals."""
        from symmbfn.site_network import Sites

        crystal = torch.arange(len(self)).repeat_interleave(self.view_starts.diff())
        sites = Sites(self.letters.long(), self.species.long()[crystal])
        return sites.codes(self.group.long()[crystal], self.mask()[crystal])

    def kinds(self) -> Tensor:
        """(n,) number of distinct elements."""
        return count_kinds(self.species.long(), self.mask())

    def mask(self) -> Tensor:
        """(n, 20) True for real orbits."""
        return torch.arange(self.species.shape[1]) < self.orbits[:, None]


def count_kinds(species: Tensor, mask: Tensor) -> Tensor:
    """(B,) number of distinct elements of (B, N) species, at most `MAX_KINDS`."""
    present = torch.zeros(len(species), NUM_ELEMENTS, dtype=torch.bool, device=species.device)
    present.scatter_(1, species.masked_fill(~mask, 0), True)
    present[:, 0] = ((species == 0) & mask).any(1)
    return present.sum(1).clamp_max(MAX_KINDS)


def preprocess(
    structures: Iterable["Structure"],
    properties: Mapping[str, Sequence[float]],
    *,
    symprec: float = 0.1,
    views: int = 8,
    seed: int = 0,
    on_crystal: Callable[[], None] | None = None,
) -> tuple[CrystalData, list[tuple[int, str]]]:
    """Crystals to tensors.

    Args:
        structures: Ordered structures.
        properties: Columns, one value for each structure, NaN where unknown.
        symprec: Symmetry tolerance, Å.
        views: At most this many equivalent descriptions of each crystal are kept.
        seed: Chooses which, where there are more.
        on_crystal: Called after each structure.

    Returns:
        The data, and (index, reason) of each structure left out.

    Raises:
        SymmBFNError: nothing is left.
    """
    from symmbfn.crystal import Crystal

    random = np.random.default_rng(seed)
    kept: list[list[Crystal]] = []
    rows: list[int] = []
    dropped: list[tuple[int, str]] = []
    for index, structure in enumerate(structures):
        try:
            crystal = Crystal.from_structure(structure, symprec)
            if len(crystal.species) > MAX_ORBITS:
                raise SymmBFNError(f"{len(crystal.species)} orbits, more than {MAX_ORBITS}")
            if max(crystal.species) > NUM_ELEMENTS:
                raise SymmBFNError(f"atomic number above {NUM_ELEMENTS}")
            others = crystal.equivalents()[1:]
            chosen = random.permutation(len(others))[: views - 1]
            kept.append([crystal, *(others[i] for i in chosen)])
            rows.append(index)
        except (SymmBFNError, ValueError) as error:
            dropped.append((index, str(error)))
        if on_crystal is not None:
            on_crystal()
    if not kept:
        raise SymmBFNError("no usable crystal in the data: see the reasons above")

    firsts = [crystals[0] for crystals in kept]
    flat = [crystal for crystals in kept for crystal in crystals]
    species = torch.zeros(len(firsts), MAX_ORBITS, dtype=torch.uint8)
    letters = torch.zeros(len(flat), MAX_ORBITS, dtype=torch.uint8)
    coordinates = torch.zeros(len(flat), MAX_ORBITS, 3)
    for i, crystal in enumerate(firsts):
        species[i, : len(crystal.species)] = torch.from_numpy(crystal.species - 1)
    for i, crystal in enumerate(flat):
        letters[i, : len(crystal.letters)] = torch.from_numpy(crystal.letters)
        coordinates[i, : len(crystal.letters)] = torch.from_numpy(crystal.frac_coords)
    columns = [
        torch.tensor(np.asarray(v, float)[rows], dtype=torch.float32) for v in properties.values()
    ]
    data = CrystalData(
        group=torch.tensor([c.space_group - 1 for c in firsts], dtype=torch.int16),
        lattice=torch.tensor(np.array([c.lattice for c in firsts]), dtype=torch.float32),
        orbits=torch.tensor([len(c.species) for c in firsts]),
        species=species,
        properties=torch.stack(columns, 1) if columns else torch.zeros(len(firsts), 0),
        view_starts=torch.tensor(np.cumsum([0, *map(len, kept)])),
        letters=letters,
        coordinates=coordinates,
        names=tuple(properties),
    )
    return data, dropped
