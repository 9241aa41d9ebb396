"""Figures and Markdown tables from records."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.plot import bound_ms, latest_records, plot_records, write_parts
from bench.tables import markdown_table
from nnmf_cuda.benchmarks.records import MEASURED, read_records

MACHINE = {
    "device": "cpu",
    "device_name": "Some CPU",
    "cpu_count": 4,
    "cpu_isa": "avx2",
    "load_average": 0.5,
    "threads": 2,
    "torch": "2.13.0",
    "cuda": None,
    "nnmf_cuda": "0.1.0",
    "commit": "0123456789abcdef",
    "uncommitted_changes": False,
    "date": "2026-01-02T03:04:05+00:00",
    "smoke": False,
}
CEILINGS = {"gemm_gflops": 100.0, "read_gb_per_s": 10.0}


def record(suite="kernels", impl="ours", median_ms=2.0, **fields):
    shape = {"n_samples": 30, "n_features": 40, "n_components": 5}
    rates = {"gflops": 50.0, "gemm_share": 0.5, "gb_per_s": 1.0, "read_share": 0.1}
    return {
        "suite": suite,
        "run": "2026-01-02",
        "op": "nnmf_mu",
        "size": "paper",
        "impl": impl,
        "served_by": {"ours": "kernel", "reference": "reference"}.get(impl.split()[0], "library"),
        "shape": shape,
        "dtype": "float32",
        "options": {"beta_loss": 1.0},
        **MEASURED,
        "status": "ok",
        "median_ms": median_ms,
        "p25": median_ms,
        "p75": median_ms,
        "max_err": 1e-7,
        "flops": 1e8,
        "bytes": 1e6,
        "ceilings": CEILINGS,
        "rates": {**rates, "items_per_s": None},
        **MACHINE,
        **fields,
    }


def one_of_each():
    fit = {"op": "fit", "options": {"beta_loss": "frobenius"}, "iterations": 50, "goal": 3.0}
    fit |= {"objective": 2.75, "flops": None, "bytes": None, "rates": None}
    of_x = {"op": "memory of a fit", "x_bytes": 2**20, "peak_bytes": 2**18}
    along = [
        record("scaling", options={"beta_loss": 1.0, "axis": axis}, shape=shape, threads=threads)
        for axis, shape, threads in (
            ("n_samples", {"n_samples": 10, "n_features": 4, "n_components": 2}, 2),
            ("n_samples", {"n_samples": 20, "n_features": 4, "n_components": 2}, 2),
            ("threads", {"n_samples": 20, "n_features": 4, "n_components": 2}, 1),
        )
    ]
    missing = {"status": "skipped", "reason": "not installed: torchnmf", "median_ms": None}
    return [
        record(impl="reference", median_ms=8.0),
        record(impl="ours", median_ms=2.0),
        record(impl="torchnmf", **missing, p25=None, p75=None, rates=None),
        record("convergence", "scikit-learn cd", 3000.0, **fit),
        record("convergence", "ours hals", 500.0, **fit),
        record("memory", **of_x),
        *along,
    ]


@pytest.fixture
def write(tmp_path):
    def write(records, name="records.jsonl"):
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(r)}\n" for r in records))
        return path

    return write


def cells(table):
    """Return a Markdown table without what pads its cells."""
    return re.sub(" +", " ", table)


def texts(path):
    return " ".join("".join(e.itertext()) for e in ElementTree.parse(path).iter())


def test_figures_show_the_records(write, tmp_path):
    written = plot_records([write(one_of_each())], out=tmp_path / "new")
    assert [p.name for p in written] == ["kernels.svg", "scaling.svg", "convergence.svg"]
    kernels, scaling, convergence = (texts(p) for p in written)
    assert "nnmf_mu KL, paper float32 (30 x 40 x 5)" in kernels
    assert "2 ms" in kernels
    assert "8 ms" in kernels
    assert "torchnmf" not in kernels  # was not measured
    assert "samples (n)" in scaling
    assert "threads" in scaling
    assert "components (k)" not in scaling  # no record
    assert "0.5 s, 50 iterations" in convergence


def test_figures_are_the_same_again(write, tmp_path):
    path = write(one_of_each())
    first = [p.read_bytes() for p in plot_records([path], out=tmp_path / "a")]
    again = [p.read_bytes() for p in plot_records([path], out=tmp_path / "b")]
    assert first == again
    other = one_of_each()
    other[1]["median_ms"] = 2.5
    changed = plot_records([write(other, "other.jsonl")], out=tmp_path / "c")
    assert changed[0].read_bytes() != first[0]
    assert changed[1].read_bytes() == first[1]


def test_newest_run_of_a_problem_counts(write):
    old = [record(impl=impl, median_ms=9.0, run="2025-12-31") for impl in ("ours", "reference")]
    other = record(op="nnls", run="2025-12-31")
    tiny = record(smoke=True, run="2026-02-01")
    new = record(median_ms=1.0)
    assert latest_records([*old, other, tiny, new]) == [other, tiny, new]


def test_smoke_records_are_drawn_only_where_there_are_no_others(write, tmp_path):
    tiny = [record(impl=impl, op="nnls", smoke=True) for impl in ("reference", "ours")]
    real = [record(impl=impl) for impl in ("reference", "ours")]
    (mixed,) = plot_records([write([*real, *tiny])], out=tmp_path / "mixed")
    assert "nnls" not in texts(mixed)
    (alone,) = plot_records([write(tiny)], out=tmp_path / "alone")
    assert "nnls" in texts(alone)


@pytest.mark.parametrize(
    ("flops", "n_bytes", "bound"),
    [(1e8, 1e6, 1.0), (1e6, 1e8, 10.0), (None, 1e8, 10.0), (1e8, None, 1.0), (None, None, None)],
)
def test_bound_is_the_stricter_ceiling(flops, n_bytes, bound):
    found = bound_ms(record(flops=flops, bytes=n_bytes))
    assert found == (None if bound is None else pytest.approx(bound))


def test_markdown_table_has_the_figures():
    rows = [r for r in one_of_each() if r["suite"] == "kernels"]
    lines = cells(markdown_table(rows)).splitlines()
    assert all(line.count("|") == lines[0].count("|") for line in lines[:5])
    ours = next(line for line in lines if "| ours |" in line)
    assert "| 2.000 ms |" in ours
    assert "| 4.00 x |" in ours
    assert "| 50 % |" in ours
    assert "not installed: torchnmf" in lines[4]
    assert (
        "Some CPU (cpu, avx2), 2 threads, torch 2.13.0, commit 0123456789, 2026-01-02" in lines[-1]
    )
    assert "100 GFLOP/s of matrix products, 10 GB/s read" in lines[-1]
    assert markdown_table([]) == "No records yet."


def test_records_of_several_runs_name_all_of_them():
    later = {"commit": "fedcba9876543210", "date": "2026-02-03T01:00:00+00:00"}
    rows = [record(**later, torch="2.14.0", uncommitted_changes=True), record(), record()]
    said = (
        "torch 2.13.0, 2.14.0, commits 0123456789, fedcba9876 with changes, "
        "2026-01-02 to 2026-02-03."
    )
    assert said in markdown_table(rows)
    assert said in markdown_table(rows[::-1])


def test_convergence_and_memory_tables():
    rows = {
        suite: [r for r in one_of_each() if r["suite"] == suite]
        for suite in ("convergence", "memory")
    }
    ours = next(x for x in cells(markdown_table(rows["convergence"])).splitlines() if "hals" in x)
    assert "| 0.50 s | 6.00 x | 50 | 2.75 |" in ours
    assert "| 25.0 % |" in cells(markdown_table(rows["memory"]))


def test_page_is_filled_in_and_again(write, tmp_path):
    page = tmp_path / "page.md"
    names = ("kernels", "scaling", "convergence", "memory", "stages")
    empty = "".join(f"# {n}\n<!-- {n} -->\n<!-- /{n} -->\n" for n in names)
    page.write_text(empty)
    path = write(one_of_each())
    assert page in plot_records([path], out=tmp_path / "figures", page=page)
    filled = page.read_text()
    assert cells(filled).count("| ours |") == 5
    links = re.findall(r"!\[\w+\]\((.*)\)", filled)
    assert links == [f"figures/{n}.svg" for n in ("kernels", "scaling", "convergence")]
    assert all((tmp_path / link).exists() for link in links)
    plot_records([path], out=tmp_path / "figures", page=page)
    assert page.read_text() == filled
    write_parts(page, {"memory": r"0 \1 \n"})
    assert "<!-- memory -->\n0 \\1 \\n\n<!-- /memory -->" in page.read_text()
    with pytest.raises(ValueError, match="has no lines '<!-- other -->'"):
        write_parts(page, {"other": "x"})


def test_the_page_of_the_docs_has_every_part(write, tmp_path):
    source = Path(__file__).parents[2] / "docs" / "benchmarks.md"
    if not source.exists():
        pytest.skip("the docs are not beside these tests")
    page = tmp_path / "benchmarks.md"
    page.write_text(source.read_text("utf-8"), "utf-8")
    plot_records([write(one_of_each())], out=tmp_path / "benchmarks", page=page)
    assert page.read_text("utf-8").count("Some CPU") == 4


def test_bad_records_are_named(write, tmp_path):
    with pytest.raises(ValueError, match='no benchmark records .*without "suite", .* ignored'):
        plot_records([write([{"op": "stages"}])], out=tmp_path)
    with pytest.raises(ValueError, match=r"several machines: Other \(cpu\), Some CPU \(cpu\)"):
        plot_records([write([record(), record(device_name="Other")])], out=tmp_path)
    path = tmp_path / "broken.jsonl"
    path.write_text('{"suite": ')
    with pytest.raises(ValueError, match=r"broken.jsonl, line 1 is not JSON"):
        read_records([path])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"suite": "kernels"}', "is a record of kernels without run, op, size"),
        (b'{"suite": "other"}', "is of no known suite: 'other'"),
        (b'{"suite": ["kernels"]}', "is of no known suite"),
        (b"3", "is not a record: 3"),
        (b'"suite"', 'is not a record: "suite"'),
        (b"null", "is not a record: null"),
        (b"\x80\xff\x00", "is not JSON: .*utf-8"),
    ],
)
def test_odd_lines_are_named(tmp_path, line, message):
    path = tmp_path / "odd.jsonl"
    good = json.dumps(record()).encode()
    path.write_bytes(good + b"\n\n" + line + b"\n")
    with pytest.raises(ValueError, match=f"odd.jsonl, line 3 {message}"):
        read_records([path])


def test_blank_lines_and_other_records_are_passed_over(tmp_path):
    path = tmp_path / "mixed.jsonl"
    good = json.dumps(record()).encode()
    path.write_bytes(b'\n  \r\n{"op": "stages"}\n{}\n' + good + b"\r\n")
    assert read_records([path]) == [record()]
    with pytest.raises(ValueError, match=r"cannot read .*none.jsonl: No such file"):
        read_records([tmp_path / "none.jsonl"])


@pytest.mark.parametrize("suite", ["kernels", "scaling", "convergence", "memory"])
def test_what_figures_read_is_asked_of_each_record(write, suite):
    whole = next(r for r in one_of_each() if r["suite"] == suite)
    for key in ("date", "median_ms", *({"iterations", "x_bytes"} & whole.keys())):
        path = write([{k: v for k, v in whole.items() if k != key}])
        with pytest.raises(ValueError, match=f"line 1 is a record of {suite} without {key}$"):
            read_records([path])


def test_nothing_is_drawn_where_it_cannot_be_used(write, tmp_path):
    path, out = write(one_of_each()), tmp_path / "figures"
    page = tmp_path / "page.md"
    for text in (None, "<!-- kernels -->\n<!-- /kernels -->\n"):
        if text is not None:
            page.write_text(text)
        message = "cannot read the page" if text is None else "has no lines '<!-- scaling -->'"
        with pytest.raises(ValueError, match=message):
            plot_records([path], out=out, page=page)
        assert not out.exists()
    with pytest.raises(ValueError, match=r"records.jsonl is a file; the figures need a directory"):
        plot_records([path], out=path)


def test_command_line(tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    bench = ["kernels", "--case", "[nnls]", "--smoke", "--device", "cpu"]
    assert main([*bench, "--json", str(path)]) == 0
    assert "Smoke run" in capsys.readouterr().out
    assert main(["plot", str(path), "--out", str(tmp_path / "figures")]) == 0
    assert "kernels.svg" in capsys.readouterr().out
    assert (tmp_path / "figures" / "kernels.svg").exists()
    assert main(["kernels", "--case", "[nothing]"]) == 2
    assert "no benchmark case" in capsys.readouterr().err


KINDS = (
    *("kernels", "scaling", "convergence", "memory", "out_of_core", "two_ranks", "equality"),
    *("break_even", "plot", "page"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_help(kind, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([kind, "--help"])
    assert stopped.value.code == 0
    assert f"python -m bench [options] {kind}" in capsys.readouterr().out


def test_the_list_of_benchmarks_names_all(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"    {kind} " in shown for kind in KINDS)
