"""The record of measured peak memory: it stands behind today's formulas, and its errors are within a tenth."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "results" / "infrastructure" / "memory.json"
TOLERANCE = 0.10


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("memory_benchmark", ROOT / "benchmarks" / "memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_record_is_of_todays_formulas_and_within_a_tenth(benchmark):
    cases = {case["name"]: case for case in benchmark.CASES}
    rows = json.loads(RECORD.read_text())["rows"]
    assert rows
    for row in rows:
        planned, moment = benchmark.planned(cases[row["case"]])
        assert (int(planned), moment) == (row["planned"], row["at"]), f"{row['case']}: measure again"
        assert row["error"] == pytest.approx(planned / row["counted"] - 1, abs=1e-6)
        assert abs(row["error"]) <= TOLERANCE, row["case"]


@pytest.mark.slow
def test_a_step_takes_what_was_planned(benchmark):
    case = next(case for case in benchmark.CASES if case["name"] == "nano, 8x256, fp32")
    planned, _ = benchmark.planned(case)
    assert benchmark.one(case, "counted") == pytest.approx(planned, rel=TOLERANCE)
