"""Sites of known crystals: what is shipped, and that the sampler passes them by."""

from pathlib import Path

import pytest
import torch
from pymatgen.core import Lattice, Structure

from symmbfn.data import preprocess
from symmbfn.known_sites import known_sites
from symmbfn.sample import sample
from tests.flows_support import tiny_checkpoint


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("parent") / "parent")


def test_the_materials_project_knows_its_crystals_and_no_invented_ones() -> None:
    def salt(*species: str) -> Structure:
        sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
        return Structure.from_spacegroup(225, Lattice.cubic(5.6), species, sites)

    known = known_sites("mp")
    assert known is not None and known.dtype == torch.int64 and len(known) == len(known.unique())
    data, _ = preprocess([salt("Na", "Cl"), salt("Mg", "O"), salt("Na", "Pb")], {}, views=1)
    assert torch.isin(data.site_codes(), known).tolist() == [True, True, False]
    assert known_sites("mine.cif") is None


def test_sites_to_avoid_are_passed_by(parent: Path) -> None:
    def codes(avoid: torch.Tensor | None = None) -> torch.Tensor:
        drawn = sample(parent, 40, seed=3, steps=3, proposals=8, avoid=avoid)
        data, _ = preprocess([one.to_structure() for one in drawn], {})
        return data.site_codes()

    first = codes()
    assert torch.isin(codes(avoid=first), first).float().mean() < 0.5  # before: all of them
    assert torch.equal(codes(), first)
