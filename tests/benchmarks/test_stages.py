"""The stage benchmark: turns, the gate of equal quality, its record, tables and figure."""

from __future__ import annotations

import copy
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch

from bench.plot import plot_records, write_device_tables
from bench.tables import stages_markdown
from nnmf_cuda import ops
from nnmf_cuda.benchmarks import stages
from nnmf_cuda.benchmarks.records import read_records
from nnmf_cuda.benchmarks.stage_tables import stages_table
from nnmf_cuda.benchmarks.stages import QualityError, run_stage_benchmarks
from nnmf_cuda.cli.main import main
from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES
from nnmf_cuda.timing import PAPER_STAGES

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    path = tmp_path_factory.mktemp("stages") / "records.jsonl"
    found = run_stage_benchmarks(
        device="cpu", smoke=True, repeats=2, reference_repeats=1, json_path=path
    )
    return found, path


def test_both_paths_run_in_turns_and_every_stage_is_timed(smoke):
    record, _ = smoke
    assert record["order"] == ["cpu", "cpu reference", "cpu"]
    assert list(record["paths"]) == ["cpu", "cpu reference"]
    for name, runs in (("cpu", 2), ("cpu reference", 1)):
        path = record["paths"][name]
        assert path["reference"] is (name == "cpu reference")
        assert list(path["stages"]) == [*PAPER_STAGES, "total"]  # no evaluation, no reading
        for stage in path["stages"].values():
            assert len(stage["seconds"]) == runs
            assert stage["median_s"] == pytest.approx(np.median(stage["seconds"]))
            assert 0 < stage["low_s"] <= stage["median_s"] <= stage["high_s"]
            assert stage["peak_bytes"] > 2**20
        each = np.array([path["stages"][stage]["seconds"] for stage in PAPER_STAGES])
        assert path["stages"]["total"]["seconds"] == pytest.approx(each.sum(0))


def test_record_says_what_was_found_where_and_on_what(smoke):
    record, path = smoke
    assert read_records([path]) == [json.loads(json.dumps(record))]
    assert (record["suite"], record["op"], record["size"]) == ("stages", "stages", "phantom")
    assert (record["synthetic"], record["options"]) == (True, {"preset": "smoke"})
    assert record["shape"] == {
        "n_train": 80,
        "n_valid": 40,
        "n_test": 40,
        "height": 32,
        "width": 32,
    }
    assert record["config"]["nnmf"]["n_components"] == 6
    assert record["environments"]["cpu"]["threads"] == torch.get_num_threads()
    assert record["environments"]["cpu"]["data_sha256"] == record["data_sha256"]
    for found in record["paths"].values():
        for rows in found["rows"]:
            assert set(rows) == set(ROW_NAMES)
            assert all(set(METRIC_NAMES) <= set(row) for row in rows.values())
    first, again = record["paths"]["cpu"]["rows"]
    assert first == again  # one seed


def test_lines_that_lack_something_are_refused(smoke, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({k: v for k, v in smoke[0].items() if k != "quality"}))
    with pytest.raises(ValueError, match="a record of stages without quality"):
        read_records([path])


@pytest.mark.parametrize(
    ("repeats", "reference_repeats", "expected"),
    [(1, 1, "o r"), (3, 1, "o r o o"), (3, 2, "o r o r o"), (1, 3, "o r r r")],
)
def test_turns(repeats, reference_repeats, expected):
    paths = [stages._Path(CPU, False), stages._Path(CPU, True)]
    order = stages._order(paths, repeats, reference_repeats)
    assert " ".join("r" if p.is_reference else "o" for p in order) == expected


def test_only_the_reference_is_computed_on_the_reference_path(monkeypatch):
    from nnmf_cuda.pipeline import stages as five_stages

    asked = []
    right = five_stages.run_stages

    def spy(*arguments, **options):
        asked.append(ops.is_reference_path())
        return right(*arguments, **options)

    monkeypatch.setattr(five_stages, "run_stages", spy)
    run_stage_benchmarks(device="cpu", smoke=True, repeats=1)
    assert asked == [False, True, False, True]  # a tiny experiment on each first
    assert not ops.is_reference_path()


