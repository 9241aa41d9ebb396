"""Commands over several processes: what they write is what one process writes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nnmf_cuda.attacks import run_suite
from nnmf_cuda.attacks.suite import Budget
from nnmf_cuda.cli.main import main
from nnmf_cuda.distributed.crew import Crew
from nnmf_cuda.distributed.launched import is_launched
from nnmf_cuda.distributed.ranks import Ranks, RanksError
from nnmf_cuda.models import FeatureCNN
from nnmf_cuda.pipeline.environment import resolve_device
from nnmf_cuda.robustness import verify
from tests.distributed import commands
from tests.distributed.commands import together
from tests.distributed.team import Team, team_group
from tests.saved_runs import SMALL


def contents(folder: Path, name: str = "*") -> dict[str, bytes]:
    """Return what is in a folder, hidden files too."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.match(name)}


def deal(size: int) -> tuple[list[int], list[int], int]:
    crew, done = Crew(Ranks(team_group())), list[int]()

    def task(number: int) -> int:
        done.append(number)
        return 10 * number

    found = list(crew.each([lambda n=number: task(n) for number in range(5)]))
    return found, done, crew.first(lambda: 7)


def test_tasks_are_dealt_in_turn_and_all_know_all(team: Team) -> None:
    for rank, (found, done, first) in enumerate(team.run(deal, 3, 3, 3)):
        assert found == [0, 10, 20, 30, 40]
        assert done == list(range(rank, 5, 3))
        assert first == 7


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table of 21 images of two types, of which one cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    rng, lines = np.random.default_rng(0), ["file,label,place"]
    for number in range(21):
        pixels = rng.integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
        lines.append(f"{number:02}.png,{number % 2},place {number}")
    (folder / "09.png").write_bytes(b"no image")
    table = folder / "table.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_extract_is_that_of_one_process(
    team: Team, small_run: tuple[Path, str], images: Path, tmp_path: Path, suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    command = ["extract", str(images), f"--model={small_run[0]}", "--device=cpu"]
    command += ["--on_error=skip", "--batch_size=2", "--normalize"]
    found = []
    for size in (1, 2, 3):
        folder = tmp_path / str(size)
        folder.mkdir()
        out = f"--out={folder / 'features'}{suffix}"
        if size == 1:
            assert main([*command, out]) == 0
        else:
            assert "20 images" in together(team, size, *command, out)
        found.append(contents(folder))
    assert f"features{suffix}.failed.txt" in found[0]
    if suffix == ".npz":
        # Zip files hold the time.
        for number, files in enumerate(found, 1):
            del files["features.npz"]
            with np.load(tmp_path / str(number) / "features.npz") as saved:
                files |= {name: saved[name].tobytes() for name in saved.files}
    assert found[1] == found[2] == found[0]


def test_extract_names_all_that_cannot_be_read(
    team: Team, small_run: tuple[Path, str], images: Path, tmp_path: Path
) -> None:
    command = ["extract", str(images), f"--model={small_run[0]}", "--batch_size=2"]
    asked = commands.Asked([*command, f"--out={tmp_path / 'f.npy'}"])
    found = team.run(commands.do, asked, asked)
    assert isinstance(found[0], ValueError)
    assert isinstance(found[1], RanksError)
    assert "09.png" in str(found[0])
    assert contents(tmp_path, "*f.npy*") == {}


def torchrun(*arguments: str, size: int = 2) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )


def test_extract_goes_on_where_one_of_it_was_killed(
    small_run: tuple[Path, str], images: Path, tmp_path: Path
) -> None:
    names = ["--on_error=skip", "--batch_size=1", "--device=cpu"]
    command = ["extract", str(images), f"--model={small_run[0]}", *names]
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
    assert main([*command, f"--out={tmp_path / 'one' / 'f.npy'}"]) == 0
    died = tmp_path / "died"
    arguments = ["--max-restarts=1", "-m", "tests.distributed.commands", str(died)]
    done = torchrun(*arguments, *command, f"--out={tmp_path / 'two' / 'f.npy'}")
    assert done.returncode == 0, done.stderr
    assert died.exists()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_what_is_wrong_is_told_once(tmp_path: Path) -> None:
    command = ["verify", f"--model={tmp_path / 'none'}"]
    done = torchrun("-m", "nnmf_cuda", *command)
    assert done.returncode != 0
    assert len(re.findall("nnmf-cuda: error: ", done.stderr)) == 1
    assert done.stderr.count("Traceback") <= 1  # of torchrun itself
    assert not list(tmp_path.iterdir())


