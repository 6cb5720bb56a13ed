"""Rankings of campaigns with a relaxation budget, and the states of what they do not relax."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_OLD = "state IN ('generated', 'invalid', "
_NEW = "state IN ('generated', 'invalid', 'known', 'passed_over', "


def upgrade() -> None:
    """Add the table, and allow two more states."""
    op.create_table(
        "ranking",
        sa.Column("campaign_id", sa.Integer(), nullable=False),
        sa.Column("candidate_id", sa.Integer(), nullable=False),
        sa.Column("energy_per_atom", sa.Float(53)),
        sa.Column("energy_above_hull", sa.Float(53)),
        sa.Column("max_force", sa.Float(53)),
        sa.Column("virial", sa.Float(53)),
        sa.Column("volume_per_atom", sa.Float(53)),
        sa.Column("score", sa.Float(53)),
        sa.Column("rule", sa.String()),
        sa.Column("place", sa.Integer()),
        sa.Column("choice", sa.String()),
        sa.Column("passed_over", sa.String()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "choice IN ('ranked', 'random', 'known')", name=op.f("ck_ranking_choice")
        ),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name="fk_ranking_campaign_id"),
        sa.ForeignKeyConstraint(["candidate_id"], ["candidate.id"], name="fk_ranking_candidate_id"),
        sa.PrimaryKeyConstraint("campaign_id", "candidate_id", name="pk_ranking"),
    )
    op.create_index("ix_ranking_candidate_id", "ranking", ["candidate_id"])
    if op.get_bind().dialect.name == "sqlite":
        _allow_in_sqlite()
    else:
        op.drop_constraint("ck_candidate_state", "candidate")
        op.create_check_constraint(
            op.f("ck_candidate_state"),
            "candidate",
            f"{_NEW}'relaxed', 'failed', 'screened', 'quarantined')",
        )


def _allow_in_sqlite() -> None:
    """Change the constraint where it is written.

    SQLite can alter no constraint, and its foreign keys forbid copying the table here. This is
    the way that it documents for constraints that leave the rows as they are (lang_altertable).
    """
    version = op.get_bind().exec_driver_sql("PRAGMA schema_version").scalar_one()
    op.execute("PRAGMA writable_schema = ON")
    op.get_bind().exec_driver_sql(
        "UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = ?",
        (_OLD, _NEW, "candidate"),
    )
    op.execute(f"PRAGMA schema_version = {version + 1}")
    op.execute("PRAGMA writable_schema = OFF")
