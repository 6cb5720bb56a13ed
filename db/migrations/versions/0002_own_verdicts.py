"""A campaign's inputs, the basis of its own verdicts, and its end; tallies; reasons of verdicts."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; what older rows do not tell stays NULL."""
    op.add_column("campaign", sa.Column("inputs", sa.JSON()))
    for name, table in (
        ("potential_id", "potential"),
        ("hull_id", "reference"),
        ("known_id", "reference"),
    ):
        op.execute(  # Alembic would add the key afterwards, which SQLite cannot
            f"ALTER TABLE campaign ADD COLUMN {name} INTEGER "
            f"CONSTRAINT fk_campaign_{name} REFERENCES {table} (id)"
        )
    op.add_column("campaign", sa.Column("relax_settings_hash", sa.String()))
    op.add_column("campaign", sa.Column("screen_settings_hash", sa.String()))
    op.add_column("campaign", sa.Column("finished_at", sa.DateTime(timezone=True)))
    op.add_column("batch", sa.Column("tally", sa.JSON()))
    op.add_column("stability", sa.Column("reason", sa.String()))
