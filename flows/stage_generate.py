"""The first stage of a campaign, without Prefect: draw crystals and store them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from db import models, queries
from db.session import open_database
from flows import inputs, progress
from flows.rows import checkpoint_row
from flows.settings import CampaignConfig
from flows.version import code_version

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure
    from sqlalchemy.orm import Session


def open_campaign(config: CampaignConfig) -> int:
    """Find the campaign of these settings, or start it; return its row number.

    Raises:
        ConfigError, SymmBFNError, RelaxError: Something that the settings name is not right.
        DatabaseError: No database, or the idempotency key belongs to other settings.
    """
    key = config.idempotency_key(*inputs.check(config).fingerprints)
    database = open_database(config.database)
    with database.session() as session:
        campaign = queries.get_or_create_campaign(
            session,
            key,
            name=key,
            config=config.identity(),
            seed=config.seed or 0,
            code_version=code_version(),
        )
        if queries.batch_numbers(session, campaign.id):
            progress.current().say(
                f"campaign {campaign.name} is in {database.url} already: going on with it"
            )
        return campaign.id


def generate_batch(config: CampaignConfig, campaign_id: int, number: int) -> None:
    """Draw one batch of crystals and store it in one transaction, unless it is there.

    Args:
        config: The campaign's settings.
        campaign_id: Its row.
        number: Of the batch, from 0; with the campaign's seed it decides what is drawn.
    """
    from symmbfn.checkpoint import load_card
    from symmbfn.sample import sample

    database = open_database(config.database)
    size = config.size_of_batch(number)
    before = number * config.batch_size
    bar = progress.current()
    with database.session(write=False) as session:
        if number in queries.batch_numbers(session, campaign_id):
            bar.reach(before + size)
            return
    began = time.monotonic()
    crystals = sample(
        config.checkpoint,
        size,
        seed=config.batch_seed(number),
        steps=config.steps,
        conditions=inputs.conditions(config),
        on_batch=lambda done: bar.reach(before + done),
    )
    drawn = [examine(crystal.to_structure(), crystal.space_group) for crystal in crystals]
    seconds = time.monotonic() - began
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
            ),
        )
        for index, one in enumerate(drawn):
            store(session, batch.id, index, one)


@dataclass(frozen=True)
class Drawn:
    """A generated crystal with what is found in it; `flaw` says why it is not worth relaxing."""

    structure: Structure
    flaw: str | None
    fingerprint: str
    space_group: int | None
    space_group_drawn: int


def examine(structure: Structure, space_group_drawn: int) -> Drawn:
    """Look at a generated crystal: its flaws, fingerprint, and the symmetry that it really has."""
    from relax.matching import fingerprint
    from symmbfn.metrics import space_group, structural_flaw

    flaw = structural_flaw(structure)
    return Drawn(
        structure=structure,
        flaw=flaw,
        fingerprint="" if flaw else fingerprint(structure),
        space_group=None if flaw else space_group(structure),
        space_group_drawn=space_group_drawn,
    )


def store(session: Session, batch_id: int, index: int, one: Drawn) -> int:
    """Store a crystal, or only where it came from if the database has the same one."""
    from relax.matching import matches

    same_as = None
    if one.flaw is None:
        alike = queries.candidates_like(session, one.structure, one.fingerprint)
        same = (like.candidate_id for like in alike if matches(like.structure, one.structure))
        same_as = next(same, None)
    return queries.add_candidate(
        session,
        one.structure,
        batch_id=batch_id,
        batch_index=index,
        space_group=one.space_group,
        space_group_drawn=one.space_group_drawn,
        fingerprint=one.fingerprint,
        same_as=same_as,
        invalid_reason=one.flaw,
    )
