"""The files of a paper (paper.md, lock.json, quoted.yaml, claims.yaml, refs.bib), and where in them things stand."""

import datetime
import json
import re
from collections.abc import Iterable
from typing import Any, Literal

import yaml
from pydantic import AwareDatetime, Field, FiniteFloat

from llamax import files
from llamax.config import Config
from llamax.errors import PaperError, ParameterError
from llamax.runs.parameters import YamlLoader

FIRST, LAST = (datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (1980, 2100))


class Lock(Config):
    """What a paper's version stands on: its date, and under each alias the runs that it pins."""

    version: str
    timestamp: AwareDatetime = Field(ge=FIRST, lt=LAST)
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
    threshold: FiniteFloat
    level: float = Field(0.95, gt=0, lt=1)
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
        self.quoted: dict[str, Quoted] = {}
        for line, name, value in self._entries("quoted.yaml", dict):
            self.quoted[name] = self._parse(Quoted, value, f"quoted.yaml:{line}: {name}")
        self.claims: dict[str, Claim] = {}
        for number, (line, _, value) in enumerate(self._entries("claims.yaml", list), 1):
            claim = self._parse(Claim, value, f"claims.yaml:{line}: claim {number}")
            if claim.id in self.claims:
                self.fault(line, f"claim {claim.id!r} is given twice", "claims.yaml")
            self.claims[claim.id] = claim
        self.citations = set(re.findall(r"^\s*@\w+\{\s*([^,\s]+)", self._read("refs.bib"), flags=re.MULTILINE))
        self._check()

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

    def _check(self) -> None:
        """Note what is wrong between the files: version, runs pinned twice, sources that are not in refs.bib."""
        if self.lock.version != self.version:
            line = self.line('"version"', "lock.json")
            self.fault(line, f"version {self.lock.version!r} is not that of its folder", "lock.json")
        for alias, runs in self.lock.runs.items():
            if run := repeated(runs):
                self.fault(self.line(f'"{run}"', "lock.json"), f"{alias!r} pins run {run} twice", "lock.json")
        for name, quote in self.quoted.items():
            if quote.source not in self.citations:
                self.fault(self.line(name, "quoted.yaml"), f"source {quote.source!r} is not in refs.bib", "quoted.yaml")

    def _read(self, name: str) -> str:
        path = self.folder / name
        if not path.is_file():
            raise PaperError(f"papers/{self.version}/{name} is missing")
        data = path.read_bytes()
        try:
            return data.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise PaperError(f"papers/{self.version}/{name}:{line}: not UTF-8: byte {data[error.start]:#x}") from None

    def _entries(self, name: str, kind: type) -> list[tuple[int, Any, Any]]:
        """Line, name (None in a list) and value of each entry of a YAML file that holds a list or a mapping."""
        text, where = self._read(name), f"papers/{self.version}/{name}"
        try:
            values, tree = read_yaml(text), yaml.compose(text, YamlLoader)
        except YamlFault as fault:
            raise PaperError(f"{where}:{fault.line}: {fault}") from None
        if values is None:
            return []
        if not isinstance(values, kind):
            what = "a list of claims" if kind is list else "a mapping of names to numbers"
            raise PaperError(f"{where}:{tree.start_mark.line + 1}: not {what}")
        if kind is list:
            return [(node.start_mark.line + 1, None, value) for node, value in zip(tree.value, values, strict=True)]
        lines = [key.start_mark.line + 1 for key, _ in tree.value]
        for line, name in zip(lines, values, strict=True):
            if not isinstance(name, str):
                raise PaperError(f"{where}:{line}: {name!r} is not a name: give it in quotes")
        return list(zip(lines, values.keys(), values.values(), strict=True))

    def _json(self, name: str) -> Any:
        where = f"papers/{self.version}/{name}"

        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            if key := repeated(key for key, _ in pairs):
                line = self.line(json.dumps(key), name)
                raise PaperError(f"{where}:{line}: {key!r} is given twice")
            return dict(pairs)

        try:
            return json.loads(self._read(name), object_pairs_hook=unique)
        except json.JSONDecodeError as error:
            raise PaperError(f"{where}:{error.lineno}: {error.msg}") from None
        except RecursionError:
            raise PaperError(f"{where}:1: nested too deeply") from None

    def _parse(self, model: type[Config], values: Any, where: str) -> Any:
        try:
            return model.parse(values, f"papers/{self.version}/{where}")
        except ParameterError as error:
            raise PaperError(str(error)) from None


class YamlFault(ValueError):
    """What is wrong with a YAML text, and at which of its lines."""

    def __init__(self, line: int, problem: str):
        super().__init__(problem)
        self.line = line


def read_yaml(text: str) -> Any:
    """YAML 1.2, a key given twice refused. Raises: YamlFault."""
    try:
        return yaml.load(text, YamlLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise YamlFault(mark.line + 1 if mark else 1, getattr(error, "problem", None) or "not YAML") from None
    except RecursionError:
        raise YamlFault(1, "nested too deeply") from None
    except (TypeError, ValueError) as error:  # a list as a key, a tag that its value does not fit
        raise YamlFault(1, " ".join(str(error).split())) from None


def repeated(names: Iterable[str]) -> str | None:
    """The first of `names` that was there before."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


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