def test_both_attack_the_same_models(smoke):
    record, _ = smoke
    assert list(record["attacks"]) == ["cpu"]
    assert list(record["attacks"]["cpu"]) == ["baseline", "defended"]
    for found in record["attacks"]["cpu"].values():
        assert found["n_samples"] == record["shape"]["n_test"]
        assert 0 <= found["differing_decisions"] <= 0.1
        assert found["mean_difference"] <= found["max_difference"] <= 2 * 0.1 + 1e-6
        for path in ("ours", "reference"):
            assert list(found["accuracy_after"][path]) == ["apgd-ce", "square"]
            assert found["seconds"][path]["apgd-ce"] > 0


def test_the_second_attack_is_on_the_same_model_and_by_the_reference(monkeypatch):
    from nnmf_cuda.pipeline import stages as five_stages
    from nnmf_cuda.pipeline import stages as pipeline_stages
    from nnmf_cuda.timing import StageTimer

    attacked = []
    right = pipeline_stages.attack_model

    def spy(model, features, config, **options):
        attacked.append((model, features, ops.is_reference_path()))
        found = right(model, features, config, **options)
        if ops.is_reference_path():  # as if it had broken two more, and moved one of them
            found.robust_flags[:2] = ~found.robust_flags[:2]
            found.x_adv[0, 0] += 0.05
        return found

    monkeypatch.setattr(pipeline_stages, "attack_model", spy)
    dataset, config = stages._tiny_problem()
    outputs = five_stages.run_stages(dataset, config, device=CPU, timer=StageTimer())
    found = stages.attack_by_both(outputs, config)
    ours, plain = attacked[:2], attacked[2:]
    for (model, features, _), (same, equal, _) in zip(ours, plain, strict=True):
        assert model is same
        assert features is equal
    assert [reference for *_, reference in attacked] == [False, False, True, True]
    for compared in found.values():
        assert compared["differing_decisions"] == pytest.approx(2 / 40)
        assert compared["max_difference"] == pytest.approx(0.05, rel=1e-3)


# Quality ---------------------------------------------------------------------------------------


def a_run(accuracies=(0.9, 0.8, 0.1, 0.5), *, spread=0.02, seconds=1.0, peak=2**30):
    rows = {
        row: dict.fromkeys(METRIC_NAMES, 0.5) | {"accuracy": accuracy, "n": 40}
        for row, accuracy in zip(ROW_NAMES, accuracies, strict=True)
    }
    spreads = {
        row: dict.fromkeys(METRIC_NAMES, spread) for row in ("Clean_Defended", "Robust_Defended")
    }
    names = (*PAPER_STAGES, "total")
    return stages._Run(dict.fromkeys(names, seconds), dict.fromkeys(names, peak), rows, spreads)


@pytest.mark.parametrize(
    ("reference", "spread", "apart"),
    [
        ((0.9, 0.8, 0.1, 0.5), 0.02, []),
        ((0.85, 0.85, 0.2, 0.4), 0.02, []),  # all that is allowed, and no more
        ((0.84, 0.8, 0.1, 0.5), 0.02, ["Clean_Baseline"]),
        ((0.9, 0.86, 0.1, 0.5), 0.3, ["Clean_Defended"]),  # a clean row has no other spread
        ((0.9, 0.8, 0.21, 0.5), 0.02, ["Robust_Baseline"]),
        ((0.9, 0.8, 0.1, 0.38), 0.02, ["Robust_Defended"]),
        ((0.9, 0.8, 0.1, 0.38), 0.15, []),  # fresh predictions differ by more
        ((0.1, 0.8, 0.9, 0.5), 0.02, ["Clean_Baseline", "Robust_Baseline"]),
        ((float("nan"), 0.8, 0.1, 0.5), 0.02, ["Clean_Baseline"]),
    ],
)
def test_rows_have_to_agree(reference, spread, apart):
    runs = {"cpu": [a_run(spread=spread)], "cpu reference": [a_run(reference, spread=spread)]}
    if not apart:
        stages.require_equal_metrics(runs)
        return
    with pytest.raises(QualityError) as error:
        stages.require_equal_metrics(runs)
    for row, ours, theirs in zip(ROW_NAMES, (0.9, 0.8, 0.1, 0.5), reference, strict=True):
        said = f"{row} accuracy cpu {ours:.4f}; cpu reference {theirs:.4f}" in str(error.value)
        assert said is (row in apart)


