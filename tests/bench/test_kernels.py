"""The benchmark runner: verification before timing, records, ceilings, selection of cases."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch

from bench import cases, peers
from bench.case import Case, NotApplicableError, Size, Work
from bench.cases import CASES, get_cases
from bench.ceilings import Ceilings, measure_ceilings, rates
from bench.inputs import low_rank
from bench.kernels import (
    Problem,
    computed_in,
    measure_problem,
    run_kernel_benchmarks,
    served_by,
    verify,
)
from bench.measure import extra_peak_bytes, largest_error
from bench.tables import records_table

CPU = torch.device("cpu")
OPS = tuple(case.op for case in CASES)
KEYS = {
    *("suite", "run", "op", "size", "impl", "served_by", "shape", "dtype", "options", "status"),
    *("reason", "median_ms", "p25", "p75", "n", "timer", "peak_bytes", "max_err", "tolerance"),
    *("flops", "bytes", "items", "ceilings", "rates", "smoke", "device", "device_name"),
    *("cpu_count", "cpu_isa", "load_average", "threads", "torch", "cuda", "nnmf_cuda", "commit"),
    *("uncommitted_changes", "date", "iteration_ms", "l2", "clocks", "gpu"),
}


def _refuse(device):
    raise NotApplicableError("torch.compile found no C++ compiler")


@pytest.fixture
def no_compiler(monkeypatch):
    """Leave out torch.compile, which takes seconds a case."""
    monkeypatch.setattr(peers, "_need_compiler", _refuse)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "new" / "records.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "_need_compiler", _refuse)
        records = run_kernel_benchmarks(smoke=True, json_path=path)
    return records, path


def test_smoke_run_verifies_and_times_everything(smoke):
    records, _ = smoke
    assert tuple(dict.fromkeys(r["op"] for r in records)) == OPS
    for record in records:
        assert set(record) == KEYS
        if record["status"] != "ok":
            assert record["status"] == "skipped", record
            missing = r"not installed: (torchnmf|nmf|zarr|h5py|pydicom|nibabel)"
            known = rf"{missing}|no C\+\+ compiler|Frobenius only|CUDA only|Kullback-Leibler"
            assert re.search(known, record["reason"]), record
            continue
        assert record["max_err"] <= record["tolerance"]
        assert 0 < record["p25"] <= record["median_ms"] <= record["p75"]
        assert record["n"] >= 5
        assert record["device"] == "cpu"
        assert (record["l2"], record["clocks"], record["gpu"]) == (None, None, None)
        n_iter = record["shape"].get("n_iter")
        expected = None if n_iter is None else pytest.approx(record["median_ms"] / n_iter)
        assert record["iteration_ms"] == expected
        assert record["ceilings"]["gemm_gflops"] > 0
        assert record["ceilings"]["read_gb_per_s"] > 0


def test_smoke_run_measures_every_implementation_that_is_here(smoke):
    measured = {(r["op"], r["impl"]) for r in smoke[0] if r["status"] == "ok"}
    expected = {(op, impl) for op in OPS for impl in ("reference", "ours")}
    expected |= {("nnmf_mu", "scikit-learn mu"), ("nnmf_mu", "scikit-learn cd")}
    expected |= {("nnmf_hals", "scikit-learn cd"), ("nnmf_divergence", "scikit-learn mu")}
    expected |= {("nnls", "scipy nnls"), ("project", "scipy nnls")}
    assert expected <= measured


def test_records_are_lines_of_json_and_appended(smoke):
    records, path = smoke
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines[: len(records)]] == records
    more = run_kernel_benchmarks(cases=["nnls"], smoke=True, json_path=path)
    assert {r["op"] for r in more} == {"nnls"}
    assert len(path.read_text().splitlines()) == len(lines) + len(more)


def test_served_by_says_what_ran(smoke):
    from nnmf_cuda import show_config

    served = show_config()["ops"]
    for record in smoke[0]:
        if record["impl"] == "ours" and record["op"] in served:
            assert record["served_by"] == served[record["op"]]["cpu"]
    found = {r["impl"]: r["served_by"] for r in smoke[0]}
    assert found["reference"] == "reference"
    assert found["torch.compile"] == "compiled"
    assert found["torch modules"] == "torch"
    assert found["ours, decoding alone"] == "pillow"
    ours = {r["op"]: r["served_by"] for r in smoke[0] if r["impl"] == "ours"}
    assert ours["purify_gradient"] == served["purify_backward"]["cpu"]
    assert ours["defended_logits_gradient"] == served["defended_logits_backward"]["cpu"]
    assert ours["train_classifier"] == served["train_feature_cnn_epoch"]["cpu"]
    assert ours["train_denoiser"] == served["train_mlp_epoch"]["cpu"]
    assert served_by("train_classifier", "ours", torch.device("cuda")) == "CUDA graph"
    assert found["scikit-learn mu"] == found["scipy nnls"] == "library"


@pytest.mark.parametrize("op", OPS)
def test_every_size_has_a_tolerance_and_inputs_of_its_shape(op, no_compiler):
    (case,) = get_cases([op])
    for size in (*case.sizes, *case.cuda_sizes, *case.smoke):
        small = {k: min(v, 256 if k == "n_features" else 4) for k, v in size.shape.items()}
        tiny = Size(size.name, small, size.dtype, size.options)
        inputs = case.inputs(tiny, 0, CPU)
        again = case.inputs(tiny, 0, CPU)
        other = case.inputs(tiny, 1, CPU)
        tensors = [name for name, value in inputs.items() if isinstance(value, torch.Tensor)]
        assert all(torch.equal(inputs[name], again[name]) for name in tensors)
        assert not all(torch.equal(inputs[name], other[name]) for name in tensors)
        rounding = 0.05 if op.startswith("train_") else 1e-3  # of thousands of steps
        assert 0 < case.tolerance[computed_in(inputs)] < rounding
        found, _ = verify(Problem(case, tiny), inputs)
        for name, record in found.items():
            assert record["status"] != "failed", (name, record["reason"])


@pytest.mark.parametrize("module", ["torchnmf.nmf", "nmf.nmf_models"])
def test_peer_agrees_in_float64(module):
    pytest.importorskip(module)
    builds = {
        "torchnmf.nmf": (peers.torchnmf_mu,),
        "nmf.nmf_models": (peers.nmf_torch_mu, peers.nmf_torch_hals),
    }
    for beta_loss in (1.0, 2.0):
        inputs = _float64_problem(beta_loss)
        for build in builds[module]:
            if build is peers.nmf_torch_hals and beta_loss == 1:
                continue
            exact = peers.hals_truth if build is peers.nmf_torch_hals else _mu_by_hand
            assert largest_error(build(inputs)(), exact(inputs)) < 1e-6  # their epsilons


def _float64_problem(beta_loss: float):
    X = low_rank(12, 20, 3, dtype="float64", seed=0, device=CPU)
    generator = torch.Generator().manual_seed(1)
    W = torch.rand(12, 3, generator=generator, dtype=torch.float64) + 0.1
    H = torch.rand(3, 20, generator=generator, dtype=torch.float64) + 0.1
    return {"X": X, "W": W / 2, "H": H / 2, "beta_loss": beta_loss, "n_iter": 3}


def _mu_by_hand(inputs):
    """Lee & Seung's updates entry by entry, W before H."""
    X, W, H = (inputs[name].numpy().copy() for name in "XWH")
    n, f, k = len(X), X.shape[1], len(H)
    for _ in range(inputs["n_iter"]):
        W *= _factors(X, W, H, inputs["beta_loss"], [(i, slice(None)) for i in range(n)], k, 0)
        H *= _factors(X, W, H, inputs["beta_loss"], [(slice(None), j) for j in range(f)], k, 1)
    return W, H


