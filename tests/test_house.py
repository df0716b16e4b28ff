"""The rules of the house: imports, the length of functions, the shape of notebooks, versions that agree."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import llamax
from llamax.runs.keys import imported_names

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(llamax.__file__).parent
GROUND = {"models", "data", "training", "generation", "statistics", "runs", "versions", "papers"}
GROUND |= {"sandbox", "config", "errors", "files", "hub", "progress"}
DIRECTIONS = {"instruction_tuning", "rlhf", "data_quality", "long_context", "multimodal", "multilingual"}
DIRECTIONS |= {"infrastructure", "evaluation", "interpretability", "actions"}
LIGHT = [
    "llamax",
    "llamax.config",
    "llamax.errors",
    "llamax.files",
    "llamax.cli",
    "llamax.runs",
    "llamax.runs.notebook",
    "llamax.runs.cluster",
    "llamax.runs.task",
]
MODULES = sorted(SOURCE.rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_FUNCTION = 60


def module_name(path: Path) -> str:
    return ".".join(["llamax", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")


def room(name: str) -> str:
    """The second part of a dotted name; empty for the package itself."""
    return [*name.split("."), ""][1]


def forbidden(name: str, imported: str) -> bool:
    """Whether the module `name` may not import `imported`."""
    here, there = room(name), room(imported)
    if here in ("", "cli") or imported.split(".")[0] != "llamax" or there not in DIRECTIONS | {"cli"}:
        return False
    return there != here and not (here in DIRECTIONS and there == "evaluation")


@pytest.mark.parametrize(
    ("name", "imported", "answer"),
    [
        ("llamax.training.loop", "llamax.evaluation.nano", True),
        ("llamax.training.loop", "llamax.cli", True),
        ("llamax.training.loop", "llamax.data.packing", False),
        ("llamax.rlhf.study", "llamax.instruction_tuning.study", True),
        ("llamax.rlhf.study", "llamax.evaluation.nano", False),
        ("llamax.evaluation.nano", "llamax.rlhf.study", True),
        ("llamax.rlhf.study", "llamax.rlhf.config", False),
        ("llamax.cli", "llamax.evaluation", False),
    ],
)
def test_the_rule_itself(name, imported, answer):
    assert forbidden(name, imported) is answer


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_the_ground_floor_imports_no_direction_and_directions_not_each_other(path):
    name = module_name(path)
    nodes = ast.walk(ast.parse(path.read_text()))
    assert [found for found in imported_names(nodes, name, path.name == "__init__.py") if forbidden(name, found)] == []


def test_every_room_is_on_a_floor():
    rooms = {room(module_name(path)) for path in MODULES} - {"", "cli"}
    assert rooms <= GROUND | DIRECTIONS


def test_what_must_answer_at_once_imports_no_torch():
    configs = [module_name(path) for path in MODULES if path.name == "config.py"]
    code = f"import importlib, sys\nfor name in {LIGHT + configs!r}: importlib.import_module(name)\n"
    code += "heavy = {'torch', 'transformers', 'datasets', 'deepspeed'} & sys.modules.keys()\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_functions_fit_on_a_screen(path):
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno >= LONGEST_FUNCTION}
    assert long == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_is_short_and_defines_nothing(self, path):
        sources = ["".join(cell["source"]) for cell in code_cells(path)]
        assert len(sources) <= 15
        assert sum(1 for source in sources for line in source.splitlines() if line.strip()) <= 60
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not [n for source in sources for n in ast.walk(ast.parse(source)) if isinstance(n, kinds)]

    def test_has_one_parameters_cell_with_the_three_parameters(self, path):
        tagged = [cell for cell in code_cells(path) if "parameters" in cell["metadata"].get("tags", [])]
        assert len(tagged) == 1
        assert code_cells(path)[0] == tagged[0]
        body = ast.parse("".join(tagged[0]["source"])).body
        found = {node.targets[0].id: ast.literal_eval(node.value) for node in body}
        assert found == {"profile": "nano", "seed": 0, "overrides": {}}

    def test_is_committed_without_outputs(self, path):
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells(path))

    def test_has_a_direction_a_config_and_a_place_in_the_profiles(self, path):
        direction = path.stem.split("_", 1)[1]
        assert direction in DIRECTIONS
        for profile in ("nano", "test"):
            assert direction in yaml.safe_load((path.parent / "profiles" / f"{profile}.yaml").read_text())


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def read_or_skip(name: str) -> str:
    if not (ROOT / name).exists():
        pytest.skip(f"{name} is not there yet")
    return (ROOT / name).read_text()


def constraints() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in read_or_skip("constraints.txt").splitlines()]
    pinned = {}
    for requirement in (Requirement(line) for line in lines if line):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{requirement} is not an exact version"
        pinned[canonicalize_name(requirement.name)] = specifier.version
    return pinned


def project_requirements() -> list[Requirement]:
    import tomllib

    project = tomllib.loads(read_or_skip("pyproject.toml"))["project"]
    return [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]


def test_every_requirement_of_the_project_is_locked_to_a_version_it_allows():
    pinned = constraints()
    for requirement in project_requirements():
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned[name]), f"{requirement} does not allow {pinned[name]}"


def test_the_conda_environment_has_the_same_packages_and_versions():
    pinned = constraints()
    document = yaml.safe_load(read_or_skip("environment.yml"))
    (pip,) = [entry["pip"] for entry in document["dependencies"] if isinstance(entry, dict)]
    listed = {canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, pip)}
    wanted = {canonicalize_name(r.name) for r in project_requirements()}
    assert listed == {name: f"=={pinned[name]}" for name in wanted}
    assert "python=3.11" in document["dependencies"]


def test_no_committed_text_names_a_place_on_somebodys_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    place = re.compile(r"(?<![\w.])/(root|home/\w+|Users/\w+|work|tmp/w)/")
    kinds = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".ipynb", ".json", ".csl", ".lua"}
    paths = [ROOT / line for line in listed.stdout.splitlines() if Path(line).suffix in kinds]
    found = [p.relative_to(ROOT) for p in paths if p.is_file() and p != Path(__file__) and place.search(p.read_text())]
    assert found == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_what_a_page_links_to_is_there(name):
    text = (ROOT / name).read_text()
    links = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert [target for target in links if target and not (ROOT / target).exists()] == []


def test_no_two_test_files_have_one_name():
    """pytest imports them by name alone, and reads only the first of two."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