@pytest.mark.parametrize(
    ("row", "metric", "difference", "refused"),
    [
        ("Clean_Baseline", "roc_auc", 0.06, True),
        ("Clean_Baseline", "roc_auc", 0.04, False),
        ("Clean_Defended", "brier", -0.06, True),
        ("Clean_Defended", "f1", 0.06, True),
        ("Robust_Baseline", "balanced_accuracy", 0.11, True),
        ("Robust_Baseline", "balanced_accuracy", 0.09, False),
        ("Clean_Baseline", "mcc", 0.09, False),  # from -1 to 1
        ("Clean_Baseline", "mcc", 0.11, True),
        ("Robust_Defended", "mcc", 0.19, False),
        ("Robust_Defended", "mcc", 0.21, True),
        ("Robust_Defended", "log_loss", 9.0, False),  # recorded, without a limit
    ],
)
def test_every_bounded_metric_has_to_agree(row, metric, difference, refused):
    reference = a_run()
    reference.rows[row][metric] += difference
    runs = {"cpu": [a_run()], "cpu reference": [reference]}
    found = stages.metric_differences(runs)["largest_difference"]
    assert found[row][metric] == pytest.approx(abs(difference))
    assert sum(value for values in found.values() for value in values.values()) == pytest.approx(
        abs(difference)
    )
    if refused:
        with pytest.raises(QualityError, match=f"{row} {metric} cpu 0.5000"):
            stages.require_equal_metrics(runs)
    else:
        stages.require_equal_metrics(runs)


def test_attacks_on_one_model_have_to_agree(smoke):
    attacks = copy.deepcopy(smoke[0]["attacks"])
    attacks["cpu"]["defended"]["differing_decisions"] = 0.1
    stages.require_equal_attacks(attacks)
    attacks["cpu"]["defended"]["differing_decisions"] = 0.125
    with pytest.raises(QualityError, match=r"cpu defended 0\.1250$"):
        stages.require_equal_attacks(attacks)


def test_runs_of_one_path_have_to_agree_too():
    runs = {"cpu": [a_run(), a_run((0.8, 0.8, 0.1, 0.5))], "cpu reference": []}
    with pytest.raises(QualityError, match=re.escape("accuracy cpu 0.9000, 0.8000 (may")):
        stages.require_equal_metrics(runs)


def test_no_time_is_shown_or_recorded_where_quality_differs(monkeypatch, tmp_path, capsys):
    def run(path, *_, bar=None):
        return a_run((0.7, 0.8, 0.1, 0.5) if path.is_reference else (0.9, 0.8, 0.1, 0.5)), None

    monkeypatch.setattr(stages, "_run", run)
    json_path = tmp_path / "records.jsonl"
    arguments = ["bench", "stages", "--smoke", "--device", "cpu", "--json", str(json_path)]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Clean_Baseline accuracy cpu 0.9000; cpu reference 0.7000" in said.err
    assert not json_path.exists()


# Tables and figure -----------------------------------------------------------------------------


def cells(table):
    """Return a Markdown table without what pads its cells."""
    return re.sub(" +", " ", table)


