"""Training sets cut and put together: rows, joins, what is held out, and what may leak."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from symmbfn.data import CrystalData
from symmbfn.wyckoff import space_group

Identity = tuple[int, tuple[tuple[int, int], ...]]


def take(data: CrystalData, rows: Sequence[int] | Tensor) -> CrystalData:
    """The crystals of some rows, in their order; a row may come more than once."""
    rows = torch.as_tensor(rows, dtype=torch.long)
    starts, stops = data.view_starts[rows], data.view_starts[rows + 1]
    counts = stops - starts
    ends = counts.cumsum(0)
    offsets = torch.arange(int(counts.sum())) - (ends - counts).repeat_interleave(counts)
    views = starts.repeat_interleave(counts) + offsets
    return CrystalData(
        group=data.group[rows],
        lattice=data.lattice[rows],
        orbits=data.orbits[rows],
        species=data.species[rows],
        properties=data.properties[rows],
        view_starts=torch.cat([torch.zeros(1, dtype=ends.dtype), ends]),
        letters=data.letters[views],
        coordinates=data.coordinates[views],
        names=data.names,
    )


def join(parts: Sequence[CrystalData], names: tuple[str, ...]) -> CrystalData:
    """All crystals of some data sets, with these properties, NaN where a set does not know one."""
    starts, total = [torch.zeros(1, dtype=torch.long)], 0
    for part in parts:
        starts.append(part.view_starts[1:].long() + total)
        total += int(part.view_starts[-1])
    columns = [[p.names.index(n) if n in p.names else -1 for n in names] for p in parts]
    unknown = [torch.full((len(part), 1), torch.nan) for part in parts]
    properties = [
        torch.cat([part.properties, nan], 1)[:, chosen]
        for part, nan, chosen in zip(parts, unknown, columns, strict=True)
    ]
    return CrystalData(
        group=torch.cat([part.group for part in parts]),
        lattice=torch.cat([part.lattice for part in parts]),
        orbits=torch.cat([part.orbits for part in parts]),
        species=torch.cat([part.species for part in parts]),
        properties=torch.cat(properties),
        view_starts=torch.cat(starts),
        letters=torch.cat([part.letters for part in parts]),
        coordinates=torch.cat([part.coordinates for part in parts]),
        names=names,
    )


def held_out(data: CrystalData, share: float) -> Tensor:
    """(n,) True for the crystals of every chemical system that is set aside for judging.

    About `share` of all systems, chosen by a hash of their elements alone: a system is on the same
    side in every set and every round, with all its polymorphs, and each kind of crystal gives its
    share.
    """
    chosen = []
    for species, orbits in zip(data.species.tolist(), data.orbits.tolist(), strict=True):
        system = "-".join(str(z + 1) for z in sorted(set(species[:orbits])))
        digest = hashlib.sha256(f"held out: {system}".encode()).digest()
        chosen.append(int.from_bytes(digest[:8], "big") < share * 2**64)
    return torch.tensor(chosen, dtype=torch.bool)


def identities(data: CrystalData) -> list[Identity]:
    """Of each crystal, space group and atoms of each element in the primitive cell.

    Equal crystals have equal ones; that the reverse does not hold makes a test against leaks safe.
    """
    found = []
    for index, group in enumerate(data.group.tolist()):
        orbits, view = int(data.orbits[index]), int(data.view_starts[index])
        sizes = space_group(group + 1).primitive_multiplicities
        atoms: dict[int, int] = {}
        letters = data.letters[view, :orbits].tolist()
        for z, letter in zip(data.species[index, :orbits].tolist(), letters, strict=True):
            atoms[z + 1] = atoms.get(z + 1, 0) + int(sizes[letter])
        found.append((group + 1, tuple(sorted(atoms.items()))))
    return found


def repeated(n: int, others: int, share: float, seed: int) -> Tensor:
    """Rows of n crystals, so often that they are `share` of a whole with so many others.

    All come equally often, give or take one; where there are too many, some do not come at all.
    """
    if not share:
        return torch.zeros(0, dtype=torch.long)
    wanted = max(1, round(others * share / (1 - share)))
    generator = torch.Generator().manual_seed(seed)
    turns = -(-wanted // n)
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(turns)])[:wanted]
