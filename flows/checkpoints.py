"""Which checkpoint is meant: a name, a folder, or the one that the database promoted last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from db import training
from db.session import open_database
from db.training import Made
from flows.retrain_settings import PROMOTED
from flows.settings import CampaignConfig

if TYPE_CHECKING:
    from symmbfn.checkpoint import Card


def resolved(config: CampaignConfig) -> CampaignConfig:
    """Return the settings with the promoted checkpoint's folder where they say "promoted".

    So a campaign keeps the checkpoint that it began with, whatever is promoted meanwhile.
    """
    if config.checkpoint != PROMOTED:
        return config
    return config.model_copy(update={"checkpoint": promoted(config.database)})


def promoted(database: str | None) -> str:
    """Return name or folder of the checkpoint promoted last; the shipped one where none was."""
    with open_database(database).session(write=False) as session:
        current = training.current_checkpoint(session)
    return CampaignConfig.model_fields["checkpoint"].default if current is None else current.name


def card_of(checkpoint: Made) -> Card:
    """Return the card of a stored checkpoint.

    Raises:
        SymmBFNError: Its folder is gone.
        ConfigError: Another checkpoint is there now.
    """
    from flows.errors import ConfigError
    from symmbfn.checkpoint import load_card

    card = load_card(checkpoint.name)
    if card.sha256 != checkpoint.sha256:
        raise ConfigError(
            f"checkpoint {checkpoint.id}: {checkpoint.name} holds other weights than it did; "
            "restore the folder, or promote another checkpoint"
        )
    return card