@pytest.fixture
def measured(smoke):
    """A record as of a machine with a GPU."""
    record = copy.deepcopy(smoke[0])
    runs = {
        "cpu": [a_run(seconds=s) for s in (2.0, 4.0, 3.0)],
        "cpu reference": [a_run((0.88, 0.8, 0.1, 0.5), seconds=30.0)],
        "cuda": [a_run(seconds=0.5, peak=2**20)],
        "cuda reference": [a_run(seconds=4.0, peak=3 * 2**20)],
    }
    paths = [stages._Path(torch.device(d), r) for d in ("cpu", "cuda") for r in (False, True)]
    record["paths"] = {p.name: stages._summary(p, runs[p.name]) for p in paths}
    record["quality"] = stages.metric_differences(runs)
    for seconds in (found["seconds"] for found in record["attacks"]["cpu"].values()):
        seconds["ours"] = {"apgd-ce": 1.0, "square": 3.0}
        seconds["reference"] = {"apgd-ce": 10.0, "square": 12.0}
    record["attacks"]["cpu"]["defended"] |= {"differing_decisions": 0.025, "equal_points": 0.5}
    record["attacks"]["cuda"] = copy.deepcopy(record["attacks"]["cpu"])
    record["environments"]["cuda"] = {"device_name": "NVIDIA H100"}
    return {**record, "smoke": False, "device": "cuda", "device_name": "NVIDIA H100"}


def test_table_has_quality_before_seconds_before_memory(measured):
    text = stages_table(measured)
    lines = text.splitlines()
    places = [text.index(part) for part in ("Clean_Baseline", "CNN training", "peak memory")]
    assert places == sorted(places)
    accuracy = {
        line.split(",")[1].partition("0.")[0].strip(): line.split()[-len(METRIC_NAMES)]
        for line in lines
        if line.startswith("Clean_Baseline, ")
    }
    assert accuracy == {
        "cpu": "0.9000",
        "cpu reference": "0.8800",
        "cuda": "0.9000",
        "cuda reference": "0.9000",
        "largest difference": "0.0200",
    }
    header = next(line for line in lines if line.startswith("stage "))
    for title in ("cpu, s", "cpu reference, s", "cuda, s", "cuda reference, s", "paper GPU"):
        assert title in header
    total = next(line for line in lines if line.startswith("Total"))
    assert "3.00 (2.00-4.00)" in total
    assert "30.00  10.00 x" in total
    assert "8.00 x" in total
    assert total.split()[-2:] == ["201.47", "116.60"]
    memory = [line for line in lines if line.startswith("CNN training")][1]
    assert memory.split()[2:] == ["1,024", "MiB", "1,024", "MiB", "1", "MiB", "3", "MiB"]
    assert "median of 2 runs and of 1 run of the reference" in " ".join(text.split())
    assert "not for a ratio" in text
    assert "NVIDIA H100" in text


def test_table_has_attacks_on_one_model(measured):
    text = stages_table(measured)
    attacked = [line.split() for line in text.splitlines() if line.startswith("defended, ")]
    assert [words[1] for words in attacked] == ["cpu", "cuda"]
    for words in attacked:
        assert words[4:8] == ["2.5", "%", "50.0", "%"]
        assert words[-4:] == ["4.00", "22.00", "5.50", "x"]


def test_smoke_runs_show_no_speeds(smoke):
    text = stages_table(smoke[0])
    assert not re.search(r"\d\.\d\d x", text)
    assert "Smoke run" in text


def test_markdown_has_one_group_of_tables_a_record(measured):
    text = cells(stages_markdown([measured, measured]))
    assert text.count("| Total of these five | 3.00 (2.00-4.00) | 30.00 | 10.00 x |") == 2
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 8
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert stages_markdown([]) == "No records yet."


def test_figure_has_a_bar_for_each_stage_and_path(measured, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(measured) + "\n")
    (figure,) = plot_records([path], out=tmp_path / "figures")
    assert figure.name == "stages.svg"
    texts = ["".join(e.itertext()).strip() for e in ElementTree.parse(figure).iter()]
    for text in ("3 s (10.0 x)", "30 s", "0.5 s (8.0 x)", "4 s"):
        assert texts.count(text) >= len(PAPER_STAGES) + 1
    for text in ("cpu", "cpu reference", "cuda", "cuda reference", "CNN training"):
        assert text in texts


