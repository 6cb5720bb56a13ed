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

    A campaign whose key has begun keeps the checkpoint that it began with, whatever was promoted
    since.

    Raises:
        SymmBFNError, ConfigError: As `card_of`, of the one promoted last.
    """
    if config.checkpoint != PROMOTED:
        return config
    begun = None
    if config.key is not None:
        with open_database(config.database).session(write=False) as session:
            begun = training.campaign_of_key(session, config.key)
    checkpoint = begun.config["checkpoint"] if begun else promoted(config.database)
    return config.model_copy(update={"checkpoint": checkpoint})


def promoted(database: str | None) -> str:
    """Return name or absolute folder of the checkpoint promoted last; by default the shipped one.

    Raises:
        SymmBFNError, ConfigError: As `card_of`.
    """
    from symmbfn.checkpoint import SHIPPED

    with open_database(database).session(write=False) as session:
        current = training.current_checkpoint(session)
    if current is None:
        return str(CampaignConfig.model_fields["checkpoint"].default)
    card = card_of(current)
    return card.name if card.path.parent == SHIPPED else str(card.path.absolute())


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
