"""The last stage of a campaign, without Prefect: stable, unique and novel or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from db import models, queries
from db.queries import Basis, Like, Relaxed
from db.records import KNOWN_CANDIDATES
from db.session import Database, open_database
from flows import assess, inputs, progress
from flows.rows import verdict_basis
from flows.settings import CampaignConfig, ThresholdSettings, one_line

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from relax.hull import Hull
    from relax.matching import Reference
    from relax.potentials import PotentialInfo


def screen_pending(config: CampaignConfig, campaign_id: int) -> None:
    """Give a verdict on every relaxed crystal of the campaign that has none yet."""
    database = open_database(config.database)
    with database.kept_open():
        # The newest verdict is the one shown outside of the campaign, so the first hull comes last.
        for name in reversed(config.hulls):
            _screen_against(config, campaign_id, database, inputs.load_hull(name))


def _screen_against(
    config: CampaignConfig, campaign_id: int, database: Database, hull: Hull
) -> None:
    potential = inputs.potential_info(config.potential)
    known = inputs.load_reference(config.reference)
    with database.session() as session:
        basis = verdict_basis(session, config, potential, hull, known)
        pending = queries.unscreened(session, campaign_id, basis)
    name = config.training_reference
    training = None if name is None else inputs.load_reference(name)
    judge = _Judge(config.thresholds, potential, hull, known, training, basis)
    bar = progress.current()
    bar.stage("screen", len(pending))
    for one in pending:
        with database.session(write=False) as session:  # comparing takes long: nobody waits for it
            older = queries.relaxed_like(
                session, one.structure, potential_id=basis.potential_id, before=one.candidate_id
            )
        row = judge.verdict(one, older)
        with database.session() as session:
            _record(session, one, row, older, basis.potential_id)
        bar.advance()


def _record(
    session: Session, one: Relaxed, row: models.Stability, older: Sequence[Like], potential_id: int
) -> None:
    """Store a verdict, with what campaigns that run in parallel have relaxed and judged meanwhile.

    Args:
        session: An open session.
        one: The crystal.
        row: Its verdict.
        older: The crystals that it was compared with.
        potential_id: What relaxed them.
    """
    queries.lock_verdicts(session)
    if row.is_unique:
        compared = {like.relaxation_id for like in older}
        now = queries.relaxed_like(
            session, one.structure, potential_id=potential_id, before=one.candidate_id
        )
        late = [like for like in now if like.relaxation_id not in compared]
        twin = next((like.candidate_id for like in _same(one, late)), None)
        if twin is not None:
            row.is_unique, row.duplicate_of_id = False, twin
            row.known_to = ", ".join(filter(None, [KNOWN_CANDIDATES, row.known_to]))
    if row.is_unique is not None:
        younger = queries.unique_like(
            session, one.structure, potential_id=potential_id, after=one.candidate_id
        )
        for like in _same(one, younger):
            queries.mark_duplicate(session, like, of_candidate=one.candidate_id)
    queries.record_stability(session, row)


def _same(one: Relaxed, alike: Iterable[Like]) -> Iterator[Like]:
    """Yield those that are the same crystal, as far as they can be compared."""
    from relax.matching import matches

    for like in alike:
        try:
            if matches(like.structure, one.structure):
                yield like
        except Exception:  # the matcher's; the other one's own verdict tells why
            continue


@dataclass(frozen=True)
class _Judge:
    """What crystals are judged by, and the rows of the database for it."""

    thresholds: ThresholdSettings
    potential: PotentialInfo
    hull: Hull
    known: Reference
    training: Reference | None
    basis: Basis

    def verdict(self, one: Relaxed, older: Sequence[Like]) -> models.Stability:
        """Make the row of one verdict; a crystal that cannot be judged never stops the others."""
        from relax.errors import RelaxError
        from relax.matching import matches

        row = models.Stability(
            relaxation_id=one.relaxation_id,
            hull_id=self.basis.hull_id,
            known_id=self.basis.known_id,
            settings=self.basis.screen_settings,
            verdict="not_assessable",
        )
        try:
            formation, above = assess.place(
                self.hull, self.potential, one.structure, one.energy_per_atom
            )
            coverage = assess.coverage(self.hull, one.structure)
            twins = (like.candidate_id for like in older if matches(like.structure, one.structure))
            twin = next(twins, None)
            known = self.known.knows([one.drawn, one.structure])
            trained = self.training.knows([one.drawn, one.structure]) if self.training else []
        except RelaxError:  # the settings are wrong, not the crystal
            raise
        except Exception as error:  # Qhull and matchers raise whatever a strange crystal makes them
            row.reason = f"{type(error).__name__}: {one_line(error)}"
            return row
        row.verdict = assess.tier(above, self.thresholds)
        row.formation_energy_per_atom, row.energy_above_hull = formation, above
        row.is_stable = row.verdict == "stable"
        row.is_metastable = row.verdict in ("stable", "metastable")
        row.is_unique, row.duplicate_of_id = twin is None, twin
        row.is_novel = not any(known) and None not in known
        knowing = {KNOWN_CANDIDATES: twin is not None, "training": any(trained)}
        knowing |= {self.known.name: any(known)}
        row.known_to = ", ".join(name for name, knows in knowing.items() if knows)
        row.hull_coverage, row.reason = coverage, assess.gap(coverage)
        return row
