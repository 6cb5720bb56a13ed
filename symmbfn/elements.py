"""What the networks know about the elements before any training: the periodic table as numbers.

The table is shipped as `tables/elements.npz`; `python -m symmbfn.elements` makes it from pymatgen.
With it a rare element borrows from its neighbours, and charges can balance.
"""

from functools import cache
from pathlib import Path

import numpy as np

from symmbfn.wyckoff import FloatArray

NUM_ELEMENTS = 100  # classes: atomic numbers 1-100
TABLE = Path(__file__).parent / "tables" / "elements.npz"
OXIDATION_STATES = range(-4, 9)


@cache
def element_features() -> FloatArray:
    """(100, F) features of all elements.

    Period, group and block (one-hot), common and known oxidation states, Pauling electronegativity
    / 4 (0 where there is none), atomic radius / 2 Å.
    """
    with np.load(TABLE, allow_pickle=False) as file:
        features: FloatArray = file["features"].astype(float)
    return features


def build() -> FloatArray:
    """The table, from pymatgen's data."""
    from pymatgen.core import Element

    rows = []
    for number in range(1, NUM_ELEMENTS + 1):
        element = Element.from_Z(number)
        period, group = np.zeros(7), np.zeros(18)
        period[element.row - 1], group[element.group - 1] = 1, 1
        block = [float(element.block == name) for name in "spdf"]
        common = [float(state in element.common_oxidation_states) for state in OXIDATION_STATES]
        known = [float(state in element.oxidation_states) for state in OXIDATION_STATES]
        electronegativity = np.nan_to_num(element.X) / 4
        radius = (element.atomic_radius or element.atomic_radius_calculated or 1.8) / 2
        rows.append([*period, *group, *block, *common, *known, electronegativity, radius])
    return np.array(rows, float)


if __name__ == "__main__":
    np.savez_compressed(TABLE, features=build().astype(np.float32))
