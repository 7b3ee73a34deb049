"""Reading cards: from a TOML file to a checked recipe, or to one line that names key and line.

A card is checked in full before anything runs. Keys it does not know are refused, and every message
names the key and its line.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ptmech._text import shortened
from ptmech.errors import CardError
from ptmech.manifest import Schema
from ptmech.model_sources import FolderModel, ModelSource
from ptmech_builder.cards import analyses, schema, training
from ptmech_builder.cards.references import BUILTIN
from ptmech_builder.cards.schema import Card, DatasetCard, StageCard
from ptmech_builder.cards.training import DATA, TRAINED, TRAINING_FILE, Pair, Training

CARDS = Path("cards")
MAX_CARD_BYTES = 2**20
"""No card of ours has a hundredth of it."""
Content = TypeVar("Content", bound=Schema)


class CardFile:
    """A card together with where it stands, so that its relative paths can be followed.

    Attributes
    ----------
    card : Card
    sha256 : str
        Digest of the card's own bytes.
    data_dir : Path or None
        Folder with copies of the public files it names.
    """

    def __init__(
        self, card: Card, folder: Path, sha256: str, *, data_dir: Path | None = None
    ) -> None:
        self.card = card
        self.sha256 = sha256
        self.data_dir = data_dir
        self._folder = folder

    def with_datasets(self, added: Sequence[DatasetCard]) -> CardFile:
        """Return the card with more datasets.

        Raises
        ------
        CardError
            If two datasets then have one name.
        """
        datasets = (*self.card.datasets, *added)
        names = [dataset.name for dataset in datasets]
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise CardError(f"card {self.card.name!r} would have two datasets {doubled!r}")
        card = self.card.model_copy(update={"datasets": datasets})
        return CardFile(card, self._folder, self.sha256, data_dir=self.data_dir)

    def saying(self, card: Card) -> CardFile:
        """Return the same file with a card that spells more out."""
        return CardFile(card, self._folder, self.sha256, data_dir=self.data_dir)

    def path(self, file: str) -> Path:
        """Return the local path of a file that the card names.

        Raises
        ------
        CardError
            If there is no such file or folder.
        """
        if file.startswith(BUILTIN):
            path = DATA / file.removeprefix(BUILTIN)
        else:
            path = self._folder / file
        if not path.exists():
            raise CardError(f"card {self.card.name!r} names {file!r}, which does not exist")
        return path

    def model(self, stage: StageCard) -> ModelSource:
        """Return where a stage's weights come from; a folder is taken relative to the card."""
        if isinstance(stage.model, FolderModel):
            return FolderModel(path=self._folder / stage.model.path)
        return stage.model

    def adapter(self, stage: StageCard) -> Path | None:
        """Return the folder of a stage's adapter, if it has one.

        Raises
        ------
        CardError
            If there is no such folder; for an adapter that is trained here, not yet.
        """
        if stage.adapter is None or not stage.adapter.startswith(TRAINED):
            return None if stage.adapter is None else self.path(stage.adapter)
        pair = self.pair(stage.adapter.removeprefix(TRAINED))
        if not pair.trained_folder.is_dir():
            raise CardError(
                f"stage {stage.name!r} of card {self.card.name!r} is not trained on this machine "
                f"yet; run: make pair MODEL={pair.name}"
            )
        return pair.trained_folder

    def pair(self, name: str) -> Pair:
        """Return how the card's later stage is made, as ``NAME/training.toml`` beside it says.

        Raises
        ------
        CardError
            If there is no such file, or it breaks the schema.
        """
        file = self._folder / name / TRAINING_FILE
        if not file.is_file():
            raise CardError(f"card {self.card.name!r} has no training file {name}/{TRAINING_FILE}")
        how = _checked(Training, file, file.read_bytes())
        earlier = next((s for s in self.card.stages if s.name == how.earlier), None)
        if earlier is None:
            raise CardError(
                f"{file}: earlier: card {self.card.name!r} has no stage {how.earlier!r}"
            )
        return Pair(name=name, title=earlier.title, earlier=self.model(earlier), training=how)


