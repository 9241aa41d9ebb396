from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nnmf_cuda.data import load_dataset
from nnmf_cuda.models.features import l2_normalize
from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser, FeatureMLP
from nnmf_cuda.nnmf.estimator import NNMF
from nnmf_cuda.pipeline.config import (
    PRESETS,
    AttackConfig,
    ClassifierConfig,
    DefenceConfig,
    DiffusionConfig,
    ExperimentConfig,
    NNMFConfig,
    SelectionConfig,
)
from nnmf_cuda.pipeline.defences import (
    assemble,
    fit_defence,
    purifier_of,
    train_adversarially,
)
from nnmf_cuda.pipeline.features import choose_n_selected, extract_features, of_equal_sums
from nnmf_cuda.pipeline.stages import run_stages
from nnmf_cuda.timing import StageTimer
from nnmf_cuda.training import ImageSamples, train_pixel_classifier, train_robust_classifier

CPU = torch.device("cpu")


def test_paper_preset_holds_the_papers_settings() -> None:
    paper = PRESETS["paper"]
    assert paper == ExperimentConfig()
    assert (paper.nnmf.n_components, paper.nnmf.beta_loss) == (15, "kullback-leibler")
    assert (paper.diffusion.timesteps, paper.diffusion.n_draws) == ((41,), 8)
    assert (paper.attack.attack_eps, paper.attack.norm) == (0.10, "Linf")
    assert paper.attack.attacks == ("apgd-ce", "square")


def test_the_library_alone_repeats_a_stage(small_npz: Path) -> None:
    config = ExperimentConfig(nnmf=NNMFConfig(n_components=5, max_iter=10), seed=7)
    dataset = load_dataset(small_npz)
    features = extract_features(dataset, config, device=CPU)
    alone = NNMF(n_components=5, max_iter=10, tol=0, random_state=7).fit(dataset.matrix("train"))
    np.testing.assert_array_equal(features.nnmf.components_, alone.components_)
    coefficients = torch.from_numpy(alone.transform(dataset.matrix("test")))
    torch.testing.assert_close(features.x["test"], l2_normalize(coefficients))


def test_features_use_the_training_split_alone(small_npz: Path) -> None:
    config = ExperimentConfig(
        nnmf=NNMFConfig(n_components=5, max_iter=10), selection=SelectionConfig(3)
    )
    dataset = load_dataset(small_npz)
    features = extract_features(dataset, config, device=CPU)
    changed = dataset.images.copy()
    changed[dataset.split == "test"] = 255 - changed[dataset.split == "test"]
    other = extract_features(
        type(dataset)(**(vars(dataset) | {"images": changed})), config, device=CPU
    )
    assert torch.equal(features.extractor.components, other.extractor.components)
    assert torch.equal(features.extractor.selected, other.extractor.selected)
    assert torch.equal(features.x["train"], other.x["train"])
    assert not torch.equal(features.x["test"], other.x["test"])


def test_features_have_length_one_and_the_selected_width(small_npz: Path) -> None:
    config = ExperimentConfig(
        nnmf=NNMFConfig(n_components=5, max_iter=10), selection=SelectionConfig(3)
    )
    features = extract_features(load_dataset(small_npz), config, device=CPU)
    for split, n in (("train", 30), ("valid", 15), ("test", 15)):
        assert features.x[split].shape == (n, 3)
        torch.testing.assert_close(features.x[split].norm(dim=1), torch.ones(n))
    np.testing.assert_array_equal(features.extractor.selected, features.selector.selected_)


def test_components_of_equal_sums_leave_the_fit_as_it_is(small_npz: Path) -> None:
    fitted = ExperimentConfig(nnmf=NNMFConfig(n_components=5, init="nndsvda", max_iter=20))
    scaled = replace(fitted, nnmf=replace(fitted.nnmf, component_scale="sum"))
    dataset = load_dataset(small_npz)
    as_is, equal = (
        extract_features(dataset, config, device=CPU).extractor for config in (fitted, scaled)
    )
    sums = equal.components.sum(1)
    torch.testing.assert_close(sums, sums.mean().expand(5))
    assert as_is.components.sum(1).max() > 1.2 * as_is.components.sum(1).min()
    images = torch.from_numpy(dataset.matrix("test"))
    reached = [own.coefficients(images) @ own.components for own in (as_is, equal)]
    torch.testing.assert_close(*reached, atol=1e-4, rtol=1e-4)


def test_a_component_of_zeros_stays_one() -> None:
    components = torch.tensor([[1.0, 3.0], [0.0, 0.0], [2.0, 0.0]])
    expected = torch.tensor([[0.5, 1.5], [0.0, 0.0], [2.0, 0.0]])
    torch.testing.assert_close(of_equal_sums(components), expected)


