"""Schema revisions, run by Alembic from ``db.session``."""
