"""What filters, sorting and tables know of a candidate, and the joins that it stands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    cast,
    exists,
    func,
    literal,
    select,
    true,
)
from sqlalchemy.orm import aliased

from db.ids import PREFIX
from db.models import (
    DFT_STATES,
    STATES,
    VERDICTS,
    Batch,
    Campaign,
    Candidate,
    CandidateElement,
    DftCalculation,
    Judgement,
    Potential,
    Provenance,
    Reference,
    Relaxation,
    Stability,
)

Kind = Literal["text", "integer", "number", "boolean"]


@dataclass(frozen=True)
class Field:
    """One value per candidate, NULL where it is not known."""

    column: ColumnElement[Any]
    kind: Kind
    choices: tuple[str, ...] = ()
    """The only values that it can have, where they are few."""


@dataclass(frozen=True)
class ListField:
    """Several texts per candidate: the column ``value`` of the rows ``of_candidate`` chooses."""

    value: ColumnElement[str]
    of_candidate: ColumnElement[bool]

    def any(self, condition: ColumnElement[bool]) -> ColumnElement[bool]:
        """Say that at least one of the values fulfils the condition."""
        return self.count(condition) > 0

    def count(self, condition: ColumnElement[bool]) -> ColumnElement[int]:
        """Count the different values that fulfil the condition.

        Not EXISTS: PostgreSQL turns each into a join, and plans a hundred of them for ever.
        """
        values = select(func.count(self.value.distinct())).where(self.of_candidate, condition)
        return values.correlate(Candidate).scalar_subquery()

    def joined(self) -> ColumnElement[str]:
        """All the values in one text, for tables."""
        distinct = select(self.value.label("value")).where(self.of_candidate).distinct()
        values = distinct.correlate(Candidate).subquery()
        return select(func.aggregate_strings(values.c.value, ", ")).scalar_subquery()


def _newest_verdict() -> ColumnElement[int | None]:
    stability, relaxation = aliased(Stability), aliased(Relaxation)
    return (
        select(func.max(stability.id))
        .join(relaxation, stability.relaxation_id == relaxation.id)
        .where(relaxation.candidate_id == Candidate.id)
        .correlate(Candidate)
        .scalar_subquery()
    )


def _newest_relaxation() -> ColumnElement[int | None]:
    relaxation = aliased(Relaxation)
    return (
        select(func.max(relaxation.id))
        .where(relaxation.candidate_id == Candidate.id)
        .correlate(Candidate)
        .scalar_subquery()
    )


def _of_dft(column: Any, *, state: str | None = "completed") -> ColumnElement[Any]:
    """The value of the newest calculation that has one, of those in a state (None: in any)."""
    relaxation = aliased(Relaxation)
    return (
        select(column)
        .join(relaxation, DftCalculation.relaxation_id == relaxation.id)
        .where(
            relaxation.candidate_id == Candidate.id,
            column.is_not(None),
            true() if state is None else DftCalculation.state == state,
        )
        .order_by(DftCalculation.id.desc())
        .limit(1)
        .correlate(Candidate)
        .scalar_subquery()
    )


_JUDGE = aliased(Potential)


def _of_judge(column: Any) -> ColumnElement[Any]:
    """The value of the newest second opinion on the relaxation."""
    return (
        select(column)
        .select_from(Judgement)
        .join(_JUDGE, _JUDGE.id == Judgement.potential_id)
        .where(Judgement.relaxation_id == Relaxation.id)
        .order_by(Judgement.id.desc())
        .limit(1)
        .correlate(Relaxation)
        .scalar_subquery()
    )


def candidate_rows(*columns: Any, campaign: Campaign | None = None) -> Select[Any]:
    """Select from candidates, each with one verdict and the relaxation that it judges.

    Without a campaign it is the newest verdict. A candidate without any verdict comes with its
    newest relaxation, or with neither. With a campaign, only the candidates that it drew come,
    with its own verdicts and relaxations.
    """
    rows = select(*columns).select_from(Candidate)
    if campaign is not None:
        rows = rows.where(drawn_in(campaign.id))
    if campaign is None or campaign.hull_id is None:  # an older release did not note the basis
        rows = rows.outerjoin(Stability, Stability.id == _newest_verdict()).outerjoin(
            Relaxation,
            Relaxation.id == func.coalesce(Stability.relaxation_id, _newest_relaxation()),
        )
    else:
        rows = rows.outerjoin(
            Relaxation,
            (Relaxation.candidate_id == Candidate.id)
            & (Relaxation.potential_id == campaign.potential_id)
            & (Relaxation.settings_hash == campaign.relax_settings_hash),
        ).outerjoin(
            Stability,
            (Stability.relaxation_id == Relaxation.id)
            & (Stability.hull_id == campaign.hull_id)
            & (Stability.known_id == campaign.known_id)
            & (Stability.settings_hash == campaign.screen_settings_hash),
        )
    return rows.outerjoin(Potential, Potential.id == Relaxation.potential_id).outerjoin(
        Reference, Reference.id == Stability.hull_id
    )


def drawn_in(campaign_id: int) -> ColumnElement[bool]:
    """Say that a campaign drew the candidate."""
    return exists(literal(1)).where(
        Provenance.candidate_id == Candidate.id,
        Provenance.batch_id == Batch.id,
        Batch.campaign_id == campaign_id,
    )


def drawn_first_in(campaign_id: int) -> ColumnElement[bool]:
    """Say that no other campaign had drawn the candidate before this one did."""
    first = select(func.min(Provenance.batch_id)).where(Provenance.candidate_id == Candidate.id)
    return exists(literal(1)).where(
        Batch.id == first.correlate(Candidate).scalar_subquery(),
        Batch.campaign_id == campaign_id,
    )


MATERIAL_ID = literal(PREFIX, String) + cast(Candidate.id, String)

FIELDS: dict[str, Field] = {
    "material_id": Field(MATERIAL_ID, "text"),
    "formula_pretty": Field(Candidate.formula_pretty.expression, "text"),
    "chemical_formula_reduced": Field(Candidate.chemical_formula_reduced.expression, "text"),
    "chemsys": Field(Candidate.chemsys.expression, "text"),
    "nelements": Field(Candidate.nelements.expression, "integer"),
    "nsites": Field(Candidate.nsites.expression, "integer"),
    "space_group": Field(
        func.coalesce(Relaxation.space_group_after, Candidate.space_group), "integer"
    ),
    "state": Field(Candidate.state.expression, "text", STATES),
    "verdict": Field(Stability.verdict.expression, "text", VERDICTS),
    "energy_above_hull": Field(Stability.energy_above_hull.expression, "number"),
    "formation_energy_per_atom": Field(Stability.formation_energy_per_atom.expression, "number"),
    "energy_per_atom": Field(Relaxation.energy_per_atom.expression, "number"),
    "band_gap": Field(_of_dft(DftCalculation.band_gap), "number"),
    "is_stable": Field(Stability.is_stable.expression, "boolean"),
    "is_metastable": Field(Stability.is_metastable.expression, "boolean"),
    "is_unique": Field(Stability.is_unique.expression, "boolean"),
    "is_novel": Field(Stability.is_novel.expression, "boolean"),
    "known_to": Field(Stability.known_to.expression, "text"),
    "potential": Field(Potential.name.expression, "text"),
    "precision": Field(Potential.dtype.expression, "text"),
    "hull": Field(Reference.name.expression, "text"),
    "judge": Field(_of_judge(_JUDGE.name), "text"),
    "judge_verdict": Field(_of_judge(Judgement.verdict), "text", VERDICTS),
    "judge_energy_above_hull": Field(_of_judge(Judgement.energy_above_hull), "number"),
    "energy_above_hull_spread": Field(_of_judge(Judgement.spread), "number"),
    "dft_state": Field(_of_dft(DftCalculation.state, state=None), "text", DFT_STATES),
    "dft_verdict": Field(_of_dft(DftCalculation.verdict), "text", VERDICTS),
    "dft_energy_above_hull": Field(_of_dft(DftCalculation.energy_above_hull), "number"),
}

LIST_FIELDS: dict[str, ListField] = {
    "elements": ListField(
        CandidateElement.element.expression,
        CandidateElement.candidate_id == Candidate.id,
    ),
    "campaign": ListField(
        Campaign.name.expression,
        (Provenance.candidate_id == Candidate.id)
        & (Batch.id == Provenance.batch_id)
        & (Campaign.id == Batch.campaign_id),
    ),
}


def fields_of(campaign: Campaign | None) -> dict[str, Field]:
    """``FIELDS`` on the rows of ``candidate_rows(campaign=campaign)``.

    Unique in a campaign is what is unique in the database and was drawn there first.
    """
    if campaign is None:
        return FIELDS
    unique = FIELDS["is_unique"].column & drawn_first_in(campaign.id)
    return FIELDS | {"is_unique": Field(unique, "boolean")}