def _factors(X, W, H, beta_loss, lines, k, axis):
    found = []
    for line in lines:
        model = (W @ H)[line]
        other = H if axis == 0 else W.T
        weights = X[line] / model if beta_loss == 1 else X[line]
        against = np.ones_like(model) if beta_loss == 1 else model
        found.append([(weights @ other[c]) / (against @ other[c]) for c in range(k)])
    return np.array(found) if axis == 0 else np.array(found).T


def test_hals_truth_is_coordinate_descent_and_lowers_the_objective():
    inputs = _float64_problem(2.0)
    X = inputs["X"]
    previous = ((X - inputs["W"] @ inputs["H"]) ** 2).sum()
    for n_iter in (1, 2, 5):
        W, H = peers.hals_truth({**inputs, "n_iter": n_iter})
        found = ((X - W @ H) ** 2).sum()
        assert found < previous
        previous = found
    # From its own result no single entry of the last factor can be moved to advantage.
    gradient = (W.T @ (W @ H - X))[-1]
    assert (gradient[H[-1] > 0].abs() < 1e-9).all()
    assert (gradient[H[-1] == 0] > -1e-9).all()


@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
def test_work_counts_what_the_formulas_do(beta_loss):
    (case,) = get_cases(["nnmf_mu"])
    shape = {"n_samples": 7, "n_features": 11, "n_components": 3, "n_iter": 5}
    work = case.work(Size("s", shape, "uint8", {"beta_loss": beta_loss}))
    n, f, k = 7, 11, 3
    per_iteration = 8 * n * f * k if beta_loss == 1 else 4 * n * f * k + 4 * (n + f) * k * k
    assert work.flops == 5 * per_iteration
    assert work.bytes == 5 * (2 * n * f + 4 * 4 * (n + f) * k)
    batch = case.work(Size("s", {**shape, "n_batch": 4}, "uint8", {"beta_loss": beta_loss}))
    assert batch.flops == 4 * work.flops
    assert work.bytes < batch.bytes < 4 * work.bytes  # X is shared


