"""A small paper over made-up results: the results once per session, the paper anew for each test."""

import pytest
from synthetic_results import make_paper, make_results


@pytest.fixture(scope="session")
def made_up(tmp_path_factory):
    """Folder with made-up results, and the runs by alias."""
    home = tmp_path_factory.mktemp("results")
    return home, make_results(home)


@pytest.fixture
def paper(made_up, tmp_path, monkeypatch):
    """Folder of a small paper that builds, in a repository of its own."""
    home, runs = made_up
    (tmp_path / "results").symlink_to(home / "results")
    monkeypatch.setenv("LLAMAX_HOME", str(tmp_path))
    return make_paper(tmp_path, runs)
