"""The files of a paper (paper.md, lock.json, quoted.yaml, claims.yaml, refs.bib), and where in them things stand."""

import datetime
import json
import re
from typing import Any, Literal

import yaml
from pydantic import AwareDatetime

from llamax import files
from llamax.config import Config
from llamax.errors import PaperError, ParameterError


class Lock(Config):
    """What a paper's version stands on: its date, and under each alias the runs that it pins."""

    version: str
    timestamp: AwareDatetime
    runs: dict[str, list[str]]


class Quoted(Config):
    """A number from elsewhere: `what` it is, as written in `source`, a key of refs.bib."""

    value: float | str
    source: str
    what: str


class Claim(Config):
    """A sentence and the predicate that it stands for.

    The mean outcome of `of` (`test: mean`), or its paired difference from `minus` (`test: paired_difference`), has at
    `level` an interval that lies above (`>`) or below (`<`) `threshold`, or between -threshold and +threshold
    (`within`). `holds` is what the paper says; the build fails when the results say otherwise.
    """

    id: str
    sentence: str
    runs: str
    test: Literal["mean", "paired_difference"]
    of: str
    minus: str | None = None
    op: Literal[">", "<", "within"]
    threshold: float
    level: float = 0.95
    holds: bool = True


class Source:
    """A paper as its author wrote it. `faults` collects one line per fault: file, line, what is wrong."""

    def __init__(self, version: str):
        self.folder = files.repository() / "papers" / version
        if not (self.folder / "paper.md").is_file():
            known = sorted(path.parent.name for path in self.folder.parent.glob("*/paper.md"))
            raise PaperError(f"no paper {version!r} in papers/: there are {', '.join(known) or 'none'}")
        self.version, self.faults = version, []
        self.text = self._read("paper.md")
        self.lock = self._parse(Lock, self._json("lock.json"), "lock.json")
        quoted = self._yaml("quoted.yaml") or {}
        self.quoted = {name: self._parse(Quoted, value, f"quoted.yaml: {name}") for name, value in quoted.items()}
        parsed = [
            self._parse(Claim, value, f"claims.yaml: claim {number}")
            for number, value in enumerate(self._yaml("claims.yaml") or [], 1)
        ]
        self.claims = {claim.id: claim for claim in parsed}
        self.citations = set(re.findall(r"^\s*@\w+\{\s*([^,\s]+)", self._read("refs.bib"), flags=re.MULTILINE))
        for name, quote in self.quoted.items():
            if quote.source not in self.citations:
                self.fault(self.line(name, "quoted.yaml"), f"source {quote.source!r} is not in refs.bib", "quoted.yaml")

    @property
    def timestamp(self) -> datetime.datetime:
        """The paper's date, in UTC: what the PDF says of its making."""
        return self.lock.timestamp.astimezone(datetime.UTC)

    def fault(self, line: int, text: str, file: str = "paper.md") -> None:
        """Note that `file` is wrong at `line`."""
        self.faults.append(f"papers/{self.version}/{file}:{line}: {text}")

    def raise_faults(self) -> None:
        """Raise PaperError with the first fault, and the number of the others."""
        if self.faults:
            unique = list(dict.fromkeys(self.faults))
            more = f" (and {len(unique) - 1} more faults)" if len(unique) > 1 else ""
            raise PaperError(unique[0] + more)

    def line(self, wanted: str, file: str = "paper.md") -> int:
        """The first line of `file` that holds `wanted`; 0 when none does."""
        lines = self._read(file).splitlines()
        return next((number for number, line in enumerate(lines, 1) if wanted in line), 0)

    def _read(self, name: str) -> str:
        path = self.folder / name
        if not path.is_file():
            raise PaperError(f"papers/{self.version}/{name} is missing")
        return path.read_text(encoding="utf-8")

    def _yaml(self, name: str) -> Any:
        try:
            return yaml.safe_load(self._read(name))
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            fault = getattr(error, "problem", None) or "not YAML"
            raise PaperError(f"papers/{self.version}/{name}:{mark.line + 1 if mark else 0}: {fault}") from None

    def _json(self, name: str) -> Any:
        try:
            return json.loads(self._read(name))
        except json.JSONDecodeError as error:
            raise PaperError(f"papers/{self.version}/{name}:{error.lineno}: {error.msg}") from None

    def _parse(self, model: type[Config], values: Any, where: str) -> Any:
        try:
            return model.parse(values, f"papers/{self.version}/{where}")
        except ParameterError as error:
            raise PaperError(str(error)) from None


class Lines:
    """Finds the line of each piece of a document that is walked in reading order.

    pandoc's tree has no positions, but its words come in the order of the source: a cursor runs along.
    """

    REACH = 3000  # characters that a word is looked for ahead; what smart typography changed is not found, and skipped

    def __init__(self, text: str):
        self.text, self.cursor = text, 0

    def at(self, word: str) -> int:
        """Line of the next `word`, the cursor's own line when it is not ahead."""
        plain = max(re.findall(r"[\w.:%@+-]+", word), key=len, default="")
        found = self.text.find(plain, self.cursor, self.cursor + self.REACH) if plain else -1
        if found >= 0:
            self.cursor = found
            line = self.here()
            self.cursor += len(plain)
            return line
        return self.here()

    def jump(self, passage: str) -> int:
        """Line of a passage that stands in the source as it is; the cursor moves to its start."""
        found = self.text.find(passage, self.cursor)
        self.cursor = found if found >= 0 else self.cursor
        return self.here()

    def here(self) -> int:
        """The line that the cursor is on."""
        return self.text.count("\n", 0, self.cursor) + 1
