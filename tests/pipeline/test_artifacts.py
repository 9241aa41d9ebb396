from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nnmf_cuda import load_model
from nnmf_cuda.models.networks import build_classifier
from nnmf_cuda.pipeline.artifacts import save_model
from nnmf_cuda.pipeline.config import DefenceConfig


@pytest.fixture
def model_dir(small_run: tuple[Path, str], tmp_path: Path) -> Path:
    shutil.copytree(small_run[0] / "model", tmp_path / "model")
    return tmp_path / "model"


def test_load_model_takes_the_run_or_its_model_folder(
    small_run: tuple[Path, str], model_dir: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128), dtype=np.uint8)
    a, b = load_model(small_run[0]), load_model(model_dir)
    assert torch.equal(a.features(images), b.features(images))
    assert np.array_equal(a.predict_proba(images), b.predict_proba(images))


def test_save_and_load_keep_every_number(model_dir: Path, tmp_path: Path) -> None:
    model = load_model(model_dir)
    save_model(model, tmp_path / "copy")
    copied = load_model(tmp_path / "copy")
    for part in ("extractor", "classifier", "defended"):
        for name, tensor in getattr(model, part).state_dict().items():
            assert torch.equal(tensor, getattr(copied, part).state_dict()[name])
    assert copied.diffusion == model.diffusion
    assert copied.label_names == model.label_names


@pytest.mark.parametrize("network", ["cnn", "mlp"])
def test_a_defence_is_loaded_as_it_was_trained(
    model_dir: Path, tmp_path: Path, network: str
) -> None:
    model = load_model(model_dir)
    n_features, n_classes = model.extractor.n_features, len(model.label_names)
    defence = DefenceConfig("adversarial", method="mtl-ibp", network=network, hidden=(9, 7))
    own = build_classifier(network, n_features, n_classes, defence.hidden)
    trained = replace(model, defended=own, robust_classifier=own, defence=defence)
    save_model(trained, tmp_path / "trained")
    loaded = load_model(tmp_path / "trained")
    assert type(loaded.defended) is type(own)
    assert loaded.defended is loaded.robust_classifier
    assert loaded.defence == defence
    x = torch.rand(5, n_features)
    assert torch.equal(loaded.defended(x), own(x))


def test_models_of_before_networks_could_be_chosen_are_cnns(
    model_dir: Path, tmp_path: Path
) -> None:
    model = load_model(model_dir)
    own = build_classifier("cnn", model.extractor.n_features, len(model.label_names))
    trained = replace(
        model, defended=own, robust_classifier=own, defence=DefenceConfig("adversarial")
    )
    save_model(trained, tmp_path / "old")
    written = json.loads((tmp_path / "old" / "model.json").read_text())
    for name in ("network", "hidden", "ibp_weight", "class_weight", "eps_ramp"):
        del written["defence"][name]
    (tmp_path / "old" / "model.json").write_text(json.dumps(written))
    loaded = load_model(tmp_path / "old")
    assert loaded.defence == DefenceConfig("adversarial")
    x = torch.rand(5, own.n_features)
    assert torch.equal(loaded.defended(x), own(x))


def test_an_answer_depends_on_the_image_and_the_seed_alone(model_dir: Path) -> None:
    model = load_model(model_dir)
    images = np.random.default_rng(0).integers(0, 256, (5, 128, 128), dtype=np.uint8)
    together = model.predict_proba(images, seed=1)
    alone = np.concatenate([model.predict_proba(image[None], seed=1) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert np.abs(model.predict_proba(images, seed=2) - together).max() > 0


def test_features_have_a_gradient_to_pixels(model_dir: Path) -> None:
    model = load_model(model_dir)
    images = torch.rand(2, 128, 128, requires_grad=True)
    model.features(images)[:, 0].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0


@pytest.mark.needs_cuda
def test_model_computes_the_same_on_cuda(model_dir: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 128, 128), dtype=np.uint8)
    on_cpu, on_cuda = load_model(model_dir), load_model(model_dir, device="cuda")
    # Convolutions on CUDA may use TF32, whose mantissa has 10 bits.
    np.testing.assert_allclose(
        on_cpu.predict_proba(images), on_cuda.predict_proba(images), atol=5e-3
    )


def _rewrite(model_dir: Path, **changes: object) -> None:
    path = model_dir / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_load_model_rejects_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model here \(model.json is missing\)"):
        load_model(tmp_path)


def test_load_model_rejects_another_version(model_dir: Path) -> None:
    _rewrite(model_dir, format_version=99, nnmf_cuda="7.0")
    with pytest.raises(ValueError, match="written in format 99 by nnmf-cuda 7.0, but this is"):
        load_model(model_dir)


def test_load_model_rejects_damaged_weights(model_dir: Path) -> None:
    weights = model_dir / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="model.safetensors: damaged"):
        load_model(model_dir)
    weights.unlink()
    with pytest.raises(ValueError, match="model.safetensors: missing"):
        load_model(model_dir)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format_version": 1}'])
def test_load_model_rejects_a_damaged_description(model_dir: Path, text: str) -> None:
    (model_dir / "model.json").write_text(text)
    with pytest.raises(ValueError, match="model.json: damaged"):
        load_model(model_dir)


def test_load_model_rejects_a_description_of_other_weights(model_dir: Path) -> None:
    _rewrite(model_dir, n_features=7)
    with pytest.raises(ValueError, match="does not describe the weights beside it"):
        load_model(model_dir)


def test_features_reject_images_of_another_size(model_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"images must have shape \(n, 128, 128\)"):
        load_model(model_dir).features(np.zeros((1, 64, 64), dtype=np.uint8))
