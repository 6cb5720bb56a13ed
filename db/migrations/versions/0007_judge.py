"""What a second potential says of relaxed crystals."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "judgement",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("relaxation_id", sa.Integer(), nullable=False),
        sa.Column("potential_id", sa.Integer(), nullable=False),
        sa.Column("hull_id", sa.Integer(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("settings_hash", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("reason", sa.String()),
        sa.Column("structure", sa.JSON()),
        sa.Column("energy_per_atom", sa.Float(53)),
        sa.Column("formation_energy_per_atom", sa.Float(53)),
        sa.Column("energy_above_hull", sa.Float(53)),
        sa.Column("spread", sa.Float(53)),
        sa.Column("steps", sa.Integer()),
        sa.Column("seconds", sa.Float(53)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "verdict IN ('stable', 'metastable', 'unstable', 'not_assessable', 'quarantined')",
            name=op.f("ck_judgement_verdict"),
        ),
        sa.ForeignKeyConstraint(
            ["relaxation_id"], ["relaxation.id"], name="fk_judgement_relaxation_id"
        ),
        sa.ForeignKeyConstraint(
            ["potential_id"], ["potential.id"], name="fk_judgement_potential_id"
        ),
        sa.ForeignKeyConstraint(["hull_id"], ["reference.id"], name="fk_judgement_hull_id"),
        sa.PrimaryKeyConstraint("id", name="pk_judgement"),
        sa.UniqueConstraint(
            "relaxation_id",
            "potential_id",
            "hull_id",
            "settings_hash",
            name="uq_judgement_relaxation_id_potential_id_hull_id_settings_hash",
        ),
    )
