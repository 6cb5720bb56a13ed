"""The settings of `symmbfn retrain` and `symmbfn loop`, as TOML files and Prefect take them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from flows.dft_settings import SubmitConfig
from flows.settings import CampaignConfig, FileSettings, check_elements

PROMOTED = "promoted"
"""In the place of a checkpoint's name: the one that the database promoted last."""


class GateSettings(FileSettings):
    """How much worse than its parent a new checkpoint may look and still be promoted."""

    n: int = Field(
        default=128, ge=2, le=10_000_000, description="Crystals of the fresh sample of each."
    )
    loss_margin: float = Field(
        default=0.05, ge=0, description="Held-out loss, nats; training has brought it to about 4.3."
    )
    validity_margin: float = Field(
        default=0.05, ge=0, le=1, description="Share of valid draws, and of valid compositions."
    )
    diversity: float = Field(
        default=0.85,
        ge=0,
        le=1,
        description="Least ratio of different formulas, chemical systems and space groups.",
    )
    concentration: float = Field(
        default=1.25, ge=1, description="Largest ratio of the Herfindahl indices of elements."
    )
    element_rise: float = Field(
        default=0.15, ge=0, le=1, description="Most by which one element's share may rise."
    )
    correction_shift: float = Field(
        default=0.1,
        ge=0,
        description="Most by which the mean MP2020 correction of what is metastable may fall, "
        "eV/atom.",
    )


class RetrainConfig(FileSettings):
    """All the settings of one retraining; also the parameter schema of the Prefect flow."""

    example: ClassVar[str] = "the [retrain] table of examples/loop.toml"

    filter: str = Field(
        default="is_metastable = TRUE AND is_unique = TRUE",
        description="Which crystals of the database, in the language of `symmbfn candidates`.",
    )
    learn: Literal["generator", "critic", "both"] = Field(
        default="both",
        description="What learns: the networks, from those crystals; the critic, from all that was "
        "looked at or relaxed.",
    )
    checkpoint: str = Field(
        default=PROMOTED,
        description="What to start from: a name, a folder, or the one promoted last.",
    )
    base: str | None = Field(
        default=None,
        description="Data to replay, a file of `symmbfn data import`; None: the checkpoint's own "
        "samples.",
    )
    held_out: str | None = Field(
        default=None,
        description="Data to judge by, a file of the same kind; None: a share is set aside.",
    )
    held_out_share: float = Field(
        default=0.1, gt=0, lt=1, description="Of the chemical systems, where there is no file."
    )
    folder: str = Field(default="retrained", description="Where the checkpoints are written.")
    minutes: float = Field(default=10.0, gt=0, description="Budget of the training.")
    max_passes: float = Field(
        default=30.0, gt=0, description="How often each new crystal is shown at most."
    )
    share: float = Field(
        default=0.25,
        gt=0,
        le=0.5,
        description="Of generated crystals in the training; the rest is replayed.",
    )
    template_share: float = Field(
        default=0.25,
        ge=0,
        le=0.5,
        description="Of generated crystals among those that space groups are drawn from.",
    )
    replay: int = Field(
        default=2048, ge=16, description="Samples of the checkpoint where there is no base data."
    )
    batch_size: int = Field(default=128, ge=1, description="Crystals in a step.")
    learning_rate: float = Field(default=3e-4, gt=0, description="Peak.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Of everything.")
    elements: tuple[str, ...] | None = Field(
        default=None, description="Only crystals of these elements are trained on."
    )
    exclude: tuple[str, ...] = Field(default=(), description="No crystal with one of these is.")
    element_factor: float = Field(
        default=2.0,
        ge=1,
        description="An element's share may be so many times that in the base data, or 5 %.",
    )
    element_caps: dict[str, float] = Field(
        default_factory=dict, description="Largest share of crystals with this element."
    )
    gate: GateSettings = GateSettings()
    campaign: CampaignConfig = Field(
        default_factory=CampaignConfig,
        description="How the fresh samples are drawn, relaxed and judged, and the database.",
    )
    key: str | None = Field(
        default=None,
        pattern=r"^\w[\w.:@-]{0,99}$",
        description="Idempotency key; None: made from the settings and the crystals.",
    )

    @field_validator("elements", "exclude")
    @classmethod
    def _known_elements(cls, symbols: tuple[str, ...] | None) -> tuple[str, ...] | None:
        check_elements(symbols or ())
        return symbols

    @model_validator(mode="after")
    def _campaign_leaves_the_sample_alone(self) -> RetrainConfig:
        for name in ("n", "seed", "checkpoint", "key"):
            if getattr(self.campaign, name) != CampaignConfig.model_fields[name].default:
                raise ValueError(f"campaign.{name} is the gate's own; drop it (gate.n is the size)")
        return self

    def training_settings(self) -> dict[str, Any]:
        """Return the settings that decide what is trained, by names that files keep."""
        others = {"gate", "campaign", "folder", "key", "checkpoint", "base", "held_out"}
        return self.model_dump(mode="json", exclude=others)


class LoopConfig(FileSettings):
    """All the settings of a loop; also the parameter schema of the Prefect flow."""

    example: ClassVar[str] = "examples/loop.toml"

    name: str = Field(
        pattern=r"^\w[\w.:@-]{0,79}$",
        description="Of the loop; its campaigns and training sets are named after it.",
    )
    rounds: int = Field(default=3, ge=1, le=1000, description="Of discover and retrain.")
    retraining: bool = Field(
        default=True, description="False: campaigns only, the control that retraining must beat."
    )
    min_diversity: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="The loop ends where a round has fewer chemical systems than so many times "
        "those of the first.",
    )
    dft: SubmitConfig | None = Field(
        default=None,
        description="What each round hands to density-functional calculations, of the crystals "
        "that it drew; None: nothing. Results are collected before each retraining.",
    )
    dft_hull: str | None = Field(
        default=None, description="Hull of scheme mp2020 for verdicts on those results."
    )
    campaign: CampaignConfig = Field(
        default_factory=CampaignConfig, description="Each round's; also what the gate judges by."
    )
    retrain: RetrainConfig = Field(default_factory=RetrainConfig, description="Each round's.")

    @model_validator(mode="after")
    def _one_campaign(self) -> LoopConfig:
        if self.retrain.campaign != CampaignConfig() or self.retrain.key is not None:
            raise ValueError("retrain.campaign and retrain.key are the loop's own; drop them")
        if self.campaign.key is not None or self.campaign.seed is None:
            raise ValueError("campaign.key is the loop's own; drop it, and give campaign.seed")
        if self.dft is not None and (self.dft.database or self.dft.campaign or self.dft.resubmit):
            raise ValueError("dft.database, campaign and resubmit are the loop's own; drop them")
        return self
