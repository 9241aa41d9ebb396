"""Another model under the same name is another, whatever of it has changed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nnmf_cuda.comparison.fingerprints import fingerprint_of
from nnmf_cuda.comparison.plan import Plan
from nnmf_cuda.comparison.users import user_systems
from nnmf_cuda.pipeline.config import DataConfig

MODULE = """
import os
import numpy as np
import torch
from sklearn.naive_bayes import GaussianNB as Kind
from given_parts import Scale

SCALE = float(os.environ.get("SCALE", 1))
W = SCALE * np.ones((4, 2), np.float32)
net = torch.nn.Sequential(Scale(), torch.nn.Flatten(), torch.nn.Linear(4, 2))
net[2].weight.data = torch.full((2, 4), SCALE)
net[2].bias.data.zero_()


def by_numpy(images):
    return images.reshape(len(images), 4) @ W
"""
PARTS = """
import torch


class Scale(torch.nn.Module):
    def forward(self, images):
        return images * 2
"""


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.chdir(tmp_path)

    def fingerprints(module: str = MODULE, parts: str = PARTS) -> list[str]:
        (tmp_path / "given_models.py").write_text(module)
        (tmp_path / "given_parts.py").write_text(parts)
        for name in ("given_models", "given_parts"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        importlib.invalidate_caches()
        given = ("given_models:net", "given_models:by_numpy")
        return [one.fingerprint for one in user_systems(given, ("given_models:Kind",))]

    return fingerprints


def test_source_and_numbers_count(
    found: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, function, kind = found()
    assert found() == [net, function, kind]
    assert len({net, function, kind}) == 3
    assert not set(found(MODULE + "# changed\n")) & {net, function, kind}
    other = found(parts=PARTS.replace("* 2", "* -3"))
    assert other[0] != net  # made of another class
    assert other[1:] == [function, kind]
    monkeypatch.setenv("SCALE", "2")
    scaled = found()
    assert scaled[0] != net
    assert scaled[1] != function
    assert scaled[2] == kind


def test_they_are_part_of_what_is_gone_on_with(found: Callable[..., list[str]]) -> None:
    found()
    plans = [
        Plan(systems=user_systems((path,), ()), data=DataConfig(), splits=()).key()
        for path in ("given_models:net", "given_models:by_numpy")
    ]
    assert [name for name in plans[0] if name.startswith("model.")] == ["model.given_models:net"]
    assert plans[0]["model.given_models:net"] != plans[1]["model.given_models:by_numpy"]


class _State(nn.Module):
    def __init__(self, state: object) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None:
        self.state = state


def test_any_state_of_a_module_has_a_fingerprint() -> None:
    def of(model: nn.Module) -> str:
        return fingerprint_of("given:net", model)

    assert of(_State({"a": 1})) == of(_State({"a": 1})) != of(_State({"a": 2}))
    sparse = nn.Module()
    sparse.register_buffer("w", torch.eye(3).to_sparse())
    assert of(sparse)
    half = nn.Linear(2, 1).bfloat16()
    scalar = nn.Module()
    scalar.register_buffer("w", torch.tensor(3.0))
    assert of(half) != of(scalar)
    with pytest.raises(ValueError, match="given:net: _extra_state of the model cannot be told"):
        of(_State(lambda: None))


def test_weights_beside_an_onnx_file_count(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "net.onnx"

    def saved(scale: float) -> str:
        weights = onnx.numpy_helper.from_array(np.full((32, 32), scale, np.float32), "w")
        places = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 32])
            for name in ("x", "y")
        ]
        node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
        graph = onnx.helper.make_graph([node], "net", places[:1], places[1:], [weights])
        options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
        (tmp_path / "weights.bin").unlink(missing_ok=True)
        onnx.save_model(onnx.helper.make_model(graph), str(path), **options)
        return fingerprint_of(str(path), None)

    first, bytes_of_file = saved(1.0), path.read_bytes()
    second = saved(2.0)
    assert path.read_bytes() == bytes_of_file
    assert first != second
    assert saved(1.0) == first
