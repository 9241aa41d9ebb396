"""The report file: complete, self-contained, escaped."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest

from nnmf_cuda.evaluation import ROW_NAMES
from nnmf_cuda.report import write_report
from nnmf_cuda.report.run_report import OPTIONAL_PARTS, _figures, _render

NO_FIGURES = dict.fromkeys(OPTIONAL_PARTS)  # drawing takes most of the time
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
def full(report_dir, make_content):
    """Content with every part on the paper's data, and its report, written once."""
    content = make_content(paper_comparable=True, not_run=["Attack in pixel space"])
    path = report_dir / "report.html"
    if not path.exists():
        write_report(report_dir, content)
    html = path.read_text(encoding="utf-8")
    return content, html, Page(html)


def _write(tmp_path, content):
    path = write_report(tmp_path, content)
    assert path == tmp_path / "report.html"
    html = path.read_text(encoding="utf-8")
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


def test_report_shows_the_stage_benchmark(tmp_path, make_content, stage_benchmark):
    content = make_content(**NO_FIGURES, stage_benchmark=stage_benchmark)
    _, page = _write(tmp_path, content)
    text = re.sub(r"\s+", " ", page.text)
    assert "settings paper, on Some CPU with 2 threads, commit 0123456789, 2026-01-02" in text
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} == {"stage_benchmark"}
    assert "#times" in page.addresses
    assert "times" in page.ids


def test_full_report_says_what_it_must(full):
    content, _, page = full
    text = re.sub(r"\s+", " ", page.text)
    for name in ROW_NAMES:
        assert f"{content.rows[name]['accuracy']:.4f}" in text
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


def test_synthetic_data_are_announced_and_the_papers_figures_left_out(
    tmp_path, make_content, timings
):
    parts = {**NO_FIGURES, "timings": timings}
    html, page = _write(tmp_path, make_content(synthetic=True, source="phantom", **parts))
    assert "Synthetic data." in page.text
    assert 'class="paper"' not in html
    assert "paper CPU" not in page.text
    assert "201.47" not in page.text
    assert "The paper's seconds" not in page.text
    assert "The data are not the paper's" in page.text


def test_missing_parts_are_named_as_not_run(tmp_path, make_content):
    content = make_content(**NO_FIGURES, not_run=(), config="", environment={})
    html, page = _write(tmp_path, content)
    assert list((tmp_path / "figures").iterdir()) == []
    assert "<img" not in html
    for title in OPTIONAL_PARTS.values():
        assert f"{title}: not run" in page.text


def test_a_full_run_says_so(make_content):
    content = make_content(not_run=())
    assert content.missing_parts == []
    page = Page(_render(content, {}))  # without pictures, which take long to draw
    assert "Every part of this report was run." in page.text


def test_the_list_of_sections_is_in_the_order_of_the_page(make_content, evaluation):
    for content in (make_content(), make_content(robustness=evaluation, attacks=None)):
        html = _render(content, {})
        listed = re.findall(r'<a href="#([\w-]+)">', html.partition("</nav>")[0])
        assert listed == re.findall(r'<section id="([\w-]+)">', html)


def test_the_worst_case_leads(make_content, evaluation):
    html = _render(make_content(robustness=evaluation), {})
    page = Page(html)
    places = [
        page.text.index(words)
        for words in (
            *("worst case over all attacks", "the paper's protocol", "adversarially trained"),
            *("constant answer", evaluation["verdict"], "Four rows, nine metrics"),
        )
    ]
    assert places == sorted(places)
    tiles = re.search(r'<div class="cards">.*?</div>\s*</div>', html, re.DOTALL)[0]
    assert re.findall(r"<b>(.*?)</b>", tiles) == ["0.507", "0.572", "0.758", "0.549", "0.870"]
    assert "Robust_Defended" not in tiles


def test_without_an_evaluation_there_is_no_worst_case(make_content):
    page = Page(_render(make_content(), {}))
    assert "This is the paper's protocol only, no worst case" in page.text
    assert "worst case over all attacks" not in page.text
    assert "mean of 4 fresh predictions" in page.text


def test_what_was_not_run_is_looked_for_inside_the_points(make_content, evaluation):
    page = Page(_render(make_content(robustness=evaluation, not_run=()), {}))
    assert "Every part of this report was run." not in page.text
    assert "Point 1 Threat model: pixel space (give --data)." in page.text
    assert "Point 13 Attacks on the purifier." in page.text


def test_a_defence_without_noise_is_not_said_to_have_any(make_content, quiet_evaluation):
    content = make_content(
        random_defence=False,
        paper_defence=False,
        n_predictions=1,
        paper_comparable=True,
        robustness=quiet_evaluation,
    )
    html = _render(content, {})
    for words in (
        *("averages over draws", "A random defence", "with fresh noise", "noise spread"),
        *("±0.0", "majority of 20", "by majority", "over 1 predictions"),
    ):
        assert words not in html, words
    assert "One attack is not all attacks." in html
    assert "paper (its own defence)" in html
    assert "the defence: t = 41" not in _labels(content)
    assert "the defence: t = 41" in _labels(make_content())


def _labels(content):
    figure, *_ = _figures(content)["denoising_error"]
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_counts_of_the_attack_are_named(make_content):
    found = {"majority_accuracy": 0.57, "fresh_accuracy": 0.61, "n_unchanged": 24}
    html = _render(make_content(attacks={"baseline": found, "defended": {"norm": "L2"}}), {})
    text = re.sub(r"<[^>]+>|\s+", " ", html.partition('id="attack"')[2])
    assert re.search(r"majority of fresh decisions right +0\.57 +–", text)
    assert "constant answer" not in text.partition("The defence")[0].partition("ROC")[0]
    assert "points returned unchanged" in text


def test_three_classes(tmp_path, make_content):
    parts = {**NO_FIGURES, "class_means": make_content(n_classes=3).class_means}
    _, page = _write(tmp_path, make_content(n_classes=3, **parts))
    assert "3 classes: Normal, Tumor, Third" in page.text
    assert "Positive class" not in page.text
    assert "margin-ratio" not in page.text  # only said of two classes


def test_text_from_outside_is_escaped(tmp_path, make_content):
    attack = "<script>alert('x')</script>"
    content = make_content(
        source=attack,
        notes=[attack],
        not_run=[attack],
        label_names=("Normal", attack),
        config=attack,
        environment={attack: attack},
        **{**NO_FIGURES, "attacks": {attack: {attack: [attack]}}},
    )
    html, page = _write(tmp_path, content)
    assert "<script" not in html
    assert page.text.count(attack) >= 10


def test_a_second_report_replaces_the_first(tmp_path, make_content):
    _write(tmp_path, make_content(notes=["first"], **NO_FIGURES))
    html, _ = _write(tmp_path, make_content(notes=["second"], **NO_FIGURES))
    assert "<li>second</li>" in html
    assert "<li>first</li>" not in html
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": {}}, "rows has no"),
        ({"components": [[1.0]]}, "components has shape"),
        ({"class_means": [[1.0]]}, "class_means has shape"),
        ({"split_counts": {"train": [1, 2, 3]}}, "split_counts"),
        ({"labels": None}, "labels is None"),
        ({"probabilities": {}}, "probabilities has no 'Clean_Baseline'"),
        ({"labels": [0, 1]}, r"probabilities\['Clean_Baseline'\] has shape \(1, 215, 2\)"),
    ],
)
def test_content_that_does_not_fit_is_named(make_content, changes, message):
    with pytest.raises(ValueError, match=message):
        make_content(**changes)
