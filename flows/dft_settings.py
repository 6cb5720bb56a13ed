"""Settings of collecting results: one frozen model for the command line and Prefect."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from flows.settings import ThresholdSettings


class CollectConfig(BaseModel):
    """What to collect and how to judge it; also the parameter schema of the Prefect flow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: str | None = Field(
        default=None,
        description="SQLAlchemy URL; None: SYMMBFN_DB, or a file in the working folder.",
    )
    hull: str | None = Field(
        default=None,
        description="Hull of scheme mp2020 that the verdicts are against; None: no verdicts.",
    )
    thresholds: ThresholdSettings = ThresholdSettings()
