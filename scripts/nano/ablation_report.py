"""
The paper's tables 4 to 7 beside nano's, and each of the paper's orderings that holds here or does not.

    python scripts/nano/ablation_report.py outputs/ablations docs/benchmarks/ablations.md

Reads the results of `make ablations` as far as they are there.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ablation_rows import HERE, NANO_FOCAL_LENGTH, ROWS, TABLES, full_settings, recipe, result_file
from depthvlm.benchmark.report.published import number_in, published_table
from depthvlm.benchmark.scoring.statistics import Interval, bootstrap_interval, paired_bootstrap

from depthvlm.files import read_json, write_text

Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""The results of each row, one for each seed."""


@dataclass(frozen=True)
class Measure:
    """A column of ours and those of the paper whose mean stands beside it."""

    name: str  # in sentences
    title: str
    paper_title: str
    paper: tuple[str, ...]


STREETS = Measure("outdoors", "streets", "Waymo, NuScenes", ("waymo", "nuscenes"))
ROOMS = Measure("indoors", "rooms", "sunRGBD, IBims-1", ("sunrgbd", "ibims1"))
WORDS = Measure(
    "in words", "closed questions", "MMB-EN, MMStar, BLINK, OCRBench", ("mmbench_en", "mmstar", "blink", "ocrbench")
)


def measures(number: int) -> tuple[Measure, ...]:
    """Return the columns of a table."""
    return (STREETS, ROOMS, WORDS) if number == 6 else (STREETS, ROOMS)


def papers(number: int, measure: Measure) -> dict[str, float]:
    """Return the paper's mean over a measure's columns for each row; scores out of 100 and 1,000 as shares."""
    table = published_table(number)
    keys = [column.key for column in table.columns]
    found = {}
    for name, row in zip(TABLES[number], table.rows(), strict=True):
        numbers = [number_in(row.cells[keys.index(key)]) for key in measure.paper]
        scales = [{"delta1": 1, "points": 100}[table.columns[keys.index(key)].unit] for key in measure.paper]
        scales = [1000 if key == "ocrbench" else scale for key, scale in zip(measure.paper, scales, strict=True)]
        found[name] = float(np.mean([(one or 0.0) / scale for one, scale in zip(numbers, scales, strict=True)]))
    return found


def read_results(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what is scored; a later seed counts only after those before it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, row in ROWS.items():
        files = [result_file(out, name, seed) for seed in range(row.seeds)]
        done = list(itertools.takewhile(Path.is_file, files))
        if done:
            found[name] = [read_json(file) for file in done]
    return found


def missing(results: Results) -> list[str]:
    """Return the rows and seeds that are not scored, in words."""
    return [
        f"{name}, seed {seed}"
        for seed in range(max(row.seeds for row in ROWS.values()))
        for name, row in ROWS.items()
        if len(results.get(name, ())) <= seed < row.seeds
    ]


def image_scores(run: Mapping[str, Any], measure: Measure) -> tuple[dict[str, float], dict[str, float]]:
    """Return the score of each image, or the share of right answers about it, and the weight of each."""
    if measure is WORDS:
        asked, right = run["words"]["asked"], run["words"]["right"]
        return {image: right[image] / asked[image] for image in asked}, {image: float(n) for image, n in asked.items()}
    kind = "street" if measure is STREETS else "room"
    scores = {image: score for image, score in run["scores"]["delta1"].items() if image.startswith(f"{kind}/")}
    return scores, dict.fromkeys(scores, 1.0)


def mean_over_seeds(runs: Sequence[Mapping[str, Any]], measure: Measure) -> tuple[dict[str, float], dict[str, float]]:
    """Return the mean score of each image over the runs of a row, and the weight of each image."""
    scores = [image_scores(run, measure) for run in runs]
    return {image: float(np.mean([one[image] for one, _ in scores])) for image in scores[0][0]}, scores[0][1]


def interval(runs: Sequence[Mapping[str, Any]], measure: Measure) -> Interval:
    """Return a row's score with its 95 % interval over images."""
    scores, weights = mean_over_seeds(runs, measure)
    return bootstrap_interval(scores, weights=weights)


def difference(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], measure: Measure) -> Interval:
    """Return how far the first row stands above the second, paired by image and by seed."""
    both = min(len(first), len(second))
    one, weights = mean_over_seeds(first[:both], measure)
    other, _ = mean_over_seeds(second[:both], measure)
    return paired_bootstrap(one, other, weights=weights)


def as_table(number: int, results: Results) -> str:
    """Return a table of the paper with ours beside it, in Markdown."""
    columns = measures(number)
    heads = [f"paper: mean of {one.paper_title} | here: {one.title}" for one in columns]
    lines = [f"| row | {' | '.join(heads)} | of each seed |", "|---|" + "---|---|" * len(columns) + "---|"]
    theirs = [papers(number, one) for one in columns]
    for name, title in TABLES[number].items():
        cells, seeds = [], []
        runs = results.get(name, ())
        for one, paper in zip(columns, theirs, strict=True):
            found = interval(runs, one) if runs else None
            cells += [f"{paper[name]:.3f}", "missing" if found is None else shown(found, "{:.3f}")]
            seeds.append(", ".join(f"{interval([run], one).estimate:.3f}" for run in runs) or "–")
        lines.append(f"| {title} | {' | '.join(cells)} | {'; '.join(seeds)} |")
    return "\n".join(lines)


def shown(found: Interval, form: str = "{:+.3f}") -> str:
    """Return a number with its interval."""
    return f"{form.format(found.estimate)} ({form.format(found.low)} to {form.format(found.high)})"


