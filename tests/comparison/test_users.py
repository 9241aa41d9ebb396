"""A user's own model: a Python path, a torch module, an ONNX file, a classifier of features."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from nnmf_cuda.attacks.objectives import N_DECISIONS, fresh_decisions
from nnmf_cuda.baselines import Setting
from nnmf_cuda.comparison.compare import compare
from nnmf_cuda.comparison.features import FeatureClassifier
from nnmf_cuda.comparison.pixels import Spending
from nnmf_cuda.comparison.plan import Plan, PlannedSplit
from nnmf_cuda.comparison.users import GivenModel, user_systems
from nnmf_cuda.comparison.victims import Victim
from nnmf_cuda.evaluation.compared import GRADIENTS, MASKED
from nnmf_cuda.pipeline.config import DataConfig
from tests.comparison.conftest import images_of

MODULE = """
import numpy as np
import torch

WEIGHTS = np.linspace(-1, 1, 32 * 32, dtype=np.float32).reshape(-1, 1) * [[1, -1]]


def by_numpy(images):
    assert images.dtype == np.float32 and images.max() <= 1
    return images.reshape(len(images), -1) @ WEIGHTS


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(32 * 32, 2, bias=False)
        self.linear.weight.data = torch.from_numpy(WEIGHTS.T.astype(np.float32))

    def forward(self, images):
        small = torch.nn.functional.adaptive_avg_pool2d(images, 32)
        return self.linear(small.flatten(1))


net = Net()


def of_three(images):
    return np.zeros((len(images), 3))


number = 3


class Noisy(Net):
    def forward(self, images):
        logits = super().forward(images)
        return logits + torch.randn_like(logits)


class Rounding(Net):
    def forward(self, images):
        return super().forward((images * 255).round() / 255)


noisy, rounding = Noisy(), Rounding()


def by_luck(images):
    return np.random.default_rng().random((len(images), 2))


