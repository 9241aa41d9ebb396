"""The record of comparisons, its Markdown, and that the docs' tables are those of the records."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nnmf_cuda.comparison.compare import compare
from nnmf_cuda.comparison.pixels import Spending
from nnmf_cuda.comparison.plan import Plan, planned_splits
from nnmf_cuda.pipeline.config import DataConfig
from tests.comparison.conftest import BROKEN, CENTROID, CNN, npz  # noqa: F401

ROOT = Path(__file__).parents[2]


def script() -> ModuleType:
    if not (ROOT / "bench").exists():
        pytest.skip("needs the source tree")
    spec = importlib.util.spec_from_file_location(
        "comparison_record", ROOT / "bench" / "comparison_record.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def content(npz: Path, tmp_path: Path) -> dict[str, Any]:  # noqa: F811
    """Return compare.json of two folds of two stand-ins, one of which fails."""
    data = DataConfig(path=str(npz))
    splits = planned_splits(data, folds=True, seed=0)[:2]
    spending = Spending(n_images=4, eps_255=(2.0,), n_iter=2, n_queries=3, n_check_queries=0)
    plan = Plan((CENTROID, BROKEN, CNN), data, splits, spending=spending)
    found = json.loads(json.dumps(compare(plan, tmp_path).as_dict()))
    for line in found["measured"]:
        line["commit"] = "abc"
    return found


def test_no_system_loses_what_was_found_against_others(content: dict[str, Any]) -> None:
    bench = script()
    fewer = copy.deepcopy(content)
    for matrix in fewer["transfer"]:
        matrix["targets"] = ["cnn"]
    assert len(bench.record_of([fewer, content])["transfer"]) == len(content["transfer"])
    with pytest.raises(ValueError, match="the later without centroid: compare all of them in one"):
        bench.record_of([content, fewer])


def test_a_record_holds_what_tables_need(content: dict[str, Any]) -> None:
    bench = script()
    later = copy.deepcopy(content)
    for line in later["measured"]:
        line["fit_seconds"] = 12.25
    later["measured"] = [line for line in later["measured"] if line["system"] == "cnn"]
    last = copy.deepcopy(content)
    last["systems"] = last["systems"][::-1][:1]
    last["measured"] = last["failed"] = last["transfer"] = []
    names = [system["name"] for system in content["systems"]]
    assert [s["name"] for s in bench.record_of([last, content])["systems"]] == names
    record = json.loads(bench.as_text(bench.record_of([content, later])))
    assert len(record["measured"]) == 4
    assert [subject["source"] for subject in record["subjects"]] == 2 * ["images.npz"]
    assert {(m["system"], m["fit_seconds"] == 12.25) for m in record["measured"]} == {
        ("centroid", False),
        ("cnn", True),
    }
    assert set(record["measured"][0]["metrics"]) == set(bench.KEPT)
    other = copy.deepcopy(content)
    for name in ("measured", "failed", "transfer"):
        for line in other[name]:
            line["seed"] += 1
    longer = bench.record_of([record, other])  # a record can be added to
    assert len(longer["measured"]) == 8
    assert len(longer["subjects"]) == 3
    text = bench.tables_of(bench.compared_of(record))
    assert "| centroid |" in text
    assert "2 folds, 1 seed: mean ± standard deviation over folds" in text
    assert "of which 8 attacked" in text
    assert text.count("others too") == 1
    one_fold = {**record, **{n: record[n][:1] for n in ("measured", "failed", "transfer")}}
    text = bench.tables_of(bench.compared_of(one_fold))
    assert "| broken | A. Author 2020 | failed: ImportError" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in rows}) == 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("smoke", True, "with --smoke says nothing"),
        ("source", "other.npz", "differ in source"),
        ("spending", {"n_images": 4, "n_iter": 50}, "differ in spending"),
        ("data_sha256", {"fold 1": "another"}, "differ in the images of fold 1"),
    ],
)
def test_what_makes_no_record_is_refused(
    content: dict[str, Any], name: str, value: Any, said: str
) -> None:
    other = copy.deepcopy(content)
    other["subject"][name] = value
    with pytest.raises(ValueError, match=said):
        script().record_of([content, other])


@pytest.mark.parametrize("commit", ["", "abc+", "version 0.1.0"])
def test_what_no_commit_can_make_again_is_refused(content: dict[str, Any], commit: str) -> None:
    content["measured"][1]["commit"] = commit
    with pytest.raises(ValueError, match="measured by a tree that is no commit"):
        script().record_of([content])


def test_the_tables_of_the_docs_are_those_of_the_records(
    content: dict[str, Any], tmp_path: Path
) -> None:
    bench = script()
    page = (ROOT / "docs" / "comparison.md").read_text("utf-8")
    for path in sorted((ROOT / "bench" / "results").glob("comparison-*.json")):
        tables = bench.tables_of(bench.compared_of(bench.read(path)))
        assert f"<!-- {path.stem} -->\n{tables}\n<!-- /{path.stem} -->" in page
    # And so they are set.
    target = tmp_path / "page.md"
    target.write_text("before\n<!-- comparison-x -->\n<!-- /comparison-x -->\nafter\n")
    tables = bench.tables_of(bench.compared_of(bench.record_of([content])))
    bench.write_parts(target, {"comparison-x": tables})
    assert f"<!-- comparison-x -->\n{tables}\n<!-- /comparison-x -->\nafter" in target.read_text()
