"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of db.models as they were in revision 0001."""
    op.create_table(
        "campaign",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("code_version", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_campaign"),
        sa.UniqueConstraint("idempotency_key", name="uq_campaign_idempotency_key"),
    )
    op.create_index("ix_campaign_name", "campaign", ["name"])
    op.create_table(
        "candidate",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("structure", sa.JSON(), nullable=False),
        sa.Column("formula_pretty", sa.String(), nullable=False),
        sa.Column("chemical_formula_reduced", sa.String(), nullable=False),
        sa.Column("chemsys", sa.String(), nullable=False),
        sa.Column("nelements", sa.Integer(), nullable=False),
        sa.Column("nsites", sa.Integer(), nullable=False),
        sa.Column("space_group", sa.Integer()),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String()),
        sa.Column("lease_owner", sa.String()),
        sa.Column("lease_until", sa.DateTime(timezone=True)),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('generated', 'invalid', 'relaxed', 'failed', 'screened', 'quarantined')",
            name=op.f("ck_candidate_state"),
        ),
        sa.PrimaryKeyConstraint("id", name="pk_candidate"),
    )
    op.create_index(
        "ix_candidate_chemical_formula_reduced", "candidate", ["chemical_formula_reduced"]
    )
    op.create_index("ix_candidate_chemsys", "candidate", ["chemsys"])
    op.create_index("ix_candidate_fingerprint", "candidate", ["fingerprint"])
    op.create_index("ix_candidate_formula_pretty", "candidate", ["formula_pretty"])
    op.create_index("ix_candidate_state", "candidate", ["state"])
    op.create_table(
        "potential",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("weights_sha256", sa.String(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("energy_scheme", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_potential"),
        sa.UniqueConstraint(
            "name", "weights_sha256", "dtype", name="uq_potential_name_weights_sha256_dtype"
        ),
    )
    op.create_table(
        "reference",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("energy_scheme", sa.String()),
        sa.Column("source", sa.String(), nullable=False),
        sa.CheckConstraint("kind IN ('hull', 'structures')", name=op.f("ck_reference_kind")),
        sa.PrimaryKeyConstraint("id", name="pk_reference"),
        sa.UniqueConstraint("sha256", name="uq_reference_sha256"),
    )
    op.create_table(
        "training_set",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("recipe", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_training_set"),
        sa.UniqueConstraint("sha256", name="uq_training_set_sha256"),
    )
    op.create_table(
        "candidate_element",
        sa.Column("candidate_id", sa.Integer(), nullable=False),
        sa.Column("element", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["candidate_id"], ["candidate.id"], name="fk_candidate_element_candidate_id"
        ),
        sa.PrimaryKeyConstraint("candidate_id", "element", name="pk_candidate_element"),
    )
    op.create_index("ix_candidate_element_element", "candidate_element", ["element"])
    op.create_table(
        "checkpoint",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("parent_id", sa.Integer()),
        sa.Column("training_set_id", sa.Integer()),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("promoted_at", sa.DateTime(timezone=True)),
        sa.Column("rejected_reason", sa.String()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["parent_id"], ["checkpoint.id"], name="fk_checkpoint_parent_id"),
        sa.ForeignKeyConstraint(
            ["training_set_id"], ["training_set.id"], name="fk_checkpoint_training_set_id"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoint"),
        sa.UniqueConstraint("sha256", name="uq_checkpoint_sha256"),
    )
    op.create_table(
        "relaxation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("candidate_id", sa.Integer(), nullable=False),
        sa.Column("potential_id", sa.Integer(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("settings_hash", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("reason", sa.String()),
        sa.Column("structure", sa.JSON()),
        sa.Column("energy_per_atom", sa.Float(53)),
        sa.Column("initial_energy_per_atom", sa.Float(53)),
        sa.Column("max_force", sa.Float(53)),
        sa.Column("stress", sa.JSON()),
        sa.Column("steps", sa.Integer()),
        sa.Column("seconds", sa.Float(53)),
        sa.Column("space_group_before", sa.Integer()),
        sa.Column("space_group_after", sa.Integer()),
        sa.Column("rmsd", sa.Float(53)),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["candidate_id"], ["candidate.id"], name="fk_relaxation_candidate_id"
        ),
        sa.ForeignKeyConstraint(
            ["potential_id"], ["potential.id"], name="fk_relaxation_potential_id"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_relaxation"),
        sa.UniqueConstraint(
            "candidate_id",
            "potential_id",
            "settings_hash",
            name="uq_relaxation_candidate_id_potential_id_settings_hash",
        ),
    )
    op.create_table(
        "batch",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("campaign_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("conditions", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("steps", sa.Integer()),
        sa.Column("code_version", sa.String(), nullable=False),
        sa.Column("seconds", sa.Float(53)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name="fk_batch_campaign_id"),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoint.id"], name="fk_batch_checkpoint_id"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_batch"),
        sa.UniqueConstraint("campaign_id", "number", name="uq_batch_campaign_id_number"),
    )
    op.create_table(
        "dft_calculation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("relaxation_id", sa.Integer(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("settings_hash", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("job_id", sa.String()),
        sa.Column("reason", sa.String()),
        sa.Column("structure", sa.JSON()),
        sa.Column("energy_per_atom", sa.Float(53)),
        sa.Column("energy_scheme", sa.String()),
        sa.Column("band_gap", sa.Float(53)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('submitted', 'completed', 'failed')", name=op.f("ck_dft_calculation_state")
        ),
        sa.ForeignKeyConstraint(
            ["relaxation_id"], ["relaxation.id"], name="fk_dft_calculation_relaxation_id"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_dft_calculation"),
        sa.UniqueConstraint(
            "relaxation_id",
            "code",
            "settings_hash",
            name="uq_dft_calculation_relaxation_id_code_settings_hash",
        ),
    )
    op.create_table(
        "stability",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("relaxation_id", sa.Integer(), nullable=False),
        sa.Column("hull_id", sa.Integer(), nullable=False),
        sa.Column("known_id", sa.Integer(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("settings_hash", sa.String(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("formation_energy_per_atom", sa.Float(53)),
        sa.Column("energy_above_hull", sa.Float(53)),
        sa.Column("is_stable", sa.Boolean(), nullable=False),
        sa.Column("is_metastable", sa.Boolean(), nullable=False),
        sa.Column("is_unique", sa.Boolean()),
        sa.Column("is_novel", sa.Boolean()),
        sa.Column("duplicate_of_id", sa.Integer()),
        sa.Column("matches_known", sa.String()),
        sa.Column("hull_coverage", sa.JSON()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "verdict IN ('stable', 'metastable', 'unstable', 'not_assessable', 'quarantined')",
            name=op.f("ck_stability_verdict"),
        ),
        sa.ForeignKeyConstraint(
            ["duplicate_of_id"], ["candidate.id"], name="fk_stability_duplicate_of_id"
        ),
        sa.ForeignKeyConstraint(["hull_id"], ["reference.id"], name="fk_stability_hull_id"),
        sa.ForeignKeyConstraint(["known_id"], ["reference.id"], name="fk_stability_known_id"),
        sa.ForeignKeyConstraint(
            ["relaxation_id"], ["relaxation.id"], name="fk_stability_relaxation_id"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_stability"),
        sa.UniqueConstraint(
            "relaxation_id",
            "hull_id",
            "known_id",
            "settings_hash",
            name="uq_stability_relaxation_id_hull_id_known_id_settings_hash",
        ),
    )
    op.create_table(
        "training_member",
        sa.Column("training_set_id", sa.Integer(), nullable=False),
        sa.Column("relaxation_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["relaxation_id"], ["relaxation.id"], name="fk_training_member_relaxation_id"
        ),
        sa.ForeignKeyConstraint(
            ["training_set_id"], ["training_set.id"], name="fk_training_member_training_set_id"
        ),
        sa.PrimaryKeyConstraint("training_set_id", "relaxation_id", name="pk_training_member"),
    )
    op.create_index("ix_training_member_relaxation_id", "training_member", ["relaxation_id"])
    op.create_table(
        "provenance",
        sa.Column("batch_id", sa.Integer(), nullable=False),
        sa.Column("batch_index", sa.Integer(), nullable=False),
        sa.Column("candidate_id", sa.Integer(), nullable=False),
        sa.Column("structure_sha256", sa.String(), nullable=False),
        sa.Column("space_group_drawn", sa.Integer()),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.id"], name="fk_provenance_batch_id"),
        sa.ForeignKeyConstraint(
            ["candidate_id"], ["candidate.id"], name="fk_provenance_candidate_id"
        ),
        sa.PrimaryKeyConstraint("batch_id", "batch_index", name="pk_provenance"),
    )
    op.create_index("ix_provenance_candidate_id", "provenance", ["candidate_id"])
