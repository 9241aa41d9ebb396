"""What others read: ONNX that answers as the network, VNN-LIB that says what is to be proved."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nnmf_cuda.cli.main import main
from nnmf_cuda.models import FeatureCNN
from nnmf_cuda.models.networks import FeatureMLP
from nnmf_cuda.robustness import export_onnx, export_vnnlib


def test_vnnlib_says_which_ball_and_which_classes(tmp_path: Path) -> None:
    x = torch.tensor([[0.05, 0.5, 1.0], [0.1, 1e-7, 0.3]])
    paths = export_vnnlib(x, torch.tensor([1, 0]), tmp_path / "out", eps=0.1, n_classes=3)
    assert [path.name for path in paths] == ["sample_00000.vnnlib", "sample_00001.vnnlib"]
    for path, row, label in zip(paths, x.double(), (1, 0), strict=True):
        text = path.read_text()
        assert "e" not in re.sub(r"[a-z]{2,}", "", text)  # no exponents
        for sign, want in ((">=", (row - 0.1).clamp(min=0)), ("<=", (row + 0.1).clamp(max=1))):
            found = re.findall(rf"\(assert \({sign} X_(\d) ([0-9.]+)\)\)", text)
            assert [int(i) for i, _ in found] == [0, 1, 2]
            assert [float(value) for _, value in found] == want.tolist()
        others = [j for j in range(3) if j != label]
        assert text.splitlines()[-1] == "(assert (or {}))".format(
            " ".join(f"(and (>= Y_{j} Y_{label}))" for j in others)
        )
        assert text.count("(") == text.count(")")
    (path,) = export_vnnlib(x[:1], torch.tensor([1]), tmp_path, eps=0.1, n_classes=2)
    assert path.read_text().splitlines()[-1] == "(assert (>= Y_0 Y_1))"
    with pytest.raises(ValueError, match=r"y must be within 0\.\.1"):
        export_vnnlib(x, torch.tensor([1, 2]), tmp_path, eps=0.1, n_classes=2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"eps": -0.1}, "eps must be finite and > 0"),
        ({"eps": float("nan")}, "eps must be finite and > 0"),
        ({"eps": torch.tensor([0.1, 0.1])}, "eps must be a number, or"),
        ({"box": (0.6, 1.0)}, "x must be inside the box, 3 of 3"),
        ({"x": torch.tensor([[0.5, float("nan"), 0.5]])}, "x must be inside the box, 1 of 3"),
        ({"n_classes": 1}, "n_classes must be at least 2"),
        ({"y": torch.tensor([0, 0])}, "y shape"),
    ],
)
def test_vnnlib_of_no_ball_is_refused(change: dict[str, object], says: str, tmp_path: Path) -> None:
    """A ball without a point is unsatisfiable: a verifier would call the sample proven."""
    asked = {"x": torch.full((1, 3), 0.5), "y": torch.tensor([0]), "eps": 0.1, "n_classes": 2}
    with pytest.raises(ValueError, match=says):
        export_vnnlib(**(asked | change), path=tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "n"),
    [
        (FeatureCNN(15, 2), 15),
        (FeatureCNN(6, 3), 6),
        (FeatureMLP(5, 2, (8, 4)), 5),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), 3),
    ],
)
def test_onnx_answers_as_the_network(model: nn.Module, n: int, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "net.onnx"
    export_onnx(model, path, n_features=n)
    made = onnx.load(path)
    evaluator = onnx.reference.ReferenceEvaluator(made)
    x = torch.rand(7, n)
    found = np.concatenate([evaluator.run(None, {"x": row[None].numpy()})[0] for row in x])
    np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-5)
    kept = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    for i, weight in enumerate(list(model.parameters())):
        name = f"{'bias' if i % 2 else 'weight'}_{i // 2}"
        assert (kept[name].ravel() == weight.detach().numpy().ravel()).all()


def test_onnx_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    path = tmp_path / "net.onnx"
    with pytest.raises(ValueError, match="only float32"):
        export_onnx(FeatureCNN(4, 2).double(), path, n_features=4)
    with pytest.raises(ValueError, match="cannot be verified"):
        export_onnx(nn.Linear(4, 2), path, n_features=4)
    with pytest.raises(ValueError, match="n_features must be 5"):
        export_onnx(FeatureMLP(5, 2, (3,)), path, n_features=4)
    assert not path.exists()


def test_onnx_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'nnmf-cuda\[export\]'"):
        export_onnx(FeatureCNN(4, 2), tmp_path / "net.onnx", n_features=4)


def test_export_command(
    small_run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    out = tmp_path / "out"
    command = ["export", f"--model={small_run[0]}", f"--out={out}", "--samples=3"]
    assert main(command) == 2
    assert "a DefendedClassifier cannot be verified" in capsys.readouterr().err
    assert main([*command, "--undefended", "--overwrite"]) == 0
    rows = (out / "instances.csv").read_text().splitlines()
    assert rows == [f"classifier.onnx,sample_{i:05d}.vnnlib,60.0" for i in range(3)]
    features = np.load(small_run[0] / "features.npz")
    eps = json.loads((small_run[0] / "metrics.json").read_text())["attacks"]["defended"][
        "attack_eps"
    ]
    text = (out / "sample_00002.vnnlib").read_text()
    low = max(float(features["x_test"][2, 0]) - eps, 0)
    assert f"(assert (>= X_0 {np.format_float_positional(low, trim='0')}))" in text
    assert f"; label {features['y_test'][2]}" in text
    assert main([*command, "--undefended"]) == 2
    assert "is not empty" in capsys.readouterr().err
