"""Figures: what is drawn, not how it looks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nnmf_cuda.evaluation import PAPER_TIMINGS
from nnmf_cuda.report import figures
from nnmf_cuda.timing import PAPER_STAGES


def test_components_figure_shows_every_image_with_its_rank(make_report):
    report = make_report(n_components=7)
    images = report.nnmf.components_.reshape(-1, *report.dataset.image_shape)
    report.selector.selected_ = np.array([0, 1, 2])
    figure = figures.components_figure(images, report.selector)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 7
    for axes, image in zip(shown, images, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
    best = int(report.selector.ranking_[0])
    assert "rank 1" in shown[best].get_title()
    assert "left out" in shown[5].get_title()
    assert "left out" not in shown[0].get_title()


def test_class_means_figure_shows_the_values(rng):
    means = rng.uniform(size=(2, 15))
    figure = figures.class_means_figure(means, ("Normal", "Tumor"), range(15))
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), means)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["Normal", "Tumor"]
    assert figure.axes[0].texts[0].get_text() == f"{means[0, 0]:.2f}"


def test_class_means_figure_names_selected_components_and_thins_many(rng):
    figure = figures.class_means_figure(rng.uniform(size=(2, 3)), ("a", "b"), [2, 5, 9])
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["2", "5", "9"]
    many = figures.class_means_figure(rng.uniform(size=(2, 200)), ("a", "b"), range(200))
    assert len(many.axes[0].get_xticklabels()) <= 30
    assert not many.axes[0].texts


def test_selection_figure_draws_best_first_and_survives_p_of_zero(make_report):
    selector = make_report().selector
    panels = figures.selection_figure(selector).axes
    widths = [bar.get_width() for bar in panels[0].patches]
    np.testing.assert_allclose(widths, selector.auc_[selector.ranking_] - 0.5)
    strengths = np.array([bar.get_width() for bar in panels[2].patches])
    assert np.isfinite(strengths).all()
    assert strengths.max() > 300  # the p-value of 0
    labels = [t.get_text() for t in panels[0].get_yticklabels()]
    assert labels == [str(c) for c in selector.ranking_]


def test_training_figure_parts_losses_from_accuracies(make_report):
    panels = figures.training_figure(make_report().classifier.history, best_epoch=81).axes
    assert len(panels) == 2
    assert panels[0].get_yscale() == "log"
    labels = [line.get_label() for line in panels[0].lines]
    assert labels == ["train loss", "valid loss", "kept: epoch 82"]
    assert len(panels[1].lines) == 2
    assert len(figures.training_figure({"train_loss": [0.5, 0.0]}).axes) == 1


def test_denoising_figure_marks_the_timestep(make_report):
    error = make_report().denoising_error
    axes = figures.denoising_figure(error, purify_t=41).axes[0]
    assert len(axes.lines) == 4
    at = axes.lines[3].get_xdata()[0]
    assert at == pytest.approx(np.interp(41, error.t, error.sigma))


def test_stage_times_figure(timings):
    rows = tuple(row for row in timings.stages if row.stage != "denoiser_training")
    axes = figures.stage_times_figure(replace(timings, stages=rows), paper=True).axes[0]
    assert len(axes.containers) == 3
    assert all(len(bars) == len(PAPER_STAGES) + 1 for bars in axes.containers)
    assert axes.containers[0][0].get_width() == 6.5
    assert "not run" in [t.get_text() for t in axes.texts]
    assert axes.containers[2][5].get_width() == PAPER_TIMINGS["total"]["gpu"]


def test_stage_times_figure_without_the_papers_seconds(timings):
    axes = figures.stage_times_figure(timings, paper=False).axes[0]
    (bars,) = axes.containers
    assert bars.get_label() == "this run (cpu)"


def test_stage_benchmark_figure(stage_benchmark):
    axes = figures.stage_benchmark_figure([stage_benchmark]).axes[0]
    ours, reference = (bars for bars in axes.containers if hasattr(bars, "patches"))
    assert [bar.get_width() for bar in ours] == [1, 2, 4, 8, 16, 31]
    assert [bar.get_width() for bar in reference] == [5, 10, 20, 40, 80, 155]
    texts = [t.get_text() for t in axes.texts]
    assert texts.count("1 s (5.0 x)") == texts.count("5 s") == 1
    (two,) = figures.stage_benchmark_figure([stage_benchmark | {"smoke": True}]).axes
    assert not any("x)" in t.get_text() for t in two.texts)
    assert len(figures.stage_benchmark_figure([stage_benchmark] * 2).axes) == 2


def test_roc_figure_of_two_classes(make_table):
    rows = make_table().rows
    figure = figures.roc_figure(rows, ("Normal", "Tumor"))
    clean, attacked = figure.axes
    assert [len(axes.lines) for axes in figure.axes] == [3, 3]
    areas = []
    for axes in (clean, attacked):
        for line in axes.lines[1:]:
            areas.append(np.trapezoid(line.get_ydata(), line.get_xdata()))
    assert areas[0] == pytest.approx(rows.rows["Clean_Baseline"].roc_auc)
    assert areas[2] == pytest.approx(rows.rows["Robust_Baseline"].roc_auc)
    # Pooling predictions is not averaging their areas, but comes close.
    defended = rows.rows["Robust_Defended"].roc_auc
    assert areas[3] == pytest.approx(defended, abs=0.03)
    assert f"{defended:.3f}" in attacked.lines[2].get_label()


def test_roc_figure_of_three_classes_is_one_against_the_rest(make_table):
    rows = make_table(n_classes=3).rows
    figure = figures.roc_figure(rows, ("a", "b", "c"))
    assert [len(axes.lines) for axes in figure.axes] == [4] * 4
    areas = [np.trapezoid(line.get_ydata(), line.get_xdata()) for line in figure.axes[0].lines[1:]]
    assert np.mean(areas) == pytest.approx(rows.rows["Clean_Baseline"].roc_auc)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_reliability_figure(make_table, n_classes):
    figure = figures.reliability_figure(make_table(n_classes).rows, ("a", "b", "c")[:n_classes])
    for axes in figure.axes:
        assert len(axes.lines) == 3
        assert len(axes.collections) == 2
        assert "calibration error" in axes.lines[1].get_label()


def test_figures_leave_pyplot_alone(make_report):
    import sys

    figures.training_figure(make_report().denoiser.history)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
