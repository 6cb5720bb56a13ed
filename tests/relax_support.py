"""What the tests of relaxation share: toy potentials as an installed package would bring them."""

from pathlib import Path

from relax import potentials

TOY_MODULE = '''
"""Lennard-Jones as a potential; with some elements it misbehaves in ways that models do."""
import os, signal, time
import numpy as np
from ase.calculators.lj import LennardJones
from relax.potentials import Potential, PotentialInfo, Source

INFO = PotentialInfo(
    name="toy", energy_scheme="self-consistent:toy", dtype="float64", weights_sha256=None,
    available=True, how_to_get="",
    elements=frozenset({"H", "He", "Ne", "Ar", "Kr", "Xe", "Na", "Cl"}),
)

class Calculator(LennardJones):
    def calculate(self, atoms=None, properties=None, system_changes=()):
        symbols = set(atoms.get_chemical_symbols())
        if "Xe" in symbols:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
        if "Kr" in symbols:
            time.sleep(60)
        if "He" in symbols:
            raise RuntimeError("no helium,\\nplease")
        super().calculate(atoms, properties, ("positions", "cell", "numbers", "pbc"))
        if "H" in symbols:
            self.results["energy"] = self.results["free_energy"] = np.inf
        if "Ne" in symbols:
            self.results["forces"] = self.results["forces"] * np.nan

class Toy(Potential):
    info = INFO
    def calculator(self):
        return Calculator(sigma=3.0, epsilon=0.05, rc=9.0, smooth=True)

SOURCE = Source(info=lambda: INFO, load=lambda device, dtype: Toy())
'''


def add_entry_point(monkeypatch, folder: Path, name: str, module: str) -> None:
    """Install a package that brings a potential, for this process and those that it starts."""
    (folder / f"{name}_potential.py").write_text(module)
    metadata = folder / f"{name}_potential-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}-potential\nVersion: 1.0\n"
    )
    (metadata / "entry_points.txt").write_text(
        f"[symmbfn.potentials]\n{name} = {name}_potential:SOURCE\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    monkeypatch.delitem(__import__("sys").modules, f"{name}_potential", raising=False)
    potentials._sources.cache_clear()
