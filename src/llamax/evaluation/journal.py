"""Answers on disk as soon as they are there, so that a killed evaluation loses at most the batch it was computing.

A journal is a folder of files, one per writer, a line of JSON per answer. An answer is found by a hash of what was
asked, so it does not matter how many ranks wrote, in which order, or how many will go on.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from llamax.evaluation.engines import Ask, Engine, How, OnSaid, OnScored, Said
from llamax.files import clear_disk_errors
from llamax.generation.score import Pair, Scored


class Journal:
    """Answers in `folder`; new ones are appended to the file of this `writer`.

    identity: of model and precision; answers of another one are not found.
    """

    def __init__(self, folder: Path, identity: str, writer: str = "main") -> None:
        self.folder, self.identity, self.file = folder, identity, folder / f"answers-{writer}.jsonl"
        self.known: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.load()

    def load(self) -> None:
        """Read what all writers have written; a line that its writer did not finish is no answer."""
        for file in sorted(self.folder.glob("answers-*.jsonl")):
            for line in file.read_bytes().split(b"\n"):
                try:
                    key, answer = json.loads(line)
                except (ValueError, TypeError, RecursionError):
                    continue
                if isinstance(key, str):
                    self.known[key] = answer

    def write(self, key: str, answer: Any) -> None:
        """Append an answer that is new; it is the system's once this returns, so a killed process does not lose it."""
        if key in self.known:
            return
        with clear_disk_errors(self.file):
            if not hasattr(self, "stream"):
                torn = self.file.exists() and not self.file.read_bytes().endswith(b"\n")
                self.stream = open(self.file, "ab", buffering=0)  # noqa: SIM115 - open as long as this object
                self.stream.write(b"\n" if torn else b"")
            line = json.dumps([key, answer]).encode() + b"\n"
            try:
                while line:  # a disk that fills up takes a part of it, without an error
                    line = line[self.stream.write(line) :]
            except OSError:
                self.stream.close()
                del self.stream  # the next answer, if there is one, begins a line of its own
                raise
        self.known[key] = answer

    def key_of_pair(self, pair: Pair) -> str:
        context, choices = pair
        return self._key("score", [context, *choices])

    def key_of_ask(self, ask: Ask, how: How) -> str:
        sampled = [ask.place] if how.temperature else []
        return self._key(json.dumps(_plain(how)), [ask.ids, sampled])

    def _key(self, kind: str, lists: Iterable[list[int]]) -> str:
        found = hashlib.sha256(f"{self.identity}\n{kind}\n".encode())
        for ids in lists:
            found.update(len(ids).to_bytes(8, "little") + np.asarray(ids, dtype=np.int64).tobytes())
        return found.hexdigest()[:32]


def _plain(how: How) -> How:
    """The same settings, written the same way: 1 and 1.0 are one temperature."""
    return How(
        int(how.max_new_tokens), tuple(how.stop_strings), float(how.temperature), float(how.top_p), int(how.seed)
    )


class Journaled:
    """An engine that never computes an answer twice: what the journal has is read, what is new is written to it."""

    def __init__(self, engine: Engine, journal: Journal) -> None:
        self.engine, self.journal = engine, journal
        self.tokenizer, self.window = engine.tokenizer, engine.window

    def score(self, pairs: list[Pair], done: OnScored) -> None:
        keys = [self.journal.key_of_pair(pair) for pair in pairs]
        todo = self._tell(keys, lambda number, answer: done(number, [Scored(*scored) for scored in answer]))

        def keep(place: int, scored: list[Scored]) -> None:
            self.journal.write(keys[todo[place]], scored)
            done(todo[place], scored)

        if todo:
            self.engine.score([pairs[number] for number in todo], keep)

    def say(self, asks: list[Ask], how: How, done: OnSaid) -> None:
        keys = [self.journal.key_of_ask(ask, how) for ask in asks]
        todo = self._tell(keys, lambda number, answer: done(number, Said(*answer)))

        def keep(place: int, said: Said) -> None:
            self.journal.write(keys[todo[place]], said)
            done(todo[place], said)

        if todo:
            self.engine.say([asks[number] for number in todo], how, keep)

    def _tell(self, keys: list[str], done: OnSaid | OnScored) -> list[int]:
        """Tell of every request whose answer is known; the numbers of the others."""
        for number, key in enumerate(keys):
            if key in self.journal.known:
                done(number, self.journal.known[key])
        return [number for number, key in enumerate(keys) if key not in self.journal.known]
