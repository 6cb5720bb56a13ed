"""Density-functional calculations: where they run, what they gave, and their own verdict."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns; nothing wrote rows of this table before."""
    for column in (
        sa.Column("runner", sa.String()),
        sa.Column("location", sa.String()),
        sa.Column("submissions", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("submitted_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("correction_per_atom", sa.Float(53)),
        sa.Column("max_force", sa.Float(53)),
        sa.Column("forces", sa.JSON()),
        sa.Column("code_version", sa.String()),
        sa.Column("thresholds", sa.JSON()),
        sa.Column("formation_energy_per_atom", sa.Float(53)),
        sa.Column("energy_above_hull", sa.Float(53)),
        sa.Column("verdict", sa.String()),
    ):
        op.add_column("dft_calculation", column)
    op.execute(  # Alembic would add the key afterwards, which SQLite cannot
        "ALTER TABLE dft_calculation ADD COLUMN hull_id INTEGER "
        "CONSTRAINT fk_dft_calculation_hull_id REFERENCES reference (id)"
    )
