"""The whole comparison: every system on every split from every seed, and what it transfers."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from nnmf_cuda._version import __version__
from nnmf_cuda.baselines import ImageClassifier, Setting, System
from nnmf_cuda.comparison.journal import Journal
from nnmf_cuda.comparison.measure import Finished, SplitImages, fit_system, measure_system
from nnmf_cuda.comparison.plan import Plan
from nnmf_cuda.comparison.random_labels import n_trainings, random_label_control
from nnmf_cuda.comparison.transfer import STRONGEST, measure_transfer
from nnmf_cuda.data import ImageDataset
from nnmf_cuda.evaluation.compared import (
    RANDOM_LABELS,
    Compared,
    Failed,
    Measured,
    RandomLabels,
    Subject,
    SystemFacts,
    Transfer,
)
from nnmf_cuda.pipeline.environment import describe_environment
from nnmf_cuda.pipeline.places import reason

logger = logging.getLogger(__name__)

_ENVIRONMENT = ("device", "device_name", "threads", "commit", "uncommitted_changes")

_PAIR = "Deem"
"""Between whose systems FGSM and PGD are transferred, as these authors have done."""


def compare(
    plan: Plan,
    home: Path,
    *,
    say: Callable[[str], object] = lambda _: None,
    progress: bool = False,
) -> Compared:
    """Run a comparison, or go on with the one whose journal is in `home`.

    A system that fails on a split is noted with its error, tried again when the comparison is gone
    on with, and keeps nothing else from running. Raises ValueError, before anything is trained,
    where the journal is another's or a split cannot be made of the data.
    """
    # Of all splits, so that none is found wanting after hours; one of them is held at a time.
    hashes, fingerprints = {}, {}
    for planned in plan.splits:
        dataset = plan.load(planned, progress=progress)
        hashes[planned.name] = dataset.sha256()
        fingerprints[planned.name] = _fingerprint(dataset)
    journal = Journal(home, {**plan.key(), "data": fingerprints})
    _say_of_other_code(journal, plan, say)
    for number, planned in enumerate(plan.splits):
        if len(plan.splits) > 1:
            dataset = plan.load(planned)
            if _fingerprint(dataset) != fingerprints[planned.name]:
                raise ValueError(
                    f"the data of {planned.name} have changed since the comparison began: put them"
                    " back and go on with --resume, or begin anew with --overwrite"
                )
        for note in dataset.notes if number == 0 else ():
            say(note)
        split = SplitImages.of(planned.name, dataset, plan.spending.n_images)
        for seed in plan.seeds:
            _compare_on(plan, split, seed, journal, say=say, progress=progress)
        if number == 0 and plan.random_labels:
            _draw_labels(plan, dataset, journal, say=say, progress=progress)
    measured = {(m.system, m.split, m.seed): m for m in journal.of(Measured)}
    failed = {(f.system, f.split, f.seed): f for f in journal.of(Failed)}
    drawn = list(_cells(journal).values()) if plan.random_labels else []
    matrices = {(t.split, t.seed, t.attack): t for t in journal.of(Transfer)}  # the last counts
    names = [split.name for split in plan.splits]
    order = [
        (system.name, split, seed)
        for split in (*names, *([RANDOM_LABELS] if plan.random_labels else []))
        for system in plan.systems
        for seed in plan.seeds
    ]
    done = {*measured, *((one.system, RANDOM_LABELS, plan.seeds[0]) for one in drawn)}
    left = [failed[key] for key in order if key in failed and key not in done]
    if not left:
        journal.clear()
    environment = describe_environment(plan.device, data_sha256=dataset.sha256())
    return Compared(
        subject=Subject(
            source=dataset.source,
            synthetic=dataset.synthetic,
            label_names=dataset.label_names,
            image_shape=dataset.image_shape,
            data_sha256=hashes,
            spending={
                name: list(value) if isinstance(value, tuple) else value
                for name, value in asdict(plan.spending).items()
            },
            smoke=plan.smoke,
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=__version__,
            **{name: environment[name] for name in _ENVIRONMENT},
        ),
        systems=[_facts(system) for system in plan.systems],
        measured=[measured[key] for key in order if key in measured],
        failed=left,
        transfer=sorted(matrices.values(), key=lambda t: t.attack != STRONGEST),
        random_labels=drawn,
    )


def _fingerprint(dataset: ImageDataset) -> str:
    """Return a fingerprint of images, labels, split, and to whom the images belong."""
    digest = hashlib.sha256(dataset.sha256().encode())
    for name, members in sorted(dataset.groups.items()):
        digest.update("\n".join(["", name, *map(str, members.tolist())]).encode())
    return digest.hexdigest()


def _commit(plan: Plan) -> str:
    """Return the commit of the code that runs, "+" after it where the tree has changes beside.

    Without a source checkout, the version.
    """
    environment = describe_environment(plan.device, data_sha256="")
    if not environment["commit"]:
        return f"version {__version__}"
    return f"{environment['commit']}{'+' if environment['uncommitted_changes'] else ''}"


def _say_of_other_code(journal: Journal, plan: Plan, say: Callable[[str], object]) -> None:
    """Say which results were found before by other code, or by what may be, and are kept."""
    here = _commit(plan)
    others = Counter(
        one.commit for one in journal.of(Measured) if one.commit != here or here.endswith("+")
    )
    for commit, n in others.items():
        say(f"results kept from commit {commit or 'unknown'}: {n}; this is {here}")


def _facts(system: System) -> SystemFacts:
    return SystemFacts(**{f.name: getattr(system, f.name) for f in fields(SystemFacts)})


def _compare_on(
    plan: Plan,
    split: SplitImages,
    seed: int,
    journal: Journal,
    *,
    say: Callable[[str], object],
    progress: bool,
) -> None:
    """Measure every system on one split from one seed, then what transfers between them."""
    where = f"{split.name}, seed {seed}"
    known = {m.system: m for m in journal.of(Measured) if (m.split, m.seed) == (split.name, seed)}
    names = [system.name for system in plan.systems]
    compared = any(
        (t.split, t.seed, t.attack) == (split.name, seed, STRONGEST)
        and sorted(t.targets) == sorted(names)
        for t in journal.of(Transfer)
    )
    if compared and all(system.name in known for system in plan.systems):
        say(f"{where}: finished before")
        return
    finished: dict[str, Finished] = {}
    bar = tqdm(plan.systems, desc=where, unit="system", disable=None if progress else True)
    for system in bar:
        bar.set_postfix_str(system.name)
        found = journal.finished(known[system.name]) if system.name in known else None
        if found is None:
            found = _measured(plan, system, split, seed, journal, say=say)
        else:
            say(f"{where}: {system.name} finished before")
        if found is not None:
            finished[system.name] = found
    if finished:
        eps_255 = plan.spending.eps_255[-1]
        hidden = None if progress else True
        with tqdm(total=len(finished), desc="transfer", unit="system", disable=hidden) as told:
            matrices = measure_transfer(
                split,
                finished,
                lambda name: journal.load(name, split.name, seed),
                eps_255=eps_255,
                seed=seed,
                each=lambda name: told.update(),
            )
        # The main one last: where it is noted all are.
        for matrix in sorted(matrices, key=lambda t: t.attack == STRONGEST):
            journal.note(matrix)


def _measured(
    plan: Plan,
    system: System,
    split: SplitImages,
    seed: int,
    journal: Journal,
    *,
    say: Callable[[str], object],
) -> Finished | None:
    """Train and measure a system and keep both; None, and a note of why, where that fails."""
    try:
        estimator = system.make(Setting(seed=seed, device=plan.device, smoke=plan.smoke))
        seconds = fit_system(estimator, split)
        found = measure_system(
            system.name,
            estimator,
            split,
            spending=plan.spending,
            seed=seed,
            fit_seconds=seconds,
            single_steps=system.authors.startswith(_PAIR),
        )
        found = replace(found, measured=replace(found.measured, commit=_commit(plan)))
        journal.save(found, estimator)
    except Exception as error:  # of whatever kind: it is the system's, and the others go on
        _note_failure(error, system, split.name, seed, journal, say)
        return None
    say(f"{split.name}, seed {seed}: {result_line(found.measured)}")
    return found


def result_line(found: Measured) -> str:
    """Return what was found of a system, in one line."""
    robust = ", ".join(
        f"{share.estimate:.3f} at {eps:g}/255"
        for eps, share in zip(found.robust.eps_255[1:], found.robust.accuracy[1:], strict=True)
    )
    return (
        f"{found.system}: accuracy {found.metrics['accuracy'].estimate:.3f} clean; {robust};"
        f" {found.fit_seconds:.0f} s of training, {found.attack_seconds:.0f} s of attacks"
    )


def _cells(journal: Journal) -> dict[tuple[str, str, str], RandomLabels]:
    """Return the controls with random labels that are done; of one that was done twice the last."""
    return {(d.system, d.labels_by, d.split_by): d for d in journal.of(RandomLabels)}


def _draw_labels(
    plan: Plan,
    dataset: ImageDataset,
    journal: Journal,
    *,
    say: Callable[[str], object],
    progress: bool,
) -> None:
    """Train every system on labels that are drawn, once, with the first split at hand."""
    n_cells = n_trainings(dataset, 1)
    done = Counter(system for system, *_ in _cells(journal))
    left = [system for system in plan.systems if system.is_trained and done[system.name] < n_cells]
    total = n_cells * len(left)
    hidden = None if progress else True
    with tqdm(total=total, desc=RANDOM_LABELS, unit="training", disable=hidden) as bar:
        for system in left:

            def make(seed: int, system: System = system) -> ImageClassifier:
                return system.make(Setting(seed=seed, device=plan.device, smoke=plan.smoke))

            try:
                for one in random_label_control(
                    dataset, make, name=system.name, n_draws=1, seed=plan.seeds[0], each=bar.update
                ):
                    journal.note(one)
            except Exception as error:  # as above
                _note_failure(error, system, RANDOM_LABELS, plan.seeds[0], journal, say)


def _note_failure(
    error: Exception,
    system: System,
    split: str,
    seed: int,
    journal: Journal,
    say: Callable[[str], object],
) -> None:
    if os.environ.get("NNMF_CUDA_DEBUG") == "1":
        raise error
    logger.info("%s failed", system.name, exc_info=error)
    said = " ".join(reason(error).split())
    journal.note(Failed(system.name, split, seed, said))
    say(f"{split}, seed {seed}: {system.name} failed: {said}")
