"""What the funnel finds for its time, against relaxing everything in the order drawn."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Structure

from relax.optimize import RelaxConfig
from relax.potentials import Potential, load


class _Traced(Potential):
    """A potential that keeps what it computed."""

    def __init__(self, potential: Potential) -> None:
        self.info = potential.info
        self._potential = potential
        self.trace: list[list[float]] = []
        self.first: dict[str, Any] | None = None

    def calculator(self) -> Any:
        """Return the potential's calculator, which writes down each of its results."""
        calculator = self._potential.calculator()
        compute = calculator.calculate

        def calculate(atoms: Any = None, *args: Any, **kwargs: Any) -> None:
            compute(atoms, *args, **kwargs)
            count = len(calculator.atoms)
            forces = calculator.results["forces"]
            xx, yy, zz, yz, xz, xy = calculator.results["stress"]
            stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
            virial = stress * calculator.atoms.get_volume() / count
            if self.first is None:
                self.first = {"forces": forces.tolist(), "virial": virial.tolist()}
            self.trace.append(
                [
                    calculator.results["energy"] / count,
                    float(np.linalg.norm(forces, axis=1).max()),
                    float((forces**2).sum() / count),
                    float(np.linalg.norm(virial, axis=1).max()),
                    float((virial**2).sum()),
                ]
            )

        calculator.calculate = calculate
        return calculator


def pool(arguments: argparse.Namespace) -> None:
    """Draw crystals, and relax all that are not in the file yet."""
    from relax.relaxation import relax_one
    from symmbfn.crystal import to_structures
    from symmbfn.sample import sample

    drawn_file, out = Path(f"{arguments.out}.drawn.json"), Path(arguments.out)
    if not drawn_file.exists():
        sample("mp20", 8, seed=99)  # loads the libraries
        began = time.process_time()
        structures = to_structures(sample("mp20", arguments.n, seed=arguments.seed))
        seconds = (time.process_time() - began) / arguments.n
        content = {"seconds": seconds, "crystals": [one.as_dict() for one in structures]}
        drawn_file.write_text(json.dumps(content))
    drawn = [Structure.from_dict(one) for one in json.loads(drawn_file.read_text())["crystals"]]
    done = len(out.read_text().splitlines()) if out.exists() else 0
    potential = load("chgnet")
    config = RelaxConfig()
    with out.open("a") as file:
        for index in range(done, len(drawn)):
            traced = _Traced(potential)
            began = time.process_time()
            result = relax_one(drawn[index], traced, config)
            line = {
                "index": index,
                "status": str(result.status),
                "relaxed": None if result.structure is None else result.structure.as_dict(),
                "energy_per_atom": result.energy_per_atom,
                "steps": result.steps,
                "seconds": time.process_time() - began,
                "trace": [[float(f"{x:.7g}") for x in row] for row in traced.trace],
                "first": traced.first,
            }
            file.write(json.dumps(line) + "\n")
            file.flush()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("pool")
    one.add_argument("--out", required=True)
    one.add_argument("-n", type=int, default=2000)
    one.add_argument("--seed", type=int, default=1)
    one.set_defaults(run=pool)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