BUDGET = Budget(
    n_iter=4,
    n_restarts=1,
    n_cheap_restarts=2,
    eot_iter=2,
    surrogate_draws=2,
    pgd_iter=4,
    n_queries=6,
)


def suite(given: tuple[FeatureCNN, torch.Tensor, torch.Tensor], crew: Crew) -> dict[str, Any]:
    model, x, y = given
    other = FeatureCNN(6, 2)
    with torch.no_grad():
        for weight in other.parameters():
            weight.fill_(0.05)
    found = run_suite(
        *(model, x, y),
        attack_eps=0.3,
        budget=BUDGET,
        transfer_from={"another": other},
        known_points={"known": (x + 0.1).clamp(0, 1)},
        crew=crew,
    )
    return {
        "names": [outcome.name for outcome in found.outcomes],
        "points": torch.stack([outcome.points for outcome in found.outcomes]).numpy(),
        "margins": torch.stack([outcome.margins for outcome in found.outcomes]).numpy(),
        "calls": (found.calls.n_calls, found.calls.n_rows),
    }


def attack(given: tuple[FeatureCNN, torch.Tensor, torch.Tensor]) -> dict[str, Any]:
    return suite(given, Crew(Ranks(team_group())))


def test_attacks_find_what_they_find_on_one_process(team: Team) -> None:
    torch.manual_seed(0)
    model, x = FeatureCNN(6, 2).eval(), torch.rand(10, 6)
    given = model, x, model(x).argmax(1)
    alone = suite(given, Crew())
    for found in team.run(attack, given, given):
        assert found["names"] == alone["names"]
        assert found["calls"] == alone["calls"]
        for name in ("points", "margins"):
            np.testing.assert_array_equal(found[name], alone[name])


def test_evaluate_is_that_of_one_process(
    team: Team, small_run: tuple[Path, str], small_npz: Path, tmp_path: Path
) -> None:
    """The paper's preset, which is quick; `test_attacks_...` has what the others are made of."""
    import shutil

    found = []
    for size in (1, 2):
        home = tmp_path / str(size)
        shutil.copytree(small_run[0], home)
        command = ["evaluate", f"--model={home}", "--preset=paper", "--device=cpu", "--overwrite"]
        command += [f"--data={small_npz}"]
        if size == 1:
            assert main(command) == 0
        else:
            assert "the constant answer" in together(team, size, *command)
        with np.load(home / "robustness.npz") as saved:
            found.append({name: saved[name].tolist() for name in saved.files})
        numbers = json.loads((home / "robustness.json").read_text())
        found[-1] |= {name: numbers[name] for name in ("line", "pixels") if name in numbers}
    assert found[0] == found[1]


def prove(asked: tuple[Any, dict[str, Any]]) -> dict[str, Any]:
    (model, x, y), settings = asked
    found = verify(model, x, y, eps=0.2, seconds=60, crew=Crew(Ranks(team_group())), **settings)
    return found.as_dict() | {"points": found.counterexample}


def test_verify_is_that_of_one_process_whatever_number_goes_on(team: Team, tmp_path: Path) -> None:
    torch.manual_seed(3)
    layers = [nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2)]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 2
    x = torch.rand(16, 6)
    given, journal = (model, x, model(x).argmax(1)), tmp_path / "journal[1].jsonl"
    alone = verify(*given, eps=0.2, seconds=60)
    assert (alone.seconds["search"] > 0).sum() > 3, "nothing is dealt: take another seed"
    asked = (given, {"resume": journal})
    for found in team.run(prove, asked, asked, asked):
        assert found["status"] == alone.status.tolist()
        assert found["lower_bound"] == alone.as_dict()["lower_bound"]
        assert found["n_boxes"] == alone.n_boxes.tolist()
        np.testing.assert_array_equal(found["points"], alone.counterexample)
    assert [path.name for path in tmp_path.iterdir()] == [journal.name]
    # Of a start of other processes that was stopped there are parts, the last line of one cut.
    head, *lines = journal.read_text().splitlines()
    assert len(lines) == len(given[1])
    journal.write_text("\n".join([head, *lines[:2]]) + "\n")
    (tmp_path / f"{journal.name}.rank-0").write_text("\n".join([head, *lines[2:5]]) + "\n")
    (tmp_path / f"{journal.name}.rank-3").write_text("\n".join([head, lines[5], lines[6][:9]]))
    for found in team.run(prove, asked, asked):
        assert found["status"] == alone.status.tolist()
    assert [path.name for path in tmp_path.iterdir()] == [journal.name]
    after = journal.read_text().splitlines()
    assert after[:7] == [head, *lines[:6]]
    assert sorted(json.loads(line)["sample"] for line in after[1:]) == list(range(len(given[1])))


