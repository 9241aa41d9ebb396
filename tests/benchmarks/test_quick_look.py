"""The quick look at the ops: verified before timed, both in turns, a line an op."""

from __future__ import annotations

import json

import pytest
import torch

from nnmf_cuda import ops, show_config
from nnmf_cuda.benchmarks import quick_look
from nnmf_cuda.benchmarks.quick_look import OPS_LOOKED_AT, quick_look_table, run_quick_look
from nnmf_cuda.benchmarks.records import read_records
from nnmf_cuda.cli.main import main
from tests.helpers import DEVICES


@pytest.mark.parametrize("device", DEVICES)
def test_every_op_is_right_and_timed(device, tmp_path):
    path = tmp_path / "records.jsonl"
    records = run_quick_look(device=device, smoke=True, json_path=path)
    assert tuple(dict.fromkeys(r["op"] for r in records)) == OPS_LOOKED_AT
    for record in records:
        assert record["status"] == "ok", record["reason"]
        assert 0 < record["p25"] <= record["median_ms"] <= record["p75"]
        served = show_config()["ops"][record["op"]][device]
        assert record["served_by"] == ("reference" if record["impl"] == "reference" else served)
        if record["impl"] == "ours":
            assert record["max_err"] <= record["tolerance"]
    assert read_records([path]) == [json.loads(json.dumps(r)) for r in records]


def test_every_op_with_a_public_name_is_looked_at():
    """But noise and sizes, which are compared bit by bit elsewhere, training, and a beginning."""
    public = {name for name in show_config()["ops"] if hasattr(ops, name)}
    elsewhere = {"philox_normal", "resize_grey", "train_feature_cnn_epoch", "train_mlp_epoch"}
    elsewhere.add("prepare_components")  # what `project` begins with
    assert public - elsewhere == set(OPS_LOOKED_AT)


@pytest.mark.parametrize("value", [1.01, float("nan")])
def test_a_wrong_op_is_not_timed(monkeypatch, value):
    right, timed = ops.nnmf_divergence, []

    def wrong(*arguments):
        found = right(*arguments)
        return found if ops.is_reference_path() else found * value

    # By the clock of a test: a call takes as long as it is told to.
    monkeypatch.setattr(quick_look, "_samples", lambda *_: timed.append(1) or {})
    looks = [look for look in quick_look._LOOKS if look.op == "nnmf_divergence"]
    monkeypatch.setattr(
        quick_look, "_LOOKS", tuple(type(look)(**{**vars(look), "call": wrong}) for look in looks)
    )
    ours, reference = sorted(run_quick_look(smoke=True, cases=["nnmf_divergence"]), key=_impl)
    assert (ours["status"], reference["status"]) == ("failed", "skipped")
    assert ours["reason"].startswith("wrong: error ")
    assert not timed
    assert "wrong: error" in quick_look_table([reference, ours])


def _impl(record):
    return record["impl"]


def test_ratios_are_those_of_the_medians(monkeypatch):
    given = {"reference": [0.004, 0.006, 0.005], "ours": [0.001, 0.0005, 0.002]}
    monkeypatch.setattr(quick_look, "_samples", lambda *_: given)
    tiny = {"n_samples": 33, "n_components": 5}
    looks = [look for look in quick_look._LOOKS if look.op == "nnls"]
    monkeypatch.setattr(
        quick_look, "_LOOKS", tuple(type(look)(**{**vars(look), "shape": tiny}) for look in looks)
    )
    records = run_quick_look(cases=["nnls"])
    found = {r["impl"]: r["median_ms"] for r in records}
    assert found == {"reference": pytest.approx(5.0), "ours": pytest.approx(1.0)}
    assert "5.00 x" in quick_look_table(records)
    assert quick_look_table([]) == "no records"


def test_what_is_timed_as_the_reference_runs_on_the_reference_path():
    seen = []
    found = quick_look._samples(lambda: seen.append(ops.is_reference_path()), (), 1e-4)
    assert set(seen) == {True, False}
    assert set(found) == {"reference", "ours"}
    assert not ops.is_reference_path()


def test_command_line(tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    arguments = ["bench", "kernels", "--case", "[nnls]", "--smoke", "--device", "cpu"]
    assert main([*arguments, "--json", str(path)]) == 0
    assert "nnls" in capsys.readouterr().out
    assert {r["impl"] for r in read_records([path])} == {"ours", "reference"}
    assert main(["bench", "kernels", "--case", "[nothing]"]) == 2
    assert "no benchmark case ['nothing']; choose from nnmf_mu" in capsys.readouterr().err


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="min_run_seconds=0"):
        run_quick_look(min_run_seconds=0)
    with pytest.raises(ValueError, match="nowhere"):
        run_quick_look(device="nowhere")


@pytest.mark.parametrize("kind", ["kernels", "stages"])
def test_help(kind, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", kind, "--help"])
    assert stopped.value.code == 0
    assert f"usage: nnmf-cuda bench {kind} [options]" in capsys.readouterr().out


def test_help_says_what_is_measured_here(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "seconds of each stage here and in plain torch" in shown
    assert "every op against its reference in plain torch" in shown
    with pytest.raises(SystemExit):
        main(["bench", "stages", "--help"])
    shown = capsys.readouterr().out
    for option in ("--data", "--device", "--repeats", "--reference_repeats", "--smoke", "--json"):
        assert option in shown


def test_drawn_numbers_are_the_same_again():
    first, again = (quick_look._drawer(torch.device("cpu"))(3, 4) for _ in range(2))
    assert torch.equal(first, again)
