"""Where data comes from: a file, a data set on the hub, or a name that a data card stands for.

A data card is `data_cards/<name>.md`: YAML front matter that this module reads (`Card`), and prose for people. Its
local copies lie under the folder `LLAMAX_DATA`; while that is set, the hub is not asked for what has one.
"""

import difflib
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import Field

from llamax.config import Config
from llamax.data.conversation import Conversation, Preference
from llamax.data.readers import check_limit, clear_read_errors, convert, convert_preferences, file_rows
from llamax.errors import DataError, ParameterError
from llamax.files import locate, repository, sha256_file, sha256_json
from llamax.hub import asked

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_REMEDY = (
    "Connect to the network, or set LLAMAX_DATA to a folder of local copies (data_cards/ says which files); "
    "HF_HUB_OFFLINE=1 uses what was fetched before"
)


class Split(Config):
    """One split of a data set: its local copy, the number of its items, and the hash of its content."""

    local: str = ""  # path under LLAMAX_DATA, of a file or a folder
    items: int = Field(gt=0)
    hub_items: int | None = Field(default=None, gt=0)  # where the local copy is not the hub's whole split
    repeats: int | None = Field(default=0, ge=0)  # rows that the original has twice, null: nobody counted
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")  # of the file, or `content_hash` of the folder


class Card(Config):
    """The front matter of a data card."""

    name: str
    title: str
    licence: str
    hub: str = ""
    hub_config: str = ""
    format: str  # as in `llamax.data.formats`; "benchmark": read by the evaluation, not as conversations; "world"
    columns: dict[str, Literal["text", "texts", "number", "any"]] = Field(
        {}, description="of a benchmark's rows, in order"
    )
    header: bool = True  # whether CSV files begin with the names of their columns
    id: str = ""  # the column that names an item, each once
    splits: dict[str, Split]


class Origin(NamedTuple):
    """Where a source is: exactly one of `file`, `hub` and `world`."""

    file: Path | None = None
    hub: tuple[str, str] | None = None  # (id, configuration)
    world: bool = False
    format: str = "auto"
    sha256: str = ""  # what the content must hash to, if known


def read(source: str, *, format: str = "auto", split: str = "train", limit: int | None = None) -> list[Conversation]:
    """Conversations of `source`, in the order they are stored; only the first `limit` if given.

    source: a data card's name, a file, or a hub id ("owner/name"). A file has no splits: `split` is not looked at.
    Raises: DataError: no such source, or malformed rows (all counted, the first few named).
    """
    origin = find(source, split)
    if origin.world:
        if format != "auto":
            raise DataError(f"{source}: takes no format ({format!r} given): its conversations are made, not read")
        check_limit(limit, source)
        from llamax.data.world import instructions

        return instructions(limit=limit)
    format = origin.format if format == "auto" else format
    if format == "benchmark":
        raise DataError(f"{source} is a benchmark, not conversations; llamax.evaluation reads it")
    return convert(_rows(origin, split), str(origin.file or source), format=format, limit=limit)


def read_preferences(source: str, *, split: str = "train", limit: int | None = None) -> list[Preference]:
    """Preference pairs of `source`, as `read` reads conversations."""
    origin = find(source, split)
    if origin.world:
        raise DataError(f"{source}: has no preference pairs")
    return convert_preferences(_rows(origin, split), str(origin.file or source), limit=limit)


def rows(source: str, split: str = "train") -> Iterator[tuple[str, Any]]:
    """(place, row) pairs of `source`, as they are stored: "row 7" or "line 7", from 1; a broken line is a `RowError`.

    Raises: DataError: no such source, or one that has no rows.
    """
    origin = find(source, split)
    if origin.world:
        raise DataError(f"{source}: has no rows: its conversations are made, not read")
    return _rows(origin, split)


def fingerprint(source: str, split: str | None = None, *, ask: bool = True) -> str:
    """Hex hash of a source's content, of all its splits if none is named.

    Without a local copy: what the data card says the content hashes to, so that a result does not look stale where the
    data are absent; for a hub data set without a card, its id and the commit that the hub cache holds. ask: where the
    hub's rows are more than the local copy's, it is the hub's that would be read.
    Raises: DataError: no such source; with ask=False, one of the latter.
    """
    if split is None and source in cards():
        return sha256_json({name: fingerprint(source, name, ask=ask) for name in cards()[source].splits})
    origin = find(source, split or "train")
    if origin.world:
        from llamax.data import world

        return world.fingerprint()
    if origin.file:
        return content_hash(origin.file)
    described = cards()[source].splits[split or "train"] if source in cards() else None
    if described and described.hub_items and not ask:
        raise DataError(f"{source}: the hub's rows are others than the local copy's, which is not here")
    if described and described.sha256 and not described.hub_items:
        return described.sha256
    return sha256_json({"hub": origin.hub, "split": split, "commit": _cached_commit(origin.hub[0])})


