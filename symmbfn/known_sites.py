"""Sites of known crystals: which element is on which Wyckoff position, as hashes (`Sites.codes`).

The sampler passes them by, for a crystal on them is seldom new (`sample.sample`). Those of the
Materials Project are in `tables/known-sites-mp.npy`, made from crystals of at most 20 atoms by

    python -m symmbfn.known_sites mp.parquet --out symmbfn/tables/known-sites-mp.npy
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_FILES = {"mp": Path(__file__).parent / "tables" / "known-sites-mp.npy"}


def known_sites(reference: str) -> Tensor | None:
    """(K,) int64 codes of the crystals of a shipped reference, by its name; None for any other."""
    if reference not in _FILES:
        return None
    return torch.from_numpy(np.load(_FILES[reference]))


def main() -> None:
    """Write the codes of crystals in files, in all their equivalent settings."""
    from symmbfn.data import preprocess
    from symmbfn.importers import import_crystals

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--max-atoms", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    structures = import_crystals(arguments.files).structures
    small = [one for one in structures if len(one) <= arguments.max_atoms]
    crystals, _ = preprocess(small, {})
    codes = crystals.site_codes().unique()
    np.save(arguments.out, codes.numpy())
    print(f"{len(codes)} codes of {len(crystals)} crystals")


if __name__ == "__main__":
    main()
