"""The image networks' rows, and that each can be tried in no time."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from nnmf_cuda.baselines import SYSTEMS, Setting, TorchImageClassifier

NETWORKS = [
    name
    for name, system in SYSTEMS.items()
    if isinstance(system.make(Setting()), TorchImageClassifier)
]
NEED_MONAI = ("almuhaimeed-swin", "gomez-hybrid", "thiry-guth", "deem-")


def test_every_network_and_form_has_a_row():
    deem = [
        f"deem-{kind}{form}"
        for form in ("", "-shrunk", "-shrunk-plain")
        for kind in ("resnet", "resnext")
    ]
    for name in (
        "hossain-cnn",
        "almuhaimeed-cnn",
        "almuhaimeed-swin",
        "gomez-hybrid",
        "thiry-guth",
        *deem,
    ):
        assert name in NETWORKS
        assert SYSTEMS[name].name == name


@pytest.mark.parametrize("name", NETWORKS)
def test_a_system_is_made_as_the_setting_says(name):
    if name.startswith(NEED_MONAI):
        pytest.importorskip("monai")
        pytest.importorskip("einops")
    model = SYSTEMS[name].make(Setting(seed=7, smoke=True))
    assert (model.random_state, model.epochs) == (7, 1)
    images = np.random.default_rng(0).integers(0, 256, (9, 48, 48)).astype(np.uint8)
    assert model.fit(images, np.arange(9) % 2).predict_proba(images).shape == (9, 2)
    whole = SYSTEMS[name].make(Setting(seed=1, device="cpu", progress=True))
    assert whole.progress
    assert whole.epochs > model.epochs


def test_forms_of_the_images_differ_as_their_names_say():
    full, shrunk, plain = (
        SYSTEMS[f"deem-resnet{form}"].make(Setting()) for form in ("", "-shrunk", "-shrunk-plain")
    )
    assert full.image_size is None
    assert shrunk.image_size == plain.image_size
    assert full.augmentation == shrunk.augmentation
    assert plain.augmentation is None


def test_only_what_is_proved_says_so():
    proved = {name for name, system in SYSTEMS.items() if system.proof}
    assert proved == {"robust", "proven", "pixel"}


def test_systems_can_be_listed_without_what_some_of_them_need():
    code = "import sys, nnmf_cuda.baselines; assert not {'monai', 'einops'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