def test_several_runs_are_those_of_one_process(team: Team, small_npz: Path, tmp_path: Path) -> None:
    command = ["run", f"--data={small_npz}", "--seeds=2", *SMALL]
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert main([*command, f"--out={alone}"]) == 0
    printed = together(team, 2, *command, f"--out={both}")
    assert [line[:7] for line in printed.splitlines()[:2]] == ["seed 0:", "seed 1:"]
    assert (both / "summary.json").read_text() == (alone / "summary.json").read_text()
    for seed in range(2):
        one, other = (np.load(out / f"seed_{seed}" / "adversarial.npz") for out in (alone, both))
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])
    # Started again it keeps what is finished, and makes what is not.
    kept = (both / "seed_0" / "metrics.json").stat().st_mtime_ns
    (both / "seed_1" / "metrics.json").unlink()
    together(team, 3, *command, f"--out={both}", restarted=True)
    assert (both / "seed_0" / "metrics.json").stat().st_mtime_ns == kept
    assert (both / "summary.json").read_text() == (alone / "summary.json").read_text()


@pytest.mark.parametrize("command", ["extract", "evaluate", "verify", "run"])
def test_a_start_after_one_that_was_refused_replaces_nothing(
    team: Team, small_run: tuple[Path, str], small_npz: Path, tmp_path: Path, command: str
) -> None:
    """What is there was there before the first start, which has failed for it."""
    import shutil

    home = tmp_path / "home"
    shutil.copytree(small_run[0], home)
    options = {
        "extract": [str(small_npz), f"--model={home}", f"--out={tmp_path / 'kept.npy'}"],
        "evaluate": [f"--model={home}"],
        "verify": [f"--model={home}", "--undefended"],
        "run": [f"--data={small_npz}", f"--out={home}", *SMALL],
    }[command]
    present = {
        "extract": tmp_path / "kept.npy",
        "evaluate": home / "robustness.json",
        "verify": home / "verification.json",
        "run": home / "metrics.json",
    }[command]
    present.write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"exists|already holds"):
        together(team, 2, command, *options, restarted=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_is_not_divided_is_done_by_rank_0(
    team: Team, small_run: tuple[Path, str], small_npz: Path
) -> None:
    asked = commands.Asked(["predict", str(small_npz), f"--model={small_run[0]}", "--device=cpu"])
    (printed, said), (nothing, silence) = team.run(commands.do, asked, asked)
    assert len(printed.splitlines()) == 61
    assert "predict is not divided: rank 0 does it alone" in said
    assert nothing == silence == ""


@pytest.mark.parametrize(
    ("change", "expected"),
    [({}, True), ({"WORLD_SIZE": "1"}, False), ({"MASTER_PORT": None}, False)],
)
def test_who_is_launched(change: dict[str, str | None], expected: bool) -> None:
    environ = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"} | change
    given = {name: value for name, value in environ.items() if value is not None}
    assert is_launched(given) is expected


@pytest.mark.parametrize(("name", "taken"), [("auto", [1]), ("cuda", [1]), ("cuda:0", [])])
def test_each_process_takes_a_gpu_of_its_machine(
    monkeypatch: pytest.MonkeyPatch, name: str, taken: list[int]
) -> None:
    of_third = {"RANK": "7", "LOCAL_RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "a"}
    for variable, value in (of_third | {"MASTER_PORT": "1"}).items():
        monkeypatch.setenv(variable, value)
    devices: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    assert resolve_device(name).type == "cuda"
    assert devices == taken
