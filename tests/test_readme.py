"""The Python examples of README.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("code", EXAMPLES, ids=[code.splitlines()[-1][:40] for code in EXAMPLES])
def test_the_example_runs(
    code: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "load_model" in code:
        pytest.skip("needs a saved run; tests/pipeline covers it")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)  # for what an example writes
    exec(compile(code, str(README), "exec"), {"__name__": "readme"})
    pyplot.close("all")
    out = capsys.readouterr().out
    assert out
    if "select_rank" in code:
        assert out.startswith("4 ")


def test_every_example_is_found() -> None:
    assert len(EXAMPLES) == README.read_text(encoding="utf-8").count("```python") == 8
