"""Structure → asymmetric unit → structure over a file of crystals: how many survive, how fast.

    OMP_NUM_THREADS=1 python benchmarks/representation.py val.parquet

Each failure is listed with its reason. A round trip counts when StructureMatcher (default
tolerances) matches and the space group detected at 0.1 Å in the result is the crystal's own.
"""

import logging
import sys
import time

from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from symmbfn.crystal import Crystal, to_structures
from symmbfn.errors import SymmBFNError
from symmbfn.files import read_structures
from symmbfn.metrics import space_group


def main(path: str) -> None:
    """Measure and print."""
    logging.getLogger("moyopy").setLevel(logging.ERROR)
    read = [(one.name, one.structure) for one in read_structures(path) if one.structure]
    crystals: list[tuple[str, Structure, Crystal]] = []
    failures = []
    began = time.perf_counter()
    for name, structure in read:
        try:
            crystals.append((name, structure, Crystal.from_structure(structure)))
        except SymmBFNError as error:
            failures.append(f"{name}: {error}")
    forth = time.perf_counter() - began
    began = time.perf_counter()
    rebuilt = to_structures(crystal for _, _, crystal in crystals)
    back = time.perf_counter() - began

    matcher = StructureMatcher()
    for (name, structure, crystal), result in zip(crystals, rebuilt, strict=True):
        detected = space_group(result)
        if detected != crystal.space_group:
            failures.append(
                f"{name} {crystal.formula}: made in group {crystal.space_group}, found {detected}"
            )
        elif not matcher.fit(structure, result):
            failures.append(
                f"{name} {crystal.formula}: no match; {len(structure)} atoms became "
                f"{len(result)} when symmetrised to group {crystal.space_group}"
            )
    print("\n".join(failures))
    print(f"{len(read) - len(failures)} of {len(read)} round trips match")
    print(f"from_structure {len(read) / forth:.0f}/s, to_structures {len(crystals) / back:.0f}/s")


if __name__ == "__main__":
    main(sys.argv[1])
