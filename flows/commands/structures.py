"""`symmbfn generate`, `relax` and `screen`: each stage alone, on anyone's structures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands import common
from flows.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pymatgen.core.structure import Structure

    from flows.settings import CampaignConfig, JudgeSettings

app = typer.Typer()

ENDINGS = (".cif", ".extxyz", ".jsonl")
JUDGED = ("judge_verdict", "judge_energy_above_hull", "energy_above_hull_spread", "judge_reason")


@app.command(epilog="Example: symmbfn generate -n 100 --elements Li,Fe,O --out crystals.extxyz")
def generate(
    n: Annotated[int, typer.Option("-n", min=1, help="Crystals to generate.")],
    out: common.OutOption,
    properties: common.PropertyOption = None,
    guidance: common.GuidanceOption = None,
    elements: common.ElementsOption = None,
    require: common.RequireOption = None,
    exclude: common.ExcludeOption = None,
    space_group: common.SpaceGroupOption = None,
    crystal_system: common.CrystalSystemOption = None,
    max_atoms: common.MaxAtomsOption = None,
    num_atoms: common.NumAtomsOption = None,
    formula: common.FormulaOption = None,
    seed: common.SeedOption = None,
    checkpoint: common.CheckpointOption = None,
    steps: common.StepsOption = None,
    proposals: common.ProposalsOption = None,
    force: common.ForceOption = False,
    as_json: common.JsonOption = False,
) -> None:
    """Draw crystals and write them; nothing is relaxed, judged or stored."""
    common.check_output(out, force=force, endings=ENDINGS)
    table = common.conditions_table(
        properties=properties,
        guidance=guidance,
        elements=elements,
        require=require,
        exclude=exclude,
        space_group=space_group,
        crystal_system=crystal_system,
        max_atoms=max_atoms,
        num_atoms=num_atoms,
        formula=formula,
    )
    config = common.campaign_config(
        None,
        {
            "n": n,
            "conditions": table,
            "seed": seed,
            "checkpoint": checkpoint,
            "steps": steps,
            "proposals": proposals,
        },
    )
    from flows import inputs
    from flows.retrain_settings import PROMOTED

    if config.checkpoint == PROMOTED:
        raise ConfigError(
            "--checkpoint promoted: generate reads no database; give the folder that "
            "`symmbfn checkpoints` tells, or run `symmbfn discover`"
        )

    with common.terminal_progress() as progress:
        progress.stage("start", None)
        inputs.check_generator(config)
        from symmbfn.files import write_structures
        from symmbfn.sample import Tally, arrangement, sample

        progress.stage("generate", n)
        tally = Tally()
        crystals = sample(
            config.checkpoint,
            n,
            seed=config.seed or 0,
            steps=config.steps,
            proposals=config.proposals,
            conditions=inputs.conditions(config),
            on_batch=progress.reach,
            tally=tally,
        )
        structures = [crystal.to_structure() for crystal in crystals]
        write_structures(out, structures, [{"space_group": one.space_group} for one in crystals])
    if as_json:
        facts = {"generated": len(structures), "draws": asdict(tally), "file": str(out)}
        common.print_json(facts)
    else:
        short = len(structures) < n
        told, remedy = (f" of {n}", "; loosen the conditions") if short else ("", "")
        print(f"wrote {len(structures)}{told} crystals to {out}{remedy}")
        if formula is not None:
            different = {arrangement(x.space_group, x.letters, x.species) for x in crystals}
            print(f"{len(different)} different arrangements of the elements on positions.")
        if again := common.drawn_again(asdict(tally)):
            print(again)


@app.command(epilog="Example: symmbfn relax crystals.extxyz --out relaxed.extxyz")
def relax(
    file: Annotated[Path, typer.Argument(help="Structures: CIF, extxyz, JSON lines, POSCAR, …")],
    out: common.OutOption,
    potential: common.PotentialOption = None,
    fmax: Annotated[float | None, typer.Option(help="Largest force left. (default 0.05)")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Steps at most. (default 500)")] = None,
    keep_symmetry: common.KeepSymmetryOption = False,
    workers: common.WorkersOption = None,
    device: common.DeviceOption = None,
    force: common.ForceOption = False,
    as_json: common.JsonOption = False,
) -> None:
    """Relax cells and positions; the status of each structure is written beside it.

    Structures that cannot be relaxed are counted and left out; they never stop the others.
    """
    common.check_output(out, force=force, endings=ENDINGS)
    config = common.campaign_config(
        None,
        {
            "potential": potential,
            "relaxation": {"fmax": fmax, "max_steps": max_steps, "keep_symmetry": keep_symmetry},
            "workers": workers,
            "device": device,
        },
    )
    from flows import inputs
    from flows.rows import relax_config

    with common.terminal_progress() as progress:
        progress.stage("start", None)
        inputs.potential_info(config.potential)
        given = common.readable(file)
        names, structures = given.names, given.structures
        from relax.optimize import relax_iter
        from symmbfn.files import write_structures

        progress.stage("relax", len(structures))
        results: dict[int, Any] = {}
        for index, result in relax_iter(structures, config.potential, relax_config(config)):
            results[index] = result
            progress.advance(note=f"{names[index]} {result.status}")
        rows = [_relaxed_row(names[index], results[index]) for index in range(len(structures))]
        kept = [
            (results[index].structure, row)
            for index, row in enumerate(rows)
            if results[index].structure is not None
        ]
        if not kept:
            raise ConfigError(
                f"{file}: none of its {len(rows)} readable structures can be relaxed; "
                f"{rows[0]['name']}: {rows[0]['reason']}"
            )
        write_structures(out, [one for one, _ in kept], [row for _, row in kept])
    if as_json:
        unreadable = [
            {"name": name, "status": "unreadable", "reason": why} for name, why in given.errors
        ]
        common.print_json(rows + unreadable)
        return
    converged = sum(row["status"] == "converged" for row in rows)
    print(f"wrote {len(kept)} structures to {out}; {converged} of {len(rows)} converged")
    for name, why in [*given.errors, *((r["name"], r["reason"]) for r in rows if r["reason"])]:
        print(f"  {name}: {why}")


@app.command(epilog="Example: symmbfn screen relaxed.extxyz --potential chgnet")
def screen(
    file: Annotated[Path, typer.Argument(help="Structures, best relaxed with the potential.")],
    potential: common.PotentialOption = None,
    hull: Annotated[str, typer.Option(help="A hull's name or file.")] = "chgnet",
    reference: Annotated[str, typer.Option(help="Known structures, for novelty.")] = "mp",
    judge: Annotated[
        str | None, typer.Option(metavar="POTENTIAL", help="A second potential's opinion.")
    ] = None,
    judge_hull: Annotated[
        str | None, typer.Option(help="The hull for --judge. (default that of --hull)")
    ] = None,
    as_json: common.JsonOption = False,
) -> None:
    """Place structures as they are against a hull; tell which are unique and novel.

    A judge relaxes what is unique and (meta)stable or suspect once more from there.
    """
    config = common.campaign_config(
        None,
        {
            "potential": potential,
            "hulls": [hull],
            "reference": reference,
            "judge": common.judge_table(judge, judge_hull),
        },
    )
    from flows import inputs

    with common.terminal_progress() as progress:
        progress.stage("start", None)
        inputs.check_stability(config)
        if config.judge is not None:
            inputs.judge(config, config.judge)
        given = common.readable(file)
        names, structures = given.names, given.structures
        from flows.assess import assess
        from flows.report_intervals import Share
        from flows.report_recipe import screening_recipe
        from relax.potentials import load

        progress.stage("screen", len(structures))
        energies = load(config.potential).energies_per_atom(structures)
        verdicts = assess(config, structures, energies)
        rows = [
            {"name": name, "formula": one.composition.reduced_formula, **verdict.as_dict()}
            for name, one, verdict in zip(names, structures, verdicts, strict=True)
        ]
        n = len(rows) + len(given.errors)
        shares = {
            kind: Share.of(sum(getattr(one, f"is_{kind}") for one in verdicts), n)
            for kind in ("stable", "metastable", "unique", "novel", "sun", "msun")
        }
        recipe = screening_recipe(config, file)
        if config.judge is not None:
            progress.stage("judge", None)
            _judge(config, config.judge, structures, energies, rows, progress.advance)
        progress.reach(len(structures))
    if as_json:
        unreadable = [
            {"name": name, "verdict": "unreadable", "reason": e} for name, e in given.errors
        ]
        told = {kind: asdict(share) for kind, share in shares.items()}
        common.print_json({"shares": told, "recipe": recipe, "crystals": rows + unreadable})
        return
    columns = [name for name in rows[0] if name != "hull_coverage"]
    common.print_table(columns, [[row[name] for name in columns] for row in rows])
    for name, why in given.errors:
        print(f"  {name}: {why}")
    common.print_facts({**shares, **recipe})


def _judge(
    config: CampaignConfig,
    judge: JudgeSettings,
    structures: list[Structure],
    energies: NDArray[np.float64],
    rows: list[dict[str, Any]],
    advance: Callable[[], None],
) -> None:
    """Write second opinions into the rows, on what is unique and may be stable."""
    from db.judgements import WORTH_JUDGING
    from flows.assess import opinions

    asked = [
        i for i, row in enumerate(rows) if row["verdict"] in WORTH_JUDGING and row["is_unique"]
    ]
    for row in rows:
        row |= dict.fromkeys(JUDGED)
    them = [structures[i] for i in asked], [float(energies[i]) for i in asked]
    for place, _, told in opinions(config, judge, *them):
        rows[asked[place]] |= {
            "judge_verdict": told.verdict,
            "judge_energy_above_hull": told.energy_above_hull,
            "energy_above_hull_spread": told.spread,
            "judge_reason": told.reason,
        }
        advance()


def _relaxed_row(name: str, result: Any) -> dict[str, Any]:
    return {
        "name": name,
        "status": result.status,
        "reason": result.reason or None,
        "energy_per_atom": result.energy_per_atom,
        "max_force": result.max_force,
        "steps": result.steps,
        "space_group_before": result.space_group_before,
        "space_group_after": result.space_group_after,
        "rmsd": result.rmsd,
        "saddle_depth": result.saddle_depth,
        "potential": result.potential.name,
        "dtype": result.potential.dtype,
        "energy_scheme": result.potential.energy_scheme,
    }
