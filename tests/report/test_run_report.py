"""The report file: complete, self-contained, escaped."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from nnmf_cuda.evaluation import ROW_NAMES
from nnmf_cuda.report import figures
from nnmf_cuda.report.run_report import render_report, write_report

FIGURES = {
    *("stage_times", "components", "class_means", "selection", "classifier_training"),
    *("denoiser_training", "denoising_error", "roc", "reliability"),
}
VOID = {"meta", "img", "br", "hr", "link"}


class Page(HTMLParser):
    """Text, tags and addresses of a page; fails on tags that do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        self.addresses += [attributes[k] for k in ("src", "href") if k in attributes]
        self.ids.add(attributes.get("id"))
        if tag == "img":
            assert attributes["alt"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def report_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture
def full(report_dir, make_report):
    """The report of the paper's data, written once."""
    report = make_report(papers_images=True, not_run=["Attack in pixel space"])
    path = report_dir / "report.html"
    if not path.exists():
        assert write_report(report_dir, report) == path
    html = path.read_text(encoding="utf-8")
    return report, html, Page(html)


def _page(report):
    """Return the page without pictures, which take long to draw."""
    html = render_report(report, {})
    return html, Page(html)


def test_full_report_is_self_contained(full, report_dir):
    _, html, page = full
    assert {p.stem for p in (report_dir / "figures").glob("*.png")} == FIGURES
    pictures = [a for a in page.addresses if a.startswith("data:image/png;base64,")]
    others = [a for a in page.addresses if not a.startswith("data:")]
    assert len(pictures) == len(FIGURES)
    assert others
    assert all(a.startswith("#") and a[1:] in page.ids for a in others)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"https?://|@import|url\(", html)
    png = base64.b64decode(pictures[-1].partition(",")[2])
    assert png == (report_dir / "figures" / "stage_times.png").read_bytes()
    assert png.startswith(b"\x89PNG")


def test_report_shows_the_stage_benchmark(tmp_path, make_report, stage_benchmark):
    report = make_report(stage_benchmark=stage_benchmark)
    text = write_report(tmp_path, report).read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", Page(text).text)
    assert "settings paper, on Some CPU with 2 threads, commit 0123456789, 2026-01-02" in text
    made = {p.stem for p in (tmp_path / "figures").glob("*.png")}
    assert made == {*FIGURES, "stage_benchmark"}


def test_full_report_says_what_it_must(full):
    report, _, page = full
    text = re.sub(r"\s+", " ", page.text)
    for name in ROW_NAMES:
        assert f"{report.table.rows.rows[name].accuracy:.4f}" in text
    for words in (
        "0.8605",  # the paper's first figure
        "201.47",  # and its total of seconds
        "Not a medical device",
        "Features are attacked, not pixels",
        '"AutoAttack standard"',
        "Constant answer",
        "category 2 = Normal",
        "Attack in pixel space",
        "it seems to be a randomized defense!",
        "n_components: 15",
    ):
        assert words in text, words
    assert "Synthetic data" not in text


def test_synthetic_data_are_announced_and_the_papers_figures_left_out(make_report):
    report = make_report()
    html, page = _page(replace(report, dataset=replace(report.dataset, synthetic=True)))
    assert "Synthetic data." in page.text
    assert 'class="paper"' not in html
    assert "paper CPU" not in page.text
    assert "201.47" not in page.text
    assert "The paper's seconds" not in page.text
    assert "The data are not the paper's" in page.text


def test_a_full_run_says_so(make_report):
    _, page = _page(make_report(not_run=()))
    assert "Every part of this report was run." in page.text


def test_the_list_of_sections_is_in_the_order_of_the_page(make_report, evaluation):
    for report in (make_report(), make_report(robustness=evaluation)):
        html, _ = _page(report)
        listed = re.findall(r'<a href="#([\w-]+)">', html.partition("</nav>")[0])
        assert listed == re.findall(r'<section id="([\w-]+)">', html)


def test_the_worst_case_leads(make_report, evaluation):
    html, page = _page(make_report(robustness=evaluation))
    places = [
        page.text.index(words)
        for words in (
            *("worst case over all attacks", "the paper's protocol", "adversarially trained"),
            *("constant answer", evaluation.verdict.sentence, "Four rows, every metric"),
        )
    ]
    assert places == sorted(places)
    tiles = re.search(r'<div class="cards">.*?</div>\s*</div>', html, re.DOTALL)[0]
    assert re.findall(r"<b>(.*?)</b>", tiles) == [
        *("0.507", "0.121", "0.926", "0.572", "0.758", "0.549", "0.870")
    ]
    assert "Robust_Defended" not in tiles


def test_without_an_evaluation_there_is_no_worst_case(make_report):
    _, page = _page(make_report())
    assert "This is the paper's protocol only, no worst case" in page.text
    assert "worst case over all attacks" not in page.text
    assert "mean of 4 fresh predictions" in page.text


def test_what_was_not_run_is_looked_for_inside_the_points(make_report, evaluation):
    _, page = _page(make_report(robustness=evaluation, not_run=()))
    assert "Every part of this report was run." not in page.text
    assert "Point 1 Threat model: pixel space (give --data)." in page.text
    assert "Point 13 Attacks on the purifier." in page.text


def test_a_defence_without_noise_is_not_said_to_have_any(make_report, quiet_evaluation):
    rows = replace(make_report().table.rows, n_predictions=1)
    html, _ = _page(
        make_report(
            draws_noise=False,
            papers_defence=False,
            papers_images=True,
            rows=rows,
            robustness=quiet_evaluation,
        )
    )
    for words in (
        *("averages over draws", "A random defence", "with fresh noise", "noise spread"),
        *("±0.0", "majority of 20", "by majority", "over 1 predictions"),
    ):
        assert words not in html, words
    assert "One attack is not all attacks." in html
    assert "paper (its own defence)" in html


@pytest.mark.parametrize("purify_t", [41, None])
def test_a_timestep_is_marked_where_the_defence_has_one(make_report, purify_t):
    figure = figures.denoising_figure(make_report().denoising_error, purify_t=purify_t)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert ("the defence: t = 41" in labels) == (purify_t == 41)


def test_counts_of_the_attack_are_named(make_report):
    found = {"majority_accuracy": 0.57, "fresh_accuracy": 0.61, "n_unchanged": 24}
    html, _ = _page(make_report(attacks={"baseline": found, "defended": {"norm": "L2"}}))
    text = re.sub(r"<[^>]+>|\s+", " ", html.partition('id="attack"')[2])
    assert re.search(r"majority of fresh decisions right +0\.57 +–", text)
    assert "constant answer" not in text.partition("The defence")[0].partition("ROC")[0]
    assert "points returned unchanged" in text


def test_three_classes(make_report):
    _, page = _page(make_report(n_classes=3))
    assert "3 classes: Normal, Tumor, Third" in page.text
    assert "Positive class" not in page.text
    assert "margin-ratio" not in page.text  # only said of two classes


def test_text_from_outside_is_escaped(make_report):
    attack = "<script>alert('x')</script>"
    dataset = replace(make_report().dataset, source=attack, label_names=("Normal", attack))
    html, page = _page(
        make_report(
            dataset=dataset,
            notes=[attack],
            not_run=[attack],
            config_yaml=attack,
            environment={attack: attack},
            attacks={attack: {attack: [attack]}},
        )
    )
    assert "<script" not in html
    assert page.text.count(attack) >= 10
