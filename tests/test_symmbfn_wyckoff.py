"""The shipped space-group tables, against pyxtal and against group theory."""

import numpy as np
import pytest

from symmbfn.wyckoff import space_group
from symmbfn.wyckoff_build import build_group

SAMPLE = [5, 15, 88, 129, 166, 205]


@pytest.mark.parametrize("number", SAMPLE)
def test_shipped_tables_equal_a_fresh_build(number: int) -> None:
    fresh, shipped = build_group(number), space_group(number)
    np.testing.assert_array_equal(fresh["rotations"], shipped.rotations)
    np.testing.assert_array_equal(fresh["translations"] / 24, shipped.translations)
    np.testing.assert_array_equal(fresh["multiplicities"], shipped.multiplicities)
    np.testing.assert_array_equal(fresh["site_symmetries"], shipped.site_symmetries)
    np.testing.assert_allclose(fresh["projectors"], shipped.projectors, atol=1e-6)
    np.testing.assert_array_equal(fresh["expansions"], np.concatenate(shipped.expansions))
    np.testing.assert_array_equal(fresh["normalizer"], shipped.normalizer)


def test_every_group_is_consistent() -> None:
    for group in map(space_group, range(1, 231)):
        a, b = group.projectors, group.offsets
        assert len(group.rotations) == group.multiplicities[-1]
        assert np.abs(a @ a - a).max() < 1e-6, "projectors are not idempotent"
        assert np.abs(np.einsum("pij,pj->pi", a, b)).max() < 1e-6, "A b is not 0"
        assert np.abs(a.trace(axis1=1, axis2=2) - group.degrees_of_freedom).max() < 1e-6
        assert [len(e) for e in group.expansions] == group.primitive_multiplicities.tolist()
        assert group.letter_maps[0].tolist() == list(range(group.num_positions))


def test_rock_salt_swaps_its_two_positions() -> None:
    assert [1, 0] in space_group(225).letter_maps[:, :2].tolist()


def test_numbers_that_no_group_has_are_refused() -> None:
    with pytest.raises(ValueError, match="choose 1-230"):
        space_group(231)
