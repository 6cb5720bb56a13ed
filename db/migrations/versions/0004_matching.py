"""Who knew a crystal before."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column; verdicts of older releases do not tell."""
    op.add_column("stability", sa.Column("known_to", sa.String()))
