"""A repository with a toy direction whose runs evaluate models: the outcomes are made up, the records are real."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from made_up_outcomes import answers, measured, rows

import llamax
from llamax import files
from llamax.runs import begin, parse_parameters
from llamax.versions.measured import MODELS, NOTE, note

CONFIG = '''
"""A toy direction."""
from llamax.config import Config


class ToyConfig(Config):
    profile: str
    seed: int = 0
    rate: float = 1.0

    def datasets(self):
        return []

    def models(self):
        return []


CONFIG = ToyConfig
'''


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the toy's repository."""
    package = tmp_path / "src" / "llamax"
    (package / "toy").mkdir(parents=True)
    (package / "toy" / "__init__.py").write_text('"""A toy direction."""\n')
    (package / "toy" / "config.py").write_text(CONFIG)
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    for profile in ("nano", "test", "smol"):
        (tmp_path / "notebooks" / "profiles" / f"{profile}.yaml").write_text(f"description: {profile}\ntoy: {{}}\n")
    cell = {"cell_type": "code", "metadata": {}, "source": "import llamax.toy.config", "outputs": []}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}
    (tmp_path / "notebooks" / "01_toy.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    monkeypatch.setenv("LLAMAX_HOME", str(tmp_path))
    monkeypatch.setattr(llamax, "__path__", [*llamax.__path__, str(package)])
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[:2] == ["llamax", "toy"]]:
        del sys.modules[name]
    if hasattr(llamax, "toy"):
        del llamax.toy


Record = Callable[..., str]


@pytest.fixture
def record(home: Path) -> Record:
    """Publish a run of models: `record({"model": {benchmark: table}}, profile=..., leaked=..., **changes)` -> its name.

    `of`: benchmark -> changes of its `Measured` alone. `spoil`: what to do to the items last. `hashes`: of models;
    unless given, what a model is called, but for `-again`, is the same as its weights.
    """
    published = []

    def publish(models, *, profile="smol", leaked=0, subjects=0, of=None, spoil=None, hashes=None, **changes) -> str:
        frames = {m: [rows(m, b, t, leaked=leaked, subjects=subjects) for b, t in d.items()] for m, d in models.items()}
        said = {
            model: [measured(f, **changes | (of or {}).get(f["benchmark"].iloc[0], {})) for f in several]
            for model, several in frames.items()
        }
        items = pd.concat([frame for several in frames.values() for frame in several], ignore_index=True)
        run = begin("toy", parse_parameters("toy", profile, 0, {"rate": float(len(published) + 1)}))
        run.metric("accuracy", float(items["outcome"].mean()))
        run.items(items if spoil is None else spoil(items))
        run.note(NOTE, note(said))
        named = {model: files.sha256_json(model.removesuffix("-again")) for model in models}
        run.note(MODELS, named if hashes is None else hashes)
        done = run.complete()
        published.append(done.run)
        return f"toy/{done.run}"

    return publish


@pytest.fixture
def pair(record: Record) -> Callable[..., tuple[str, str]]:
    """Publish current and candidate with the `gains` [benchmark -> gain] on `n` items each -> their names."""

    def publish(gains, n=2000, *, churn=0.1, **options) -> tuple[str, str]:
        tables = {name: answers(n, gain, seed=i, churn=churn) for i, (name, gain) in enumerate(gains.items())}
        new = record({"new": {name: after for name, (after, _) in tables.items()}}, **options)
        old = record({"old": {name: before for name, (_, before) in tables.items()}}, **options)
        return new, old

    return publish
