"""Where task files of our own lie, and what a config has to know of them; without lm-eval, which takes seconds."""

from collections.abc import Iterable
from pathlib import Path

import yaml

from llamax.data.sources import cards

OURS = Path(__file__).parent / "tasks"


def own_files() -> list[Path]:
    """Our task files; those whose names begin with _ are there to be included."""
    return sorted(file for file in OURS.glob("*.yaml") if not file.name.startswith("_"))


def deciding_files(benchmarks: Iterable[str]) -> list[Path]:
    """Files that decide what our own ones among the benchmarks ask: theirs, and all that these may include or call."""
    own = [OURS / f"{name}.yaml" for name in benchmarks if (OURS / f"{name}.yaml").is_file()]
    return [*own, *sorted([*OURS.glob("_*.yaml"), *OURS.glob("*.py")])] if own else []


def own_card(benchmark: str) -> str | None:
    """Name of the data card that the `dataset_path` of our task file means; None where there is none."""
    try:
        node = yaml.compose((OURS / f"{benchmark}.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None  # `definitions` says what is wrong with it
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    path = next((value.value for key, value in pairs if key.value == "dataset_path"), None)
    return next((name for name, card in cards().items() if path and path in (name, card.hub)), None)