def by_torchs_luck(images):
    return torch.rand(len(images), 2).numpy()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in a folder with a module of models."""
    (tmp_path / "users_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fitted(path: str) -> GivenModel:
    arrays = images_of(4, 3, 2)
    return GivenModel(path).fit(arrays["images"], arrays["labels"])


def test_a_function_and_a_module_answer_alike(here: Path) -> None:
    images = images_of(4, 3, 2)["images"]
    function, module = fitted("users_models:by_numpy"), fitted("users_models:net")
    answers = function.predict_proba(images)
    np.testing.assert_allclose(module.predict_proba(images), answers, atol=1e-4)
    np.testing.assert_allclose(answers.sum(1), 1)
    assert function.pixel_network() is None
    assert module.n_parameters_ == 2 * 32 * 32
    network = module.pixel_network()
    assert network is not None
    pixels = (torch.from_numpy(images).float() / 255).requires_grad_()
    network(pixels)[:, 1].sum().backward()
    assert pixels.grad is not None
    assert float(pixels.grad.abs().sum()) > 0
    again = pickle.loads(pickle.dumps(module))
    np.testing.assert_array_equal(again.predict_proba(images), module.predict_proba(images))
    with pytest.raises(ValueError, match=r"answered \(12, 3\) to 12 images"):
        fitted("users_models:of_three").predict_proba(images)


def test_a_model_that_draws_its_answers_is_decided_by_a_majority(here: Path) -> None:
    images = images_of(4, 3, 2)["images"]
    names = {"noisy": True, "by_luck": True, "by_torchs_luck": True, "net": False}
    x, y = torch.rand(5, 32 * 32), torch.zeros(5, dtype=torch.int64)
    for name, is_random in names.items():
        model = pickle.loads(pickle.dumps(fitted(f"users_models:{name}")))
        victim = Victim(model, (32, 32), seed=0)
        assert victim.is_random is is_random
        right, _ = fresh_decisions(victim.rows, x, y, seed=0)
        assert right.shape == ((1, N_DECISIONS, 5) if is_random else (1, 1, 5))
        if name != "by_luck":  # torch's generators are seeded anew
            np.testing.assert_array_equal(model.predict_proba(images), model.predict_proba(images))
            assert victim.right(x, y).tolist() == victim.right(x, y).tolist()
        assert model.predict_proba(images[:0]).shape == (0, 2)


def test_a_model_that_rounds_its_input_is_not_called_robust(here: Path, tmp_path: Path) -> None:
    arrays = images_of(12, 5, 2)
    np.savez(tmp_path / "images.npz", **{**arrays, "labels": 1 - arrays["labels"]})
    given = user_systems(("users_models:rounding", "users_models:net"), ())
    spending = Spending(n_images=8, eps_255=(60.0,), n_iter=3, n_queries=150, n_check_queries=1)
    data = DataConfig(path=str(tmp_path / "images.npz"))
    plan = Plan(systems=given, data=data, splits=(PlannedSplit("own split"),), spending=spending)
    (tmp_path / "out").mkdir()
    found = compare(plan, tmp_path / "out")
    assert not found.failed
    rounding, net = (one.robust for one in found.measured)
    assert (rounding.how, net.how) == (MASKED, GRADIENTS)
    assert rounding.accuracy[0].estimate == net.accuracy[0].estimate > 0
    assert rounding.accuracy[1].estimate < rounding.accuracy[0].estimate


@pytest.mark.parametrize("has_channel", [True, False])
def test_an_onnx_file_answers_as_what_it_was_made_of(here: Path, has_channel: bool) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    function = fitted("users_models:by_numpy")
    weights = np.linspace(-1, 1, 32 * 32, dtype=np.float32).reshape(-1, 1) * [[1, -1]]
    channel = [1] if has_channel else []
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["rows"]),
            helper.make_node("MatMul", ["rows", "w"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *channel, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor("w", TensorProto.FLOAT, (32 * 32, 2), weights.ravel())],
    )
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), here / "m.onnx")
    images = images_of(4, 3, 2)["images"]
    model = fitted(str(here / "m.onnx"))
    expected = function.predict_proba(images)
    np.testing.assert_allclose(model.predict_proba(images), expected, atol=1e-4)
    assert not Victim(model, (32, 32), seed=0).has_gradient


def test_what_cannot_be_a_model_is_said_at_once(here: Path) -> None:
    for path, said in {
        "users_models": "give package.module:name",
        "no_such_module:net": "no module no_such_module",
        "users_models:nothing": "has no attribute 'nothing'",
        "users_models:number": "is a int: name a function",
        "users_models:Net": "is a class: name an instance",
        "broken_module:net": r"looking it up failed \(FileNotFoundError: weights.pt\)",
        "missing.onnx": "there is no such file",
    }.items():
        (here / "broken_module.py").write_text("raise FileNotFoundError('weights.pt')")
        with pytest.raises(ValueError, match=f"--model {path}.*{said}"):
            user_systems((path,), ())
    (here / "users_failing.py").write_text("def classifier():\n    return other\n")
    with pytest.raises(ValueError, match=r"--classifier users_failing:classifier.*\(NameError"):
        user_systems((), ("users_failing:classifier",))


def test_a_classifier_of_nnmf_features_is_trained() -> None:
    arrays = images_of(12, 4, 2)
    images, labels = arrays["images"], arrays["labels"]
    (system,) = user_systems((), ("sklearn.naive_bayes:GaussianNB",))
    model = system.make(Setting(smoke=True)).fit(images, labels)
    assert isinstance(model, FeatureClassifier)
    assert isinstance(model.classifier_, GaussianNB)
    assert (model.predict(images) == labels).mean() > 0.8
    assert model.pixel_network() is None
    kinds = images_of(12, 4, 4)
    pairs = FeatureClassifier(SVC(decision_function_shape="ovo"), max_iter=5)
    pairs.fit(kinds["images"], kinds["labels"])  # six margins of four classes
    assert set(np.unique(pairs.predict_proba(kinds["images"]))) == {0, 1}


def test_what_is_random_in_a_classifier_is_of_the_seed() -> None:
    arrays = images_of(12, 4, 2)
    images, labels = arrays["images"], arrays["labels"]

    def state(classifier: Any, seed: int) -> Any:
        model = FeatureClassifier(classifier, max_iter=2, n_components=3, random_state=seed)
        return model.fit(images, labels).classifier_.get_params()

    forest = RandomForestClassifier(2)
    assert state(forest, 7)["random_state"] == 7
    assert forest.random_state is None  # what was given is as it was
    assert state(RandomForestClassifier(2, random_state=3), 7)["random_state"] == 3
    within = state(make_pipeline(StandardScaler(), forest), 7)
    assert within["randomforestclassifier__random_state"] == 7


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("classifier", [LinearSVC(), SVC()])
def test_margins_grade_a_classifier_without_probabilities(
    classifier: LinearSVC | SVC, n_classes: int
) -> None:
    arrays = images_of(12, 4, n_classes)
    images, labels = arrays["images"], 3 + 2 * arrays["labels"]
    model = FeatureClassifier(classifier, max_iter=5).fit(images, labels)
    answers = model.predict_proba(images)
    # A search by answers alone would see nothing in zeros and ones.
    assert len(np.unique(answers.round(9))) > 20
    np.testing.assert_allclose(answers.sum(1), 1)
    named = model.classifier_.predict(model._features(images))
    np.testing.assert_array_equal(answers.argmax(1), named)
    np.testing.assert_array_equal(model.predict(images), 3 + 2 * named)


def test_the_light_network_has_a_gradient_to_the_pixels() -> None:
    arrays = images_of(12, 4, 2)
    images, labels = arrays["images"], arrays["labels"]
    model = FeatureClassifier(max_iter=5, n_components=4, epochs=20).fit(images, labels)
    network = model.pixel_network()
    assert network is not None
    pixels = (torch.from_numpy(images).float() / 255).requires_grad_()
    logits = network(pixels)
    np.testing.assert_allclose(
        logits.detach().double().softmax(1), model.predict_proba(images), atol=1e-4
    )
    logits[:, 0].sum().backward()
    assert pixels.grad is not None
    assert float(pixels.grad.abs().amax(dim=(1, 2)).min()) > 0
