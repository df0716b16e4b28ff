"""What the tests of this room share."""

import pytest
from little_benchmarks import write_all


@pytest.fixture
def local_data(tmp_path, monkeypatch):
    """A folder that is both `LLAMAX_HOME` (cards) and `LLAMAX_DATA`; MMLU has two subjects,
    together `mmlu_two`, and the first alone is `mmlu_anatomy`."""
    from llamax.evaluation import definitions

    write_all(tmp_path)
    monkeypatch.setenv("LLAMAX_HOME", str(tmp_path))
    monkeypatch.setenv("LLAMAX_DATA", str(tmp_path))
    extras = definitions.LM_EVAL["mmlu"].extras
    files = tuple(f"mmlu/default/mmlu_{subject}.yaml" for subject in ("anatomy", "virology"))
    monkeypatch.setitem(definitions.LM_EVAL, "mmlu_anatomy", definitions.Source(files[:1], extras))
    both = definitions.Source(files, extras.model_copy(update={"items": 10}))
    monkeypatch.setitem(definitions.LM_EVAL, "mmlu_two", both)
    return tmp_path
