"""How a build is narrowed: to some stages, datasets and rows of its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ptmech.errors import DataError, unknown
from ptmech.manifest import StoredDtype
from ptmech_builder.cards import Card, DatasetCard, StageCard

if TYPE_CHECKING:
    from ptmech.live.models import Spread

Named = TypeVar("Named", StageCard, DatasetCard)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How a build is narrowed.

    Traces and scores compare every stage on every row; they are part of a build only where neither
    stages, nor their datasets, nor rows are narrowed.
    """

    stages: tuple[str, ...] | None = None
    datasets: tuple[str, ...] | None = None
    limit: int | None = None
    device: str = "auto"
    device_map: Spread | None = None
    dtype: StoredDtype | None = None

    def stage_cards(self, card: Card) -> list[StageCard]:
        """Return the stages of a card that are built.

        Raises
        ------
        UnknownNameError
            If the card has no such stage.
        DataError
            If none is named.
        """
        return _selected("stage", card.stages, self.stages)

    def dataset_cards(self, card: Card) -> list[DatasetCard]:
        """Return the datasets of a card that are built; raises as `stage_cards` does."""
        return _selected("dataset", card.datasets, self.datasets)

    def left_out(self, card: Card) -> str:
        """Say what of a card is left out, in words for the artifact's page; empty if nothing is."""
        said: list[str] = []
        for kind, cards, names in (
            ("stages", card.stages, self.stages),
            ("datasets", card.datasets, self.datasets),
        ):
            left_out = [each.name for each in cards if names is not None and each.name not in names]
            if left_out:
                said.append(f"without the {kind} {', '.join(left_out)}")
        if self.limit is not None:
            said.append(f"at most {self.limit} rows of each dataset")
        return "; ".join(said)


def _selected(kind: str, cards: Sequence[Named], names: Sequence[str] | None) -> list[Named]:
    there = {card.name: card for card in cards}
    if names is not None and not names:
        raise DataError(f"no {kind} is named; choose from: {', '.join(there)}")
    for name in names or ():
        if name not in there:
            raise unknown(kind, name, there)
    return [card for card in cards if names is None or card.name in names]
