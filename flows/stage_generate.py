"""The first stage of a campaign, without Prefect: draw crystals and store them."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from db import models, queries
from db.session import Database, open_database
from flows import inputs, progress
from flows.rows import checkpoint_row, verdict_basis
from flows.settings import CampaignConfig, one_line
from flows.version import code_version

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure
    from sqlalchemy.orm import Session


def open_campaign(config: CampaignConfig) -> int:
    """Find the campaign of these settings, or start it; return its row number.

    Raises:
        ConfigError, SymmBFNError, RelaxError: Something that the settings name is not right.
        DatabaseError: No database, or the idempotency key belongs to other settings or inputs.
    """
    found = inputs.check(config)
    key = config.idempotency_key(*found.fingerprints.values())
    database = open_database(config.database)
    with database.session() as session:
        campaign = queries.get_or_create_campaign(
            session,
            key,
            name=key,
            config=config.identity(),
            seed=config.seed or 0,
            code_version=code_version(),
            inputs=found.fingerprints,
            basis=verdict_basis(session, config, found.potential, found.hulls[0], found.reference),
        )
        if queries.batch_numbers(session, campaign.id):
            progress.current().say(
                f"campaign {campaign.name} is in {database.url} already: going on with it"
            )
        return campaign.id


def close_campaign(config: CampaignConfig, campaign_id: int) -> None:
    """Note that all stages of the campaign are done."""
    with open_database(config.database).session() as session:
        queries.finish_campaign(session, campaign_id)


def unfinished_seeds(config: CampaignConfig) -> list[int]:
    """Return the seeds of the campaigns, oldest first, that differ from this one only in it.

    Only those that are not finished, because they were killed or another process is at work.
    """
    found = inputs.check(config)
    hashes = found.fingerprints.values()
    with open_database(config.database).session() as session:
        basis = verdict_basis(session, config, found.potential, found.hulls[0], found.reference)
        return queries.unfinished_seeds(
            session,
            basis,
            lambda seed: config.model_copy(update={"seed": seed}).idempotency_key(*hashes),
        )


def generate_batch(config: CampaignConfig, campaign_id: int, number: int) -> None:
    """Draw one batch of crystals and store it in one transaction, unless it is there.

    Args:
        config: The campaign's settings.
        campaign_id: Its row.
        number: Of the batch, from 0; with the campaign's seed it decides what is drawn.
    """
    from symmbfn.checkpoint import load_card
    from symmbfn.known_sites import known_sites
    from symmbfn.sample import Tally, sample

    database = open_database(config.database)
    size = config.size_of_batch(number)
    before = number * config.batch_size
    bar = progress.current()
    with database.session(write=False) as session:
        if number in queries.batch_numbers(session, campaign_id):
            bar.reach(before + size, earlier=True)
            return
    began = time.monotonic()
    tally = Tally()
    crystals = sample(
        config.checkpoint,
        size,
        seed=config.batch_seed(number),
        steps=config.steps,
        proposals=config.proposals,
        conditions=inputs.conditions(config),
        avoid=known_sites(config.reference),
        on_batch=lambda done: bar.reach(before + done),
        tally=tally,
    )
    drawn = [examine(crystal.to_structure(), crystal.space_group) for crystal in crystals]
    seconds = time.monotonic() - began
    compared = compare(database, drawn)
    with database.session() as session:
        batch = queries.add_batch(
            session,
            models.Batch(
                campaign_id=campaign_id,
                number=number,
                checkpoint_id=checkpoint_row(session, load_card(config.checkpoint)).id,
                conditions=config.conditions.model_dump(mode="json"),
                seed=config.batch_seed(number),
                size=size,
                steps=config.steps,
                code_version=code_version(),
                seconds=seconds,
                tally=asdict(tally),
            ),
        )
        store(session, batch.id, drawn, compared)


@dataclass(frozen=True)
class Drawn:
    """A generated crystal with what is found in it; `flaw` says why it is not worth relaxing."""

    structure: Structure
    flaw: str | None
    fingerprint: str
    space_group: int | None
    space_group_drawn: int


def examine(structure: Structure, space_group_drawn: int) -> Drawn:
    """Look at a generated crystal: its flaws, fingerprint, and the symmetry that it really has.

    That it cannot be looked at is a flaw, too; it never stops the others.
    """
    from relax.matching import fingerprint
    from symmbfn.metrics import space_group, structural_flaw

    try:
        flaw = structural_flaw(structure)
        text, group = ("", None) if flaw else (fingerprint(structure), space_group(structure))
    except Exception as error:  # symmetry finders raise whatever a strange crystal makes them
        flaw = f"cannot be examined: {type(error).__name__}: {one_line(error)}"
        text, group = "", None
    return Drawn(structure, flaw, text, group, space_group_drawn)


@dataclass(frozen=True)
class Compared:
    """Which crystals of a batch are the same as others; those with a flaw are left out.

    Attributes:
        firsts: For each place in the batch, that of the first crystal that is the same.
        twins: For the places of firsts, the stored candidate that is the same, if there is one.
        newest: The newest candidate that was looked at.
    """

    firsts: dict[int, int]
    twins: dict[int, int]
    newest: int


def compare(database: Database, drawn: Sequence[Drawn]) -> Compared:
    """Compare crystals with each other and with those stored; it takes long, and locks nothing."""
    from relax.matching import unique

    sound = [place for place, one in enumerate(drawn) if one.flaw is None]
    classes = unique([drawn[place].structure for place in sound])
    firsts = {place: sound[first] for place, first in zip(sound, classes, strict=True)}
    with database.session(write=False) as session:
        newest = queries.newest_candidate(session)
        twins = _twins(session, drawn, set(firsts.values()))
    return Compared(firsts, twins, newest)


def store(session: Session, batch_id: int, drawn: Sequence[Drawn], compared: Compared) -> list[int]:
    """Store the crystals of a batch, or only where they came from if the database has them.

    In the transaction of `queries.add_batch`, so that only candidates that others have stored
    since `compare` are left to look at.

    Returns:
        Row number of the candidate of each crystal.
    """
    same = dict(compared.twins)
    if queries.newest_candidate(session) > compared.newest:
        left = set(compared.firsts.values()) - same.keys()
        same |= _twins(session, drawn, left, after=compared.newest)
    stored: list[int] = []
    for place, one in enumerate(drawn):
        first = compared.firsts.get(place, place)
        stored.append(
            queries.add_candidate(
                session,
                one.structure,
                batch_id=batch_id,
                batch_index=place,
                space_group=one.space_group,
                space_group_drawn=one.space_group_drawn,
                fingerprint=one.fingerprint,
                same_as=stored[first] if first < place else same.get(place),
                invalid_reason=one.flaw,
            )
        )
    return stored


def _twins(
    session: Session, drawn: Sequence[Drawn], places: Collection[int], after: int = 0
) -> dict[int, int]:
    """Find the stored candidates, of later rows than `after`, that are the same crystals."""
    from relax.matching import matches

    twins: dict[int, int] = {}
    for place in places:
        one = drawn[place]
        alike = queries.candidates_like(session, one.structure, one.fingerprint, after=after)
        same = (like.candidate_id for like in alike if matches(like.structure, one.structure))
        try:
            twin = next(same, None)
        except Exception:  # the matcher's; the screening will tell why
            continue
        if twin is not None:
            twins[place] = twin
    return twins