def test_the_number_of_components_is_that_which_validation_likes_best(small_npz: Path) -> None:
    defence = DefenceConfig(
        kind="adversarial", network="mlp", hidden=(8,), epochs=4, n_steps=2, ema_decay=0.5, lr=1e-2
    )
    config = ExperimentConfig(
        nnmf=NNMFConfig(n_components=6, max_iter=10),
        selection=SelectionConfig(candidates=(6, 2, 4)),
        defence=defence,
        seed=3,
    )
    every = extract_features(load_dataset(small_npz), config, device=CPU)
    said: list[str] = []
    chosen, trials = choose_n_selected(every, config, say=said.append)
    assert [trial.n_selected for trial in trials] == [2, 4, 6]
    best = max(trials, key=lambda trial: (trial.clean + trial.attacked, -trial.n_selected))
    assert chosen.extractor.n_features == best.n_selected
    fixed = replace(config, selection=SelectionConfig(best.n_selected))
    alone = extract_features(load_dataset(small_npz), fixed, device=CPU)
    assert torch.equal(chosen.x["test"], alone.x["test"])
    assert torch.equal(chosen.extractor.selected, alone.extractor.selected)
    training = train_adversarially(
        alone.x, alone.y, config.decided().defence, norm="Linf", n_classes=2, seed=3
    )
    assert training.history["valid_accuracy"][training.best_epoch] == best.clean
    assert [line.split()[0] for line in said] == ["2", "4", "6"]


def test_defended_model_has_the_papers_noise_level() -> None:
    purifier = purifier_of(FeatureDenoiser(4), PRESETS["paper"].diffusion)
    alphas_cumprod = purifier.alphas_cumprod[purifier.timesteps]
    assert alphas_cumprod.item() == pytest.approx(0.97887, abs=1e-5)
    assert (1 - alphas_cumprod).sqrt().item() == pytest.approx(0.1454, abs=1e-4)


def test_the_preset_proven_trains_an_mlp_with_bounds_in_its_loss() -> None:
    preset = PRESETS["proven"]
    config = replace(preset, defence=replace(preset.defence, epochs=3, n_steps=2))
    generator = torch.Generator().manual_seed(0)
    y = {split: torch.arange(n) % 2 for split, n in (("train", 150), ("valid", 60))}
    x = {
        split: (0.3 + 0.3 * of.unsqueeze(1) * torch.rand(len(of), 20, generator=generator))
        for split, of in y.items()
    }
    defence = fit_defence(x, y, FeatureCNN(20, 2), FeatureDenoiser(20), config)
    assert isinstance(defence.model, FeatureMLP)
    assert defence.model is defence.classifier
    alone = train_robust_classifier(
        x["train"], y["train"], x["valid"], y["valid"], n_classes=2, method="trades-ibp",
        network="mlp", hidden=preset.defence.hidden, ibp_weight=preset.defence.ibp_weight,
        trades_beta=preset.defence.trades_beta, eps_ramp=preset.defence.eps_ramp,
        lr=preset.defence.lr, epochs=3, n_steps=2, seed=config.seed,
    ).model  # fmt: skip
    for own, other in zip(defence.model.weights(), alone.weights(), strict=True):
        assert torch.equal(own, other)


def test_the_preset_pixel_attacks_images_on_all_of_its_components() -> None:
    preset = PRESETS["pixel"]
    assert (preset.nnmf.n_components, preset.selection.n_selected) == (30, None)
    assert (preset.defence.kind, preset.defence.pixel_eps) == ("pixel", 8 / 255)
    assert preset.defence.has_own_classifier
    assert not preset.defence.purifies


def test_the_pixel_defence_is_trained_on_images(small_npz: Path) -> None:
    config = ExperimentConfig(
        nnmf=NNMFConfig(n_components=4, max_iter=10),
        classifier=ClassifierConfig(epochs=1),
        diffusion=DiffusionConfig(epochs=1),
        defence=DefenceConfig("pixel", epochs=2, pixel_block=2, n_steps=2),
        attack=AttackConfig(n_iter=2, n_restarts=1, n_queries=2),
        seed=3,
    )
    dataset = load_dataset(small_npz)
    outputs = run_stages(dataset, config, device=CPU, timer=StageTimer(CPU))
    features, defence = outputs.features, outputs.defence
    images = {split: torch.from_numpy(dataset.matrix(split)) for split in ("train", "valid")}
    alone = train_pixel_classifier(
        ImageSamples(features.extractor, images),
        features.y["train"],
        features.y["valid"],
        n_classes=dataset.n_classes,
        block=2,
        n_steps=2,
        epochs=2,
        seed=3,
    )
    assert defence.model is defence.classifier
    assert isinstance(defence.model, FeatureCNN)
    for mine, theirs in zip(defence.model.weights(), alone.model.weights(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(ValueError, match="images must be given with defence.kind='pixel'"):
        fit_defence(features.x, features.y, outputs.cnn.model, outputs.denoiser.model, config)


def test_each_defence_is_put_together_from_its_parts() -> None:
    purifier = purifier_of(FeatureDenoiser(4), PRESETS["paper"].diffusion)
    plain, robust = FeatureCNN(4, 2), FeatureCNN(4, 2)
    paper = assemble(purifier, plain, None, DefenceConfig())
    assert paper.purifier is purifier
    assert paper.classifier is plain
    assert assemble(purifier, plain, robust, DefenceConfig("adversarial")) is robust
    both = assemble(purifier, plain, robust, DefenceConfig("adversarial-purifier"))
    assert both.purifier is purifier
    assert both.classifier is robust
