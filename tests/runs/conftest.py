"""A toy direction in a repository of its own, whose notebook can be told to go wrong in every way there is."""

import json
import sys
from pathlib import Path

import pytest

import llamax

CONFIG = """
from llamax.config import Config


class Data(Config):
    size: int = 3
    limits: dict[str, int] = {}


class Adapter(Config):
    rank: int = 4


class Train(Config):
    learning_rate: float = 1e-3
    rank: int = 1
    adapter: Adapter | None = None


class ToyConfig(Config):
    profile: str
    seed: int = 0
    mode: str = "ok"
    data: Data = Data(size=5)
    train: Train = Train()
    sources: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()

    def datasets(self):
        return list(self.sources)

    def models(self):
        return list(self.bases)


CONFIG = ToyConfig
"""

STUDY = '''
"""The toy's work."""
import os
import time

import pandas as pd

from llamax.toy import helper


def work(config, run):
    if run.reused:
        return
    print("at work", flush=True)
    (run.scratch / "at_work").touch()
    if config.mode == "error":
        raise ValueError("boom\\nat step 3")
    if config.mode == "kill":
        os.kill(os.getpid(), 9)
    if config.mode == "sleep":
        time.sleep(250)
    run.metric("accuracy", helper.accuracy(config), n=4, standard_error=0.1, low=0.3, high=0.7, unit="fraction")
    run.items(pd.DataFrame({"item": ["a", "b"], "metric": "accuracy", "outcome": [0.0, 1.0]}))
    run.series("curve", pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]}))
    run.cost(tokens=10, flops=60.0)
'''

HELPER = """
def accuracy(config):
    from llamax.toy.deep import half

    return half(1.0)
"""

SOURCES = {
    "__init__.py": '"""A toy direction."""\n',
    "config.py": CONFIG,
    "study.py": STUDY,
    "helper.py": HELPER,
    "deep.py": "def half(x):\n    return x / 2\n",
    "unused.py": "WORD = 1\n",
}
PROFILES = {
    "nano": "description: the default\ntoy: {train: {learning_rate: 1e-2}}\n",
    "test": "description: seconds\nextends: nano\ntoy: {data: {size: 1}}\n",
    "other": "description: another direction's\nelse: {}\n",
}
CELLS = [
    "from llamax import runs\nfrom llamax.toy.study import work\n\n"
    'config = runs.parse_parameters("toy", profile, seed, overrides)\nrun = runs.begin("toy", config)\nrun',
    "work(config, run)",
    "run.complete()",
]


def notebook(cells: list[str]) -> dict:
    """A notebook with the parameters cell, a line of prose, and `cells`."""
    parameters = 'profile = "nano"\nseed = 0\noverrides = {}'
    code = [
        {"metadata": {"tags": ["parameters"]}, "source": parameters},
        *({"metadata": {}, "source": c} for c in cells),
    ]
    blank = {"cell_type": "code", "execution_count": None, "outputs": []}
    prose = {"cell_type": "markdown", "metadata": {}, "source": "# Question"}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [prose, *({**blank, **cell} for cell in code)]
    for number, cell in enumerate(cells):
        cell["id"] = f"c{number}"
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": cells}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The root of a repository with the direction `toy` and, of the house, only what a run itself needs.

    `llamax` finds it here and in the processes that are started.
    """
    package = tmp_path / "src" / "llamax"
    (package / "toy").mkdir(parents=True)
    for name in ("__init__.py", "config.py", "errors.py", "files.py", "cli.py", "runs", "training"):
        (package / name).symlink_to(Path(llamax.__file__).parent / name)
    for name, text in SOURCES.items():
        (package / "toy" / name).write_text(text)
    profiles = tmp_path / "notebooks" / "profiles"
    profiles.mkdir(parents=True)
    for name, text in PROFILES.items():
        (profiles / f"{name}.yaml").write_text(text)
    (tmp_path / "notebooks" / "01_toy.ipynb").write_text(json.dumps(notebook(CELLS)))
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    monkeypatch.setenv("LLAMAX_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))
    monkeypatch.setattr(llamax, "__path__", [str(package)])
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[:2] == ["llamax", "toy"]]:
        del sys.modules[name]
    if hasattr(llamax, "toy"):
        del llamax.toy