@dataclass(frozen=True)
class Ordering:
    """Two rows that the paper puts in an order, and what became of it."""

    verdict: str  # "holds", "reversed", "cannot be told apart", or "missing"
    sentence: str


def orderings(number: int, measure: Measure, results: Results) -> list[Ordering]:
    """Return every pair of rows of a table in the paper's order by a measure."""
    paper, titles = papers(number, measure), TABLES[number]
    found = []
    for pair in itertools.combinations(titles, 2):
        upper, lower = sorted(pair, key=paper.__getitem__, reverse=True)
        ahead = paper[upper] - paper[lower]
        if ahead < 5e-5:  # printed with three decimals, of which this is a mean
            continue
        begin = f"“{titles[upper]}” stands above “{titles[lower]}” in the paper, by {ahead:.3f}"
        absent = [titles[name] for name in (upper, lower) if not results.get(name)]
        if absent:
            verb = "are" if len(absent) > 1 else "is"
            end = " and ".join(f"“{one}”" for one in absent)
            found.append(Ordering("missing", f"{begin}; here it is not known yet: {end} {verb} missing."))
            continue
        here = difference(results[upper], results[lower], measure)
        if here.low > 0:
            found.append(Ordering("holds", f"{begin}; here this **holds**, by {shown(here)}."))
        elif here.high < 0:
            found.append(
                Ordering("reversed", f"{begin}; here this **does not hold**: it is the lower one, by {shown(here)}.")
            )
        else:
            found.append(
                Ordering("cannot be told apart", f"{begin}; here the two **cannot be told apart**: {shown(here)}.")
            )
    return found


def conditions(out: Path) -> str:
    """Return how the rows were made, in Markdown."""
    keys, file = recipe(2), out / "settings.json"
    settings = read_json(file) if file.is_file() else asdict(full_settings())
    rows = keys["dataset_generator_kwargs"]
    low, high = (round(NANO_FOCAL_LENGTH * size) for size in rows["sizes"])
    mix = ", ".join(f"{share} {kind}" for kind, share in rows["mix"].items())
    text = (HERE / "ablation_conditions.md").read_text(encoding="utf-8")
    return text.format(batch=keys["per_device_train_batch_size"], mix=mix, low=low, high=high, **settings)


def as_page(results: Results, out: Path, figure: str | None = None) -> str:
    """Return the whole report in Markdown."""
    parts, verdicts = [], []
    for number in TABLES:
        parts.append(f"## Table {number}: {published_table(number).title.partition(': ')[2]}")
        parts.append(as_table(number, results))
        for measure in measures(number):
            found = orderings(number, measure, results)
            verdicts += [one.verdict for one in found]
            parts.append(f"{measure.name.capitalize()}:")
            parts.append("\n".join(f"- {one.sentence}" for one in found))
    counts = {name: verdicts.count(name) for name in ("holds", "reversed", "cannot be told apart", "missing")}
    lacking = missing(results)
    head = [
        "# The paper's ablations at nano's scale",
        "Written by `make ablations`; do not edit it. Nothing is tuned to make an ordering hold.",
        *([f"Not scored yet: {'; '.join(lacking)}."] if lacking else []),
        f"Orderings in the paper's tables 4 to 7: {len(verdicts)}. Hold here: {counts['holds']}; reversed: "
        f"{counts['reversed']}; cannot be told apart: {counts['cannot be told apart']}; "
        f"not known yet: {counts['missing']}.",
        *([f"![delta1 of every row with its interval]({figure})"] if figure else []),
        "## How it is made",
        conditions(out).strip(),
    ]
    return "\n\n".join([*head, *parts]) + "\n"


def draw(results: Results, file: Path) -> None:
    """Draw every scored row of every table with its interval, streets and rooms."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure, shown_as = Figure(figsize=(9, 8), layout="constrained"), {STREETS: "tab:orange", ROOMS: "tab:blue"}
    for axes, (number, titles) in zip(figure.subplots(len(TABLES), 1, sharex=True), TABLES.items(), strict=True):
        for place, name in enumerate(titles):
            for shift, (measure, color) in zip((-0.12, 0.12), shown_as.items(), strict=True):
                if results.get(name):
                    found = interval(results[name], measure)
                    axes.plot([found.low, found.high], [place + shift] * 2, color=color, linewidth=2)
                    axes.plot(found.estimate, place + shift, "o", color=color)
        axes.set_yticks(range(len(titles)), list(titles.values()))
        axes.set_ylim(len(titles) - 0.5, -0.5)
        axes.set_title(f"table {number}", loc="left", fontsize="medium")
        axes.grid(axis="x", alpha=0.3)
    handles = [Line2D([], [], marker="o", color=color, label=measure.title) for measure, color in shown_as.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=2)
    axes.set_xlabel("delta1 on held-out scenes; line: 95 % over images")
    figure.savefig(file, dpi=120)


def write_report(out: Path, page: Path) -> None:
    """Write the page, and the figure beside it as soon as a row is scored."""
    results, figure = read_results(out), page.with_suffix(".png")
    page.parent.mkdir(parents=True, exist_ok=True)
    if results:
        draw(results, figure)
    write_text(page, as_page(results, out, figure.name if results else None))


def main(
    out: Annotated[Path, typer.Argument(help="Folder of `make ablations`.")],
    page: Annotated[Path, typer.Argument(help="File of the report.")],
) -> None:
    """Write the report of what is scored."""
    write_report(out, page)


if __name__ == "__main__":
    typer.run(main)
