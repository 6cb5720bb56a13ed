"""Settings of the handoff: frozen models for files, the command line and Prefect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows import dft_makers, dft_runners
from flows.dft_makers import Code, Cp2kSettings, Policy, RunnerName, VaspSettings, Workflow
from flows.settings import FileSettings, ThresholdSettings

if TYPE_CHECKING:
    from flows.dft_makers import DftSettings
    from flows.dft_runners import Runner


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


class SubmitConfig(FileSettings):
    """What is computed, by what and where; also `[dft]` in the file of a loop."""

    code: Code = Field(default="vasp", description="What computes.")
    workflow: Workflow = Field(
        default="relax", description="Relax and then compute, or only compute."
    )
    policy: Policy | None = Field(
        default="stable",
        description="Which crystals first, of each kind one; None: the lowest above their hull, "
        "suspects and twins too.",
    )
    filter: str | None = Field(
        default=None,
        description="Which crystals at all, in the language of `symmbfn candidates`.",
    )
    limit: int = Field(default=10, ge=1, le=10**9, description="Budget: at most so many crystals.")
    resubmit: bool = Field(default=False, description="Those that failed or were lost, once more.")
    campaign: str | None = Field(
        default=None,
        description="Only what this campaign drew; what of it was submitted before then counts "
        "towards the limit, unless it is to be submitted again.",
    )
    runner: RunnerName = Field(
        default="local", description="What runs the jobs; local: here, until all are done."
    )
    folder: str | None = Field(
        default=None, description="Where local jobs are kept; None: dft-jobs."
    )
    project: str | None = Field(
        default=None, description="Project of jobflow-remote; None: its own default."
    )
    basis: str | None = Field(
        default=None, description=f"Basis set of CP2K; None: {Cp2kSettings.basis}."
    )
    kpoint_density: float | None = Field(
        default=None,
        ge=0.01,
        description="K-points of CP2K, per reciprocal volume; None: "
        f"{Cp2kSettings.kpoint_density:g}.",
    )
    database: str | None = Field(
        default=None,
        description="SQLAlchemy URL; None: SYMMBFN_DB, or a file in the working folder.",
    )

    @model_validator(mode="after")
    def _each_setting_has_a_use(self) -> SubmitConfig:
        for name, owner, value in (
            ("basis", "code", "cp2k"),
            ("kpoint_density", "code", "cp2k"),
            ("folder", "runner", "local"),
            ("project", "runner", "jobflow-remote"),
        ):
            given = getattr(self, name)
            if given is not None and getattr(self, owner) != value:
                raise ValueError(f"{name} {given} is for {owner} {value}; drop it")
        return self

    @property
    def calculation(self) -> DftSettings:
        """What is computed."""
        if self.code == "vasp":
            return VaspSettings(self.workflow)
        return Cp2kSettings(
            self.workflow,
            basis=self.basis or Cp2kSettings.basis,
            kpoint_density=self.kpoint_density or Cp2kSettings.kpoint_density,
        )

    def open_runner(self) -> Runner:
        """Return what runs the jobs.

        Raises:
            ConfigError: atomate2, the code or the runner's package is not installed or set up.
        """
        dft_makers.require_atomate2()
        if self.runner != "local":
            return dft_runners.open_runner(self.runner, self.project)
        self.calculation.check_here()
        return dft_runners.open_runner(self.runner, self.folder or "dft-jobs")
