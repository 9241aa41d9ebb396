from __future__ import annotations

from pathlib import Path

import pytest

from nnmf_cuda.pipeline.run_directory import (
    check_free,
    remove_runs,
    results_directory,
    runs_below,
)


def write(partial: Path, text: str) -> None:
    (partial / "metrics.json").write_text(text)
    (partial / "model").mkdir()
    (partial / "model" / "model.json").write_text(text)


def content(out: Path) -> dict[str, str]:
    return {str(p.relative_to(out)): p.read_text() for p in out.rglob("*") if p.is_file()}


def test_results_appear_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with results_directory(out, overwrite=False) as partial:
        write(partial, "1")
        assert not (out / "metrics.json").exists()
    assert content(out) == {"metrics.json": "1", "model/model.json": "1"}


def test_overwrite_replaces_results_and_nothing_else(tmp_path: Path) -> None:
    with results_directory(tmp_path, overwrite=False) as partial:
        write(partial, "1")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "summary.json").write_text("of other runs")
    with pytest.raises(
        ValueError, match=r"already holds a run \(model, metrics.json, summary.json\)"
    ):
        with results_directory(tmp_path, overwrite=False):
            pass
    with results_directory(tmp_path, overwrite=True) as partial:
        write(partial, "2")
    assert content(tmp_path) == {"metrics.json": "2", "model/model.json": "2", "notes.txt": "mine"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    with results_directory(tmp_path / "run", overwrite=False) as partial:
        write(partial, "1")

    def fail(out: Path) -> None:
        with results_directory(out, overwrite=True) as partial:
            write(partial, "2")
            raise error

    for out in (tmp_path / "run", tmp_path / "new"):
        with pytest.raises(error):
            fail(out)
    assert content(tmp_path) == {"run/metrics.json": "1", "run/model/model.json": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_runs_below_are_found_and_removed_with_what_is_stale(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("fold_1/seed_0", "fold_1/seed_1", "own_split", "seed_7")]
    for home in homes:
        with results_directory(home, overwrite=False) as partial:
            write(partial, "1")
    (tmp_path / "fold_1" / "seed_1" / "mine.txt").write_text("mine")
    (tmp_path / "seed_8").mkdir()
    (tmp_path / "robustness.json").write_text("of an older run")
    assert runs_below(tmp_path) == homes
    with pytest.raises(
        ValueError, match=r"\(robustness.json, fold_1/seed_0, .*, own_split, seed_7"
    ):
        check_free(tmp_path, overwrite=False)
    with pytest.raises(ValueError, match="or --resume to keep its finished runs"):
        check_free(tmp_path, overwrite=False)
    remove_runs(tmp_path, keep=[homes[3]])
    assert runs_below(tmp_path) == [homes[3]]
    with results_directory(tmp_path, overwrite=True) as partial:
        write(partial, "2")
    assert content(tmp_path) == {
        "metrics.json": "2",
        "model/model.json": "2",
        "fold_1/seed_1/mine.txt": "mine",
    }


def test_many_runs_are_counted(tmp_path: Path) -> None:
    for seed in range(6):
        with results_directory(tmp_path / f"seed_{seed}", overwrite=False) as partial:
            write(partial, "1")
    with pytest.raises(ValueError, match=r"\(seed_0, .*, seed_3, and 2 more runs\)"):
        check_free(tmp_path, overwrite=False)