def find_card(reference: str | Path) -> Path:
    """Find a card by its path, or by its name in ``cards/``.

    Parameters
    ----------
    reference
        Path of a TOML file, or the name of a card in ``cards/``.

    Returns
    -------
    pathlib.Path
        Of the card.

    Raises
    ------
    CardError
        If there is none; the message lists the cards there are.
    """
    path = Path(reference)
    named = CARDS / f"{reference}.toml"
    for candidate in (path, named):
        if candidate.is_file():
            return candidate
    there = sorted(card.stem for card in CARDS.glob("*.toml"))
    if not there:
        raise CardError(
            f"no card {str(reference)!r}, and no others in {CARDS}/ here: give the path of its "
            "TOML file"
        )
    close = get_close_matches(path.stem, there, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise CardError(f"no card {str(reference)!r}{hint} Cards here: {', '.join(there)}")


def read_card(reference: str | Path, *, data_dir: Path | None = None) -> CardFile:
    """Read and check a card.

    Parameters
    ----------
    reference
        Path of a TOML file, or the name of a card in ``cards/``.
    data_dir
        Folder with copies of public files, which are then not downloaded.

    Returns
    -------
    CardFile
        The card, and where it stands.

    Raises
    ------
    CardError
        If the file is missing, not TOML, or breaks the schema; the message names key and line.
        If there is no folder `data_dir`.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise CardError(f"there is no folder {str(data_dir)!r} to take data files from")
    path = find_card(reference)
    raw = path.read_bytes()
    card = _checked(Card, path, raw)
    return CardFile(card, path.parent, hashlib.sha256(raw).hexdigest(), data_dir=data_dir)


def read_pair(reference: str | Path) -> Pair:
    """Read how the later stage of a card is made.

    Parameters
    ----------
    reference
        Path of a card, or the name of a card in ``cards/``; the training file stands in the folder
        of the same name beside it.

    Returns
    -------
    Pair
        The earlier stage, and how the later one is made.

    Raises
    ------
    CardError
        If the card or its training file is missing or breaks its schema.
    """
    return read_card(reference).pair(find_card(reference).stem)


def _checked(content: type[Content], path: Path, raw: bytes) -> Content:
    """Read TOML by a schema; whatever is wrong with it becomes one line."""
    if len(raw) > MAX_CARD_BYTES:
        raise CardError(f"{path} has {len(raw)} bytes, more than a card's {MAX_CARD_BYTES}")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise CardError(f"{path}: not UTF-8 text ({error.reason})") from error
    if _DEEP_KEY.search(text):
        raise CardError(f"{path}: not TOML of a card: a key is nested too deeply")
    try:
        return content.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise CardError(f"{path}: not TOML: {error}") from error
    except RecursionError as error:
        raise CardError(f"{path}: not TOML of a card: its values are nested too deeply") from error
    except ValidationError as error:
        raise CardError(f"{path}{_explain(error, text, content)}") from error


def _explain(error: ValidationError, text: str, content: type[Schema]) -> str:
    """Turn the first thing wrong with a card into one line that names key and line."""
    # A key that is not known explains more than one that is missing: often it is the same slip.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    # After "model" stands the kind of source, which is not a key of the card.
    steps = [
        step
        for index, step in enumerate(first["loc"])
        if index == 0 or first["loc"][index - 1] != "model" or len(first["loc"]) == index + 1
    ]
    line = line_of(steps, text)
    key = shortened(".".join(str(step) for step in steps))
    where = f" line {line}" if line else ""
    if first["type"] == "extra_forbidden":
        close = get_close_matches(str(steps[-1]), _known_keys(content), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{where}: unknown key {key!r}{hint}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {key}: {message}" if key else f"{where}: {message}"


def _known_keys(content: type[Schema]) -> list[str]:
    modules = (schema, analyses) if content is Card else (training,)
    return sorted(
        {
            name
            for module in modules
            for section in vars(module).values()
            if isinstance(section, type) and issubclass(section, Schema)
            for name in section.model_fields
        }
    )


_HEADER = re.compile(r"^\s*(\[\[?)\s*([\w.-]+)\s*\]\]?")
_KEY = re.compile(r"^\s*([\w.-]+)\s*=")
_DEEP_KEY = re.compile(r"(?<![\w-])(?:[\w-]+\.){32}")
_QUOTES = re.compile(r'"""|\'\'\'')


def line_of(steps: Sequence[Any], text: str) -> int | None:
    """Return the line of a key, counted from one; of the nearest table around an absent key.

    The standard TOML reader keeps no positions, so headers and keys are looked for again here.
    """
    table: list[Any] = []
    counts: dict[str, int] = {}
    best, best_depth = None, 0
    quoted = False
    for number, line in enumerate(text.split("\n"), start=1):
        inside, quoted = quoted, quoted != (len(_QUOTES.findall(line)) % 2 == 1)
        if inside:
            continue
        if header := _HEADER.match(line):
            brackets, name = header.groups()
            if brackets == "[[":
                counts[name] = counts.get(name, -1) + 1
            table = []
            for part in name.split("."):
                table.append(part)
                if part in counts:
                    table.append(counts[part])
            place = table
        elif key := _KEY.match(line):
            place = [*table, *key.group(1).split(".")]
        else:
            continue
        if len(place) > best_depth and list(steps[: len(place)]) == place:
            best, best_depth = number, len(place)
    return best
