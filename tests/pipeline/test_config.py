"""Settings that cannot work are refused when they are made, by their full names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import pytest

from nnmf_cuda.attacks.checks import MIN_CLASSES
from nnmf_cuda.cli.main import main
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NNMFConfig(n_components=1), "nnmf.n_components must be an integer >= 2; got 1"),
        (lambda: NNMFConfig(max_iter=0), "nnmf.max_iter must be an integer >= 1; got 0"),
        (lambda: NNMFConfig(beta_loss="kl"), "nnmf.beta_loss must be one of frobenius, "),
        (
            lambda: NNMFConfig(component_scale="max"),  # type: ignore[arg-type]
            "nnmf.component_scale must be one of fitted, sum",
        ),
        (lambda: NNMFConfig(init="svd"), "nnmf.init must be one of random, "),
        (lambda: NNMFConfig(tol=-1.0), "nnmf.tol must be a finite number >= 0"),
        (lambda: NNMFConfig(solver="hals"), "nnmf.beta_loss must be frobenius with nnmf.solver="),
        (lambda: NNMFConfig(init="nndsvd", n_init=2), "nnmf.n_init must be 1 with nnmf.init="),
        (lambda: SelectionConfig(1), "selection.n_selected must be an integer >= 2; got 1"),
        (lambda: ClassifierConfig(ema_decay=1.0), r"classifier.ema_decay must lie in \[0, 1\)"),
        (lambda: ClassifierConfig(lr=0.0), "classifier.lr must be a finite number > 0"),
        (lambda: ClassifierConfig(lr=float("nan")), "classifier.lr must be a finite number > 0"),
        (lambda: DiffusionConfig(epochs=0), "diffusion.epochs must be an integer >= 1"),
        (lambda: DiffusionConfig(batch_size=0), "diffusion.batch_size must be an integer >= 1"),
        (lambda: DiffusionConfig(n_draws=0), "diffusion.n_draws must be an integer >= 1"),
        (lambda: DiffusionConfig(beta_end=1.0), r"diffusion.beta_end must lie in \(0, 1\)"),
        (lambda: DiffusionConfig(eta=2.0), r"diffusion.eta must lie in \[0, 1\]"),
        (lambda: DiffusionConfig(timesteps=(1000,)), "diffusion.timesteps must lie within 0 and"),
        (lambda: DiffusionConfig(timesteps=(-1,)), "diffusion.timesteps must lie within 0 and"),
        (lambda: DiffusionConfig(timesteps=(5, 41)), "diffusion.timesteps .* descending order"),
        (lambda: DiffusionConfig(timesteps=()), "diffusion.timesteps must name at least one"),
        (lambda: DefenceConfig(train_eps=0.0), "defence.train_eps must be a finite number > 0"),
        (lambda: DefenceConfig(train_eps="most"), 'defence.train_eps must be .* or "auto"; got'),
        (lambda: DefenceConfig(n_steps=0), "defence.n_steps must be an integer >= 1"),
        (
            lambda: DefenceConfig(class_weight="equal"),
            "defence.class_weight must be one of balanced",
        ),
        (lambda: DefenceConfig(network="vit"), "defence.network must be one of cnn, mlp"),
        (lambda: DefenceConfig(hidden=()), "defence.hidden must be one or more integers >= 1"),
        (lambda: DefenceConfig(hidden=(8, 0)), "defence.hidden must be one or more integers >= 1"),
        (lambda: DefenceConfig(ibp_weight=2.0), r"defence.ibp_weight must lie in \[0, 1\]"),
        (lambda: DefenceConfig("joint", network="mlp"), "defence.network must be cnn with"),
        (lambda: DefenceConfig("pixel", network="mlp"), "defence.network must be cnn with"),
        (lambda: DefenceConfig("pixel", "mtl-ibp"), "defence.method must be pgd or trades with"),
        (lambda: DefenceConfig(pixel_eps=0.0), "defence.pixel_eps must be a finite number > 0"),
        (lambda: DefenceConfig(pixel_block=0), "defence.pixel_block must be an integer >= 1"),
        (
            lambda: DefenceConfig("smoothing", method="mtl-ibp"),
            "defence.method must be pgd or trades",
        ),
        (lambda: DefenceConfig(eps_ramp=-0.1), r"defence.eps_ramp must lie in \[0, 1\]"),
        (lambda: DefenceConfig(kind="none"), "defence.kind must be one of purifier, "),
        (lambda: AttackConfig(n_iter=0), "attack.n_iter must be an integer >= 1; got 0"),
        (lambda: AttackConfig(attack_eps=0.0), "attack.attack_eps must be a finite number > 0"),
        (lambda: AttackConfig(attack_eps="all"), 'attack.attack_eps must be .* or "auto"; got'),
        (lambda: AttackConfig(attacks=("pgd",)), "attack.attacks must name at least one of"),
        (lambda: AttackConfig(attacks=()), "attack.attacks must name at least one of"),
        (lambda: AttackConfig(norm="L2"), "attack.attacks must leave out square with"),
        (lambda: AttackConfig(norm="L1"), "attack.norm must be one of Linf, L2"),
        (lambda: ExperimentConfig(n_predictions=0), "n_predictions must be an integer >= 1"),
        (lambda: ExperimentConfig(seed=-1), r"seed must lie in \[0, 2\*\*32\)"),
        (lambda: SelectionConfig(candidates=(1, 4)), "selection.candidates must be integers >= 2"),
        (lambda: SelectionConfig(4, candidates=(4, 8)), "selection.n_selected must be null where"),
        (
            lambda: ExperimentConfig(
                selection=SelectionConfig(candidates=(8, 16)),
                defence=DefenceConfig("adversarial"),
            ),
            "selection.candidates must be at most nnmf.n_components=15",
        ),
        (
            lambda: ExperimentConfig(selection=SelectionConfig(candidates=(8,))),
            "selection.candidates must be left out with defence.kind='purifier'",
        ),
        (
            lambda: ExperimentConfig(selection=SelectionConfig(16)),
            "selection.n_selected must be at most nnmf.n_components=15; got 16",
        ),
        (
            lambda: ExperimentConfig(
                defence=DefenceConfig("smoothing", candidate_timesteps=(5, 1000))
            ),
            "defence.candidate_timesteps must lie within 0 and 999",
        ),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_attacks_are_those_that_can_be_run() -> None:
    with pytest.raises(ValueError, match=", ".join(MIN_CLASSES)):
        AttackConfig(attacks=("none",))


def test_presets_and_settings_at_the_edge_are_allowed() -> None:
    for preset in PRESETS.values():
        assert ExperimentConfig(**{"seed": 3, "nnmf": preset.nnmf})
        assert DefenceConfig(**asdict(preset.defence)) == preset.defence
    AttackConfig(norm="L2", attacks=("apgd-ce",))
    DiffusionConfig(timesteps=(999, 41, 0), ema_decay=0.0)
    ExperimentConfig(selection=SelectionConfig(15))


def test_command_line_refuses_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--data=missing.npz", "--attack.n_iter=0"]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed == ["nnmf-cuda: error: attack.n_iter must be an integer >= 1; got 0"]


def test_radii_are_decided_once_and_training_follows_the_attack():
    asked = ExperimentConfig(attack=AttackConfig(attack_eps="auto"))
    assert asked.decided() is asked
    with pytest.raises(RuntimeError, match='attack.attack_eps is "auto": it is not decided yet'):
        _ = asked.attack.radius
    found = asked.decided(0.03)
    assert (found.attack.radius, found.defence.radius) == (0.03, 0.03)
    assert found.decided(0.5) == found
    own = ExperimentConfig(defence=DefenceConfig(train_eps=0.2), attack=AttackConfig("auto"))
    assert own.decided(0.03).defence.radius == 0.2
    assert ExperimentConfig().decided().defence.radius == 0.1
