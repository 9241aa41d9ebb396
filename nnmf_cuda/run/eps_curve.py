"""A defence trained, attacked and proven at each of several radii, on the same features."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nnmf_cuda.attacks import run_suite
from nnmf_cuda.data import load_dataset
from nnmf_cuda.evaluation.ceiling import ceiling
from nnmf_cuda.evaluation.headline import Headline, Proof
from nnmf_cuda.evaluation.seeds import Purpose, seed_word
from nnmf_cuda.pipeline.config import ExperimentConfig
from nnmf_cuda.pipeline.defences import fit_defence
from nnmf_cuda.pipeline.features import Features, choose_n_selected, extract_features
from nnmf_cuda.pipeline.places import reason
from nnmf_cuda.pipeline.radius import decide_radius
from nnmf_cuda.pipeline.run_directory import NotWritten, results_directory
from nnmf_cuda.pipeline.stages import fit_classifier, fit_denoiser
from nnmf_cuda.report.eps_curve import EpsCurve, EpsPoint
from nnmf_cuda.robustness import EVALUATION_BUDGETS, EvaluationBudget
from nnmf_cuda.robustness.evaluate import prove
from nnmf_cuda.robustness.verification import BRANCH_AND_BOUND


def run_eps_curve(
    config: ExperimentConfig,
    radii: Sequence[float],
    *,
    out: Path,
    config_yaml: str,
    preset: str,
    device: torch.device,
    overwrite: bool = False,
    say: Callable[[str], object] = lambda _: None,
    budget: EvaluationBudget = EVALUATION_BUDGETS["quick"],
) -> EpsCurve:
    """Train a defence at each radius, and write what it has there into `out`.

    Features, classifier and denoiser are fitted once; training attacks in the ball of the radius,
    whatever ``config`` says of it. `budget` is that of attacks and proofs. Writes `curve.json`,
    `curve.svg` and `config.yaml`; raises ValueError if data, radii or `out` do not allow a run.
    """
    asked = sorted(set(radii))
    if not asked or asked[0] <= 0:
        raise ValueError(f"eps_curve must name radii above 0, got {list(radii)}")
    with results_directory(out, overwrite=overwrite) as partial:
        dataset = load_dataset(**config.data.of_load(), seed=config.seed, n_train_needed=2)
        for note in dataset.notes:
            say(note)
        say(f"data: {dataset.source}; fitting the components and projecting every image")
        features = extract_features(dataset, config, device=device)
        if config.selection.candidates:
            features, _ = choose_n_selected(features, config, say=say)
        say("training the classifier and the denoiser")
        plain = fit_classifier(features, config).model
        denoiser = fit_denoiser(features, config).model
        points = []
        for eps in asked:
            started = time.perf_counter()
            at = replace(
                config,
                attack=replace(config.attack, attack_eps=eps),
                defence=replace(config.defence, train_eps="auto"),
            )
            at, prospects = decide_radius(features.x, features.y, at)
            say(prospects.summary)
            defence = fit_defence(features.x, features.y, plain, denoiser, at, say=say)
            headline = _measure(defence.model, features, at, budget, say)
            say(f"  {headline.line}")
            collapsed = bool(defence.attempts) and all(a.collapsed for a in defence.attempts)
            points.append(EpsPoint(eps, headline, collapsed, time.perf_counter() - started))
        found = EpsCurve(points, config.attack.norm, preset, dataset.source, config.seed)
        try:
            (partial / "config.yaml").write_text(config_yaml, encoding="utf-8")
            content = json.dumps(found.as_dict(), indent=2)
            (partial / "curve.json").write_text(content, encoding="utf-8")
            found.figure().savefig(partial / "curve.svg")
        except Exception as error:  # what has been found must be told
            raise NotWritten(
                f"--out {out}: the curve, which is above, could not be written ({reason(error)})",
                found.text(),
            ) from error
    return found


def _measure(
    model: torch.nn.Module,
    features: Features,
    config: ExperimentConfig,
    budget: EvaluationBudget,
    say: Callable[[str], object],
) -> Headline:
    """Attack a defence on the test features and prove what can be proven."""
    attack, seed = config.attack, config.seed
    x = features.x["test"].float().clamp(0, 1)
    y = torch.from_numpy(features.y["test"]).to(x.device)
    model.eval()
    settings: dict[str, Any] = {"attack_eps": attack.radius, "norm": attack.norm}
    suite = run_suite(
        *(model, x, y),
        **settings,
        budget=budget.suite,
        seed=seed,
        evaluation_seed=seed_word(seed, Purpose.DECISIONS),
    )
    found = prove(model, x, y, suite, attack=attack, budget=budget, seed=seed, say=say)
    proof = Proof(None, "random answers have no proof")
    if found is not None:
        proof = Proof(found.proven, BRANCH_AND_BOUND)
    return Headline.of(
        suite.robust_share.cpu().numpy(),
        suite.outcomes[0].robust.double().mean(0).cpu().numpy(),
        features.y["test"],
        proof,
        ceiling=ceiling(x, y, attack.radius, attack.norm).accuracy,
    )