def test_rates_are_shares_of_the_ceilings():
    ceilings = {"gemm_gflops": 100.0, "read_gb_per_s": 10.0}
    found = rates(Work(flops=5e9, bytes=2e9, items=30), 0.5, ceilings)
    assert found == {
        "gflops": 10.0,
        "gemm_share": 0.1,
        "gb_per_s": 4.0,
        "read_share": 0.4,
        "items_per_s": 60.0,
    }
    assert set(rates(Work(), 0.5, ceilings).values()) == {None}


def test_ceilings_are_those_of_the_dtype():
    found = measure_ceilings(CPU, min_run_seconds=0.02, smoke=True)
    assert found["gemm_dtype"] == "float32"
    assert {"gemm_gflops", "read_gb_per_s", "gemm_method", "read_method"} < set(found)
    double = Ceilings(CPU, dtype=torch.float64, smoke=True)
    assert double.calls["ceiling: gemm"]().dtype == torch.float64
    samples = {"ceiling: gemm": [1.0, 2.0, 9.0], "ceiling: read": [0.5, 0.5, 4.0]}
    exact = double.from_seconds(samples)
    assert exact["gemm_gflops"] == pytest.approx(2 * 64**3 / 2.0 / 1e9)
    assert exact["read_gb_per_s"] == pytest.approx(2**20 / 0.5 / 1e9)
    assert exact["gemm_dtype"] == "float64"


@pytest.fixture
def toy(monkeypatch):
    """Replace all cases by a toy: doubling."""
    calls: list[str] = []

    def wrong(inputs):
        def call():
            calls.append("wrong")
            return 2.001 * inputs["x"]

        return call

    def broken(inputs):
        raise RuntimeError("no such kernel\nwith details")

    def other_device(inputs):
        raise NotApplicableError("runs elsewhere")

    def not_installed(inputs):
        import a_package_that_is_not_there  # noqa: F401

    def slow(inputs):
        return lambda: 2 * inputs["x"] + 0

    size = Size("only", {"n": 3})
    case = Case(
        op="nnls",
        sizes=(size,),
        smoke=(size,),
        inputs=lambda size, seed, device: {"x": torch.ones(size.shape["n"])},
        truth=lambda inputs: 2 * inputs["x"].double(),
        implementations={
            "reference": lambda inputs: lambda: 2 * inputs["x"],
            "wrong": wrong,
            "broken": broken,
            "elsewhere": other_device,
            "absent": not_installed,
            "slow": slow,
        },
        tolerance={"float32": 1e-6},
        work=lambda size: Work(flops=3.0, bytes=24.0, items=size.shape["n"]),
    )
    monkeypatch.setattr(cases, "CASES", (case,))
    return calls


def test_wrong_and_broken_implementations_are_never_timed(toy, tmp_path):
    path = tmp_path / "records.jsonl"
    records = run_kernel_benchmarks(min_run_seconds=0.05, json_path=path)
    found = {r["impl"]: r for r in records}
    assert toy == ["wrong"]  # called once, to be verified
    assert {k: r["status"] for k, r in found.items()} == {
        "reference": "ok",
        "wrong": "failed",
        "broken": "failed",
        "elsewhere": "skipped",
        "absent": "skipped",
        "slow": "ok",
    }
    assert found["wrong"]["reason"] == "wrong: error 0.0005 above 1e-06"
    assert found["wrong"]["median_ms"] is None
    assert found["wrong"]["rates"] is None
    assert found["wrong"]["max_err"] == pytest.approx(5e-4, rel=1e-3)
    assert found["broken"]["reason"] == "RuntimeError: no such kernel"
    assert found["elsewhere"]["reason"] == "runs elsewhere"
    assert "a_package_that_is_not_there" in found["absent"]["reason"]
    seconds = found["slow"]["median_ms"] / 1e3
    assert found["slow"]["rates"]["items_per_s"] == pytest.approx(3 / seconds)
    table = records_table(records)
    line = next(x for x in table.splitlines() if " slow " in x)
    ratio = found["reference"]["median_ms"] / found["slow"]["median_ms"]
    assert f"{ratio:.2f} x" in line
    assert "failed" in next(x for x in table.splitlines() if " broken " in x)