def test_page_of_the_benchmarks_shows_stages(measured, tmp_path):
    page, path = tmp_path / "page.md", tmp_path / "records.jsonl"
    names = ("kernels", "scaling", "convergence", "memory", "stages")
    page.write_text("".join(f"<!-- {n} -->\n<!-- /{n} -->\n" for n in names))
    path.write_text(json.dumps(measured) + "\n")
    plot_records([path], out=tmp_path / "figures", page=page)
    assert "| Total of these five | 3.00 (2.00-4.00) |" in cells(page.read_text())
    assert "![stages](figures/stages.svg)" in page.read_text()


def test_pages_show_stages(measured, smoke, tmp_path):
    page, path = tmp_path / "page.md", tmp_path / "records.jsonl"
    names = ("equality", "break_even", "stages")
    page.write_text("".join(f"<!-- {n} -->\n<!-- /{n} -->\n" for n in names))
    path.write_text(json.dumps({**smoke[0], "smoke": False}) + "\n")
    write_device_tables([path], page=page)
    assert page.read_text().count("Not measured: no GPU has run.") == 2
    path.write_text(json.dumps(measured) + "\n")
    write_device_tables([path], page=page)
    assert "| Total of these five | 3.00 (2.00-4.00) |" in cells(page.read_text())


def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(stages, "_run", lambda *_, **__: pytest.fail("has run"))
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "records.jsonl"):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            run_stage_benchmarks(device="cpu", smoke=True, json_path=path)


# Options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "repeats=0; need at least 1"),
        ({"reference_repeats": 0}, "reference_repeats=0; need at least 1"),
        ({"smoke": True, "data": "images.npz"}, "smoke brings its own data"),
        ({"data": "there-is-no-such-file.npz"}, "there-is-no-such-file"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises((ValueError, OSError), match=message):
        run_stage_benchmarks(device="cpu", **options)


@pytest.mark.parametrize(
    ("asked", "present", "expected"),
    [
        ("cpu", True, ["cpu", "cpu reference"]),
        ("cuda", True, ["cuda", "cuda reference"]),
        ("auto", True, ["cpu", "cpu reference", "cuda", "cuda reference"]),
        ("auto", False, ["cpu", "cpu reference"]),
    ],
)
def test_devices(asked, present, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(present))
    assert [path.name for path in stages._paths(asked)] == expected


@pytest.mark.needs_cuda
def test_a_gpu_gives_four_paths():
    record = run_stage_benchmarks(device="auto", smoke=True, repeats=1)
    assert list(record["paths"]) == ["cpu", "cpu reference", "cuda", "cuda reference"]
    assert record["device"] == "cuda"
    assert all(s["peak_bytes"] > 0 for s in record["paths"]["cuda"]["stages"].values())


def test_command_line(tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    arguments = ["bench", "stages", "--smoke", "--device", "cpu", "--repeats", "1"]
    assert main([*arguments, "--json", str(path)]) == 0
    assert "Total of these five" in capsys.readouterr().out
    (record,) = read_records([path])
    assert (record["repeats"], record["reference_repeats"]) == (1, 1)


def test_settings_and_data_of_ones_own(tmp_path):
    from nnmf_cuda.data import phantom
    from nnmf_cuda.pipeline import config

    images = phantom((40, 20, 20), image_shape=(16, 16))
    path = tmp_path / "mine.npz"
    np.savez(path, images=images.images, labels=images.labels, split=images.split)
    settings = config.ExperimentConfig(
        nnmf=config.NNMFConfig(n_components=4, max_iter=5),
        classifier=config.ClassifierConfig(epochs=2),
        diffusion=config.DiffusionConfig(epochs=2, n_draws=2),
        attack=config.AttackConfig(n_iter=3, n_restarts=1, n_queries=10),
        n_predictions=2,
    )
    record = run_stage_benchmarks(data=str(path), config=settings, device="cpu", repeats=1)
    assert record["options"] == {"preset": "custom"}
    assert record["size"] == "mine"
    assert record["config"]["nnmf"]["max_iter"] == 5
    assert record["config"]["data"]["path"] == path.name
    assert record["shape"]["n_test"] == 20
    assert not record["synthetic"]
