"""A training set's key, and what its members' properties were."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns; no release before this one wrote training sets."""
    op.add_column("training_set", sa.Column("key", sa.String()))
    op.create_index("ix_training_set_key", "training_set", ["key"], unique=True)
    op.add_column(
        "training_member",
        sa.Column("properties", sa.JSON(), nullable=False, server_default="{}"),
    )
