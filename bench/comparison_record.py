"""Collect what `nnmf-cuda compare` has found into one record, and set the docs' tables from it.

    python -m bench.comparison_record COMPARE.json... --out bench/results/comparison-NAME.json
    python -m bench.comparison_record --page docs/comparison.md bench/results/comparison-NAME.json

With --out, each COMPARE.json is what the command has written, or an earlier record, all on the same
images and classes; of a system that several have on the same split from the same seed, the last
counts. Of the clean metrics the record keeps three, and of the data's path the name. With --page,
each file is a record, whose tables go into the Markdown file between ``<!-- comparison-NAME -->``
and ``<!-- /comparison-NAME -->``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.plot import write_parts
from bench.runs import as_text, read
from nnmf_cuda.evaluation.compared import Compared
from nnmf_cuda.report.comparison import (
    RANDOM_LABELS_HEADER,
    folds_caption,
    folds_header,
    folds_rows,
    main_header,
    main_rows,
    random_rows,
)

KEPT = ("accuracy", "balanced_accuracy", "roc_auc")
"""Clean metrics that a record holds."""

_LISTS = ("systems", "measured", "failed", "transfer", "random_labels")
_SAME = ("source", "label_names", "image_shape", "smoke", "spending")


def record_of(contents: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return one record of several `compare.json`, or records.

    Raises ValueError where they are of different images, splits or attacks, of a smoke run, of a
    tree that is no commit, or where a later one has transferred points among fewer systems.
    """
    subjects = [one for content in contents for one in _subjects(content)]
    for subject in subjects:
        if subject["smoke"]:
            raise ValueError("a comparison with --smoke says nothing of a system: leave it out")
        for name in _SAME:
            if subject[name] != subjects[0][name]:
                raise ValueError(
                    f"comparisons differ in {name} ({subjects[0][name]} and {subject[name]}): make"
                    " a record of each"
                )
        for split, found in subject["data_sha256"].items():
            first = next(s for s in subjects if split in s["data_sha256"])
            if found != first["data_sha256"][split]:
                raise ValueError(
                    f"comparisons differ in the images of {split}: those of other images, or of a"
                    " split that another --seed has made, have no mean; make a record of each"
                )
    for line in (line for content in contents for line in content["measured"]):
        if not line["commit"] or line["commit"].endswith("+") or " " in line["commit"]:
            raise ValueError(
                f"{line['system']} on {line['split']} was measured by a tree that is no commit:"
                " commit, and run it again"
            )
    lines: dict[str, dict[tuple[Any, ...], Any]] = {name: {} for name in _LISTS}
    keys = {
        "systems": ("name",),
        "measured": ("system", "split", "seed"),
        "failed": ("system", "split", "seed"),
        "transfer": ("attack", "split", "seed"),
        "random_labels": ("system", "labels_by", "split_by"),
    }
    for content in contents:
        for name, of in keys.items():
            for line in content[name]:
                kept = dict(line)
                if name == "measured":
                    kept["metrics"] = {metric: line["metrics"][metric] for metric in KEPT}
                key = tuple(line[field] for field in of)
                if name == "transfer" and key in lines[name]:
                    _check_none_is_lost(lines[name][key], line)
                lines[name][key] = kept
    for key in lines["measured"]:
        lines["failed"].pop(key, None)
    # In the table's order, which the comparison of most systems has.
    contents_by_size = sorted(contents, key=lambda content: -len(content["systems"]))
    order = dict.fromkeys((s["name"],) for content in contents_by_size for s in content["systems"])
    lines["systems"] = {key: lines["systems"][key] for key in order}
    return {"subjects": subjects, **{name: list(found.values()) for name, found in lines.items()}}


def _subjects(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a `compare.json` or a record is of, its data by the file's name."""
    found = content["subjects"] if "subjects" in content else [content["subject"]]
    return [{**subject, "source": Path(subject["source"]).name} for subject in found]


def _check_none_is_lost(before: Mapping[str, Any], line: Mapping[str, Any]) -> None:
    """Raise ValueError where a later matrix of points lacks systems that an earlier one has."""
    lost = set(before["targets"]) - set(line["targets"])
    if lost:
        raise ValueError(
            f"two comparisons have transferred points on {line['split']} from seed {line['seed']},"
            f" the later without {', '.join(sorted(lost))}: compare all of them in one run, or"
            " leave one out"
        )


def compared_of(record: Mapping[str, Any]) -> Compared:
    """Return a record as one comparison, of which the subject is the first's."""
    return Compared.from_dict({"subject": record["subjects"][0], **record})


def tables_of(found: Compared) -> str:
    """Return the tables of a comparison as Markdown: each split, folds, random labels."""
    parts = []
    folds = [name for name in found.splits if name.startswith("fold ")]
    for split in [name for name in found.splits if name not in folds or len(folds) == 1]:
        cells = [
            (
                row.facts.name + (f" (failed from {row.failure})" if row.failure else ""),
                row.facts.authors,
                *row.cells,
            )
            if row.cells
            else (row.facts.name, row.facts.authors, f"failed: {row.failure}")
            for row in main_rows(found, split)
        ]
        runs = [one for one in found.measured if one.split == split]
        first = runs[0]
        parts += [
            f"**{split}**: {first.n_train} training images, {first.n_test} test images, of which"
            f" {first.robust.n} attacked; constant answer {first.constant:.3f}.",
            markdown(("system", "authors", *main_header(found)), cells),
        ]
    if len(folds) > 1:
        parts += [f"{folds_caption(found)}.", markdown(folds_header(found), folds_rows(found))]
    if found.random_labels:
        parts += [
            "**Random labels**",
            markdown(RANDOM_LABELS_HEADER, random_rows(found.random_labels)),
        ]
    return "\n\n".join(parts)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; rows that are too short are filled up."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    lines += [[*row, *[""] * (len(header) - len(row))] for row in rows]
    plain = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in plain)


def main() -> None:
    """Make a record, or set a page's tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="the record to write")
    where.add_argument("--page", type=Path, help="the Markdown file to set tables in")
    options = parser.parse_args()
    contents = [read(path) for path in options.files]
    if options.out is not None:
        options.out.write_text(as_text(record_of(contents)) + "\n", encoding="utf-8")
        return
    parts = {
        path.stem: tables_of(compared_of(content))
        for path, content in zip(options.files, contents, strict=True)
    }
    write_parts(options.page, parts)


if __name__ == "__main__":
    main()