def test_nothing_is_timed_where_nothing_is_right(toy):
    (case,) = get_cases()
    only = ("wrong", "broken")
    found = measure_problem(
        Problem(case, case.sizes[0], only=only), device=CPU, min_run_seconds=1, smoke=True
    )
    assert {r["status"] for r in found.values()} == {"failed"}
    assert set(found) == set(only)


def test_a_peer_with_another_result_is_held_to_a_truth_of_its_own(toy):
    def triple(inputs):
        return lambda: 3 * inputs["x"]

    exact = lambda inputs: 3 * inputs["x"].double()  # noqa: E731
    wrong = lambda inputs: 3.001 * inputs["x"].double()  # noqa: E731
    (case,) = get_cases()
    case.implementations.update({"other": triple, "other, wrong": triple, "same": triple})
    case.truths.update({"other": exact, "other, wrong": wrong})
    records = {r["impl"]: r["status"] for r in run_kernel_benchmarks(smoke=True)}
    assert records["other"] == "ok"
    assert records["other, wrong"] == records["same"] == "failed"


def test_convolutions_are_measured_in_full_float32(toy):
    seen = []

    def look(inputs):
        seen.append(torch.backends.cudnn.allow_tf32)
        return lambda: 2 * inputs["x"]

    (case,) = get_cases()
    case.implementations["look"] = look
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        run_kernel_benchmarks(smoke=True)
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert seen
    assert not any(seen)


def test_missing_peers_are_skipped_with_the_reason(monkeypatch, no_compiler):
    for name in ("torchnmf", "torchnmf.nmf", "nmf", "nmf.nmf_models"):
        monkeypatch.setitem(sys.modules, name, None)
    records = run_kernel_benchmarks(cases=["nnmf_mu"], smoke=True)
    skipped = {r["impl"]: r["reason"] for r in records if r["status"] == "skipped"}
    assert "not installed: torchnmf" in skipped["torchnmf"]
    assert "not installed: nmf" in skipped["nmf-torch"]
    assert skipped["torch.compile"] == "torch.compile found no C++ compiler"


def test_compiled_reference_without_a_compiler(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def no_compiler():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", no_compiler)
    with pytest.raises(NotApplicableError, match=r"found no C\+\+ compiler"):
        peers.compiled(lambda inputs: lambda: None)({"x": torch.ones(1)})


@pytest.mark.slow
def test_compiled_reference_is_right():
    records = run_kernel_benchmarks(cases=["nnmf_divergence"], smoke=True)
    found = {r["impl"]: r for r in records}["torch.compile"]
    assert found["status"] in ("ok", "skipped"), found["reason"]


def test_table_of_a_smoke_run(smoke):
    table = records_table(smoke[0])
    assert not re.search(r"\d\.\d\d x", table)  # no speeds from tiny problems
    assert not re.search(r"\d %", table)
    assert "Smoke run" in table
    for op in OPS:
        assert any(line.startswith(op) for line in table.splitlines())
    assert records_table([]) == "no records"


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"no benchmark case \['nmf'\]; choose from nnmf_mu"):
        run_kernel_benchmarks(cases=["nmf"])
    with pytest.raises(ValueError, match="min_run_seconds=0"):
        run_kernel_benchmarks(min_run_seconds=0)
    with pytest.raises(ValueError, match="nowhere"):
        run_kernel_benchmarks(device="nowhere")


def test_largest_error():
    truth = (torch.tensor([1.0, -4.0]), torch.tensor(2.0))
    assert largest_error(truth, truth) == 0
    assert largest_error((np.array([1.0, -4.4]), 2.0), truth) == pytest.approx(0.1)
    assert largest_error((np.array([1.0, -4.0]), 3.0), truth) == pytest.approx(0.5)
    assert largest_error(truth[:1], truth) == np.inf
    assert largest_error(torch.tensor([1.0, np.nan]), truth[0]) == np.inf
    assert largest_error(torch.zeros(3), truth[0]) == np.inf


def test_extra_peak_bytes_sees_what_a_call_takes():
    found = extra_peak_bytes(lambda: np.ones(30_000_000), device=CPU)  # 240 MB
    if found is None:
        pytest.skip("the peak resident set cannot be reset here")
    assert 200e6 < found < 400e6


@pytest.mark.needs_cuda
def test_smoke_run_on_cuda(no_compiler):
    records = run_kernel_benchmarks(device="cuda", smoke=True)
    assert {r["op"] for r in records} == set(OPS)
    for record in records:
        assert record["status"] in ("ok", "skipped"), record
        if record["impl"].startswith(("scikit-learn", "scipy", "pillow")):
            assert record["status"] == "skipped"
        if record["status"] == "ok":
            assert record["timer"] == "interleaved_cuda_events_l2_flushed"
            assert record["ceilings"]["gemm_gflops"] > 0