def find(source: str, split: str = "train") -> Origin:
    """Where `source` is to be read from. Raises: DataError: nowhere."""
    known = cards()
    if source in known:
        return _card_origin(known[source], split)
    path = locate(source)
    if os.path.exists(path):
        return Origin(file=path)
    if HUB_ID.fullmatch(source) and not path.suffix:
        return Origin(hub=(source, ""))
    near = difflib.get_close_matches(source, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise DataError(f"no data source {source!r}: {hint}it is no file here; named sources: {', '.join(sorted(known))}")


def _card_origin(card: Card, split: str) -> Origin:
    """Origin of a card's split: the local copy where `LLAMAX_DATA` is set, else the hub."""
    if split not in card.splits:
        raise DataError(f"{card.name}: no split {split!r}; it has: {', '.join(card.splits)}")
    if card.format == "world":
        return Origin(world=True)
    wanted, folder = card.splits[split], data_folder()
    if folder is None or not wanted.local:
        return Origin(hub=(card.hub, card.hub_config), format=card.format)
    path = folder / wanted.local
    if not path.exists():
        raise DataError(
            f"{card.name}: LLAMAX_DATA has no {wanted.local} ({path}); put a copy there, or unset LLAMAX_DATA to "
            f"fetch {card.hub} from the hub"
        )
    return Origin(file=path, format=card.format, sha256=wanted.sha256)


def data_folder() -> Path | None:
    """The folder that `LLAMAX_DATA` names, or None. Raises: DataError: it is not a folder."""
    value = os.environ.get("LLAMAX_DATA")
    if not value:
        return None
    folder = locate(value)
    if not folder.is_dir():
        raise DataError(f"LLAMAX_DATA={value}: no such folder; point it to local copies of the data, or unset it")
    return folder


def content_hash(path: Path) -> str:
    """Hex sha256 of a file's bytes, or of a folder's file names and their hashes."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256_json({file.relative_to(path).as_posix(): sha256_file(file) for file in files})


def check_copy(path: Path, sha256: str) -> None:
    """Raise `DataError` unless the file or folder hashes to what its data card says, where it says anything."""
    if sha256 and content_hash(path) != sha256:
        raise DataError(
            f"{path} is not the {'file' if path.is_file() else 'folder'} that its data card describes (sha256 "
            f"{sha256[:12]}...); restore it"
        )


def _rows(origin: Origin, split: str) -> Iterator[tuple[str, Any]]:
    """(place, row) pairs of an origin; a card's file must be the one that the card describes."""
    if origin.hub and not origin.hub[0]:
        raise DataError("is on no hub: set LLAMAX_DATA to a folder with its files, which data_cards/ names")
    if origin.hub:
        return _hub_rows(*origin.hub, split)
    try:
        check_copy(origin.file, origin.sha256)
    except DataError as error:
        raise DataError(f"{error}, or give its path as the source to use it as it is") from None
    return file_rows(origin.file)


def _hub_rows(hub: str, configuration: str, split: str) -> Iterator[tuple[str, Any]]:
    """(place, row) pairs of a hub data set; without a network, an error within seconds rather than minutes."""
    with asked(hub, "dataset", DataError, HUB_REMEDY):
        from datasets import load_dataset

        rows = load_dataset(hub, configuration or None, split=split)
    return ((f"row {n}", row) for n, row in enumerate(rows, 1))


def _cached_commit(hub: str) -> str:
    """Commit of the data set's `main` that the hub cache holds, or "main"."""
    from huggingface_hub import constants

    reference = Path(constants.HF_HUB_CACHE) / f"datasets--{hub.replace('/', '--')}" / "refs" / "main"
    return reference.read_text().strip() if reference.is_file() else "main"


def cards() -> dict[str, Card]:
    """All data cards of the repository, by name."""
    return _cards_in(repository() / "data_cards")


@cache
def _cards_in(folder: Path) -> dict[str, Card]:
    found: dict[str, Card] = {}
    for path in sorted(folder.glob("*.md")):
        card = read_card(path)
        if card.name in found:
            raise DataError(f"{path}: another card of {folder.name}/ is named {card.name!r} too; rename one")
        found[card.name] = card
    return found


def read_card(path: Path) -> Card:
    """The front matter of a data card. Raises: DataError: there is none, or it does not fit the schema."""
    with clear_read_errors(path):
        match = re.match(r"---\n(.*?)\n---\n", path.read_text(encoding="utf-8"), re.DOTALL)
    if match is None:
        raise DataError(f"{path}: wants YAML front matter between two lines of ---")
    try:
        return Card.parse(yaml.safe_load(match[1]), str(path))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: front matter is not YAML: {' '.join(str(error).split())}") from None
    except ParameterError as error:
        raise DataError(str(error)) from None
