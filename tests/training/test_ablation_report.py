"""The report of the ablations from results made by hand."""

import pytest
from ablation_report import ROOMS, STREETS, WORDS, as_page, as_table, difference, interval, missing, orderings, papers
from ablation_rows import ROWS

IMAGES = 20


def run(streets=0.5, rooms=0.5, spread=0.0, right=None):
    """Scores whose means are given; `spread` is added to every second image and taken from the others."""
    scores = {}
    for kind, mean in (("street", streets), ("room", rooms)):
        for image in range(IMAGES):
            scores[f"{kind}/{image}"] = mean + (spread if image % 2 else -spread) + 0.01 * (image - (IMAGES - 1) / 2)
    words = {"asked": {"1": 3, "2": 1}, "right": right or {"1": 3, "2": 0}}
    return {"scores": {"delta1": scores}, "words": words}


def verdicts(number, measure, results):
    return {one.sentence.partition(" in the paper")[0]: one.verdict for one in orderings(number, measure, results)}


def test_the_papers_means():
    assert papers(4, STREETS)["mlp"] == pytest.approx((0.547 + 0.444) / 2)
    assert papers(4, ROOMS)["mlp_multiscale"] == pytest.approx((0.727 + 0.806) / 2)
    assert papers(6, WORDS)["stage1_only"] == pytest.approx((0.8323 + 0.6036 + 0.6355 + 0.840) / 4)
    assert papers(7, ROOMS)["raw"] == pytest.approx((0.770 + 0.630) / 2)


def test_orderings_hold_are_reversed_or_cannot_be_told_apart():
    results = {
        "ours": [run(0.7, 0.7)],
        "dpt": [run(0.8, 0.7, spread=0.1)],  # above on every street; on rooms above and below by turns
        "mlp_multiscale": [run(0.6, 0.6)],
    }
    streets = verdicts(4, STREETS, results)
    assert streets["“lightweight DPT (ours)” stands above “two-layer MLP, multi-scale”"] == "holds"
    assert streets["“lightweight DPT (ours)” stands above “original DPT”"] == "reversed"
    assert streets["“original DPT” stands above “two-layer MLP”"] == "missing"
    assert len(streets) == 6
    rooms = verdicts(4, ROOMS, results)
    assert rooms["“lightweight DPT (ours)” stands above “original DPT”"] == "cannot be told apart"
    [sentence] = [
        one.sentence for one in orderings(4, STREETS, results) if one.verdict == "holds" and "ours" in one.sentence
    ]
    assert sentence.endswith(
        "in the paper, by 0.100; here this **holds**, by +0.100 (+0.100 to +0.100)."
    )  # (0.879 + 0.821 - 0.723 - 0.776) / 2


def test_the_papers_order_may_differ_between_its_columns():
    """Table 6, by hand: the unfrozen ViT is 0.8605 to 0.850 outdoors, 0.8965 to 0.897 indoors."""
    results = {"ours": [run()], "unfrozen_vit": [run()]}
    assert (
        "“stage 1 + stage 2, the ViT trained too” stands above “stage 1 + stage 2, the ViT frozen (ours)”"
        in verdicts(6, STREETS, results)
    )
    assert (
        "“stage 1 + stage 2, the ViT frozen (ours)” stands above “stage 1 + stage 2, the ViT trained too”"
        in verdicts(6, ROOMS, results)
    )


def test_answers_count_by_the_question_and_pairs_by_the_seed():
    assert interval([run()], WORDS).estimate == 0.75  # 3 of 4, though one scene of two
    assert interval([run(), run(right={"1": 0, "2": 1})], WORDS).estimate == 0.5
    both = [run(0.7), run(0.9)]
    assert interval(both, STREETS).estimate == pytest.approx(0.8)
    assert difference(both, [run(0.6)], STREETS).estimate == pytest.approx(0.1)  # the first seeds alone


def test_intervals_are_over_images():
    """The mean of 20 independent images, half 0 and half 1: a binomial's standard error is 0.1118."""
    half = {"scores": {"delta1": {f"street/{image}": float(image % 2) for image in range(IMAGES)}}}
    found = interval([half], STREETS)
    assert found.estimate == 0.5
    assert found.low == pytest.approx(0.5 - 1.96 * 0.1118, abs=0.031)  # to the next of the 20 steps
    assert found.high == pytest.approx(0.5 + 1.96 * 0.1118, abs=0.031)


def test_the_page_says_what_is_missing(tmp_path):
    assert missing({})[0] == "ours, seed 0"
    assert len(missing({})) == sum(row.seeds for row in ROWS.values()) == 18
    page = as_page({"mlp": [run(0.25)]}, tmp_path)
    lacking = page.partition("Not scored yet: ")[2].partition("\n")[0]
    assert "mlp, seed 0" not in lacking.split("; ")
    assert "dpt, seed 1" in lacking
    assert "tables 4 to 7: 54. Hold here: 0; reversed: 0; cannot be told apart: 0; not known yet: 54." in page
    everything = {
        name: [run(0.1 * number, 0.1 * number)] * row.seeds for number, (name, row) in enumerate(ROWS.items())
    }
    page = as_page(everything, tmp_path)
    assert "Not scored yet" not in page
    assert "not known yet: 0." in page


def test_a_table_has_the_papers_column_beside_ours():
    lines = as_table(4, {"mlp": [run(0.25, 0.75)]}).splitlines()
    assert lines[0].startswith(
        "| row | paper: mean of Waymo, NuScenes | here: streets | paper: mean of sunRGBD, IBims-1 |"
    )
    assert lines[2].startswith("| two-layer MLP | 0.496 | 0.250 (")
    assert lines[5] == "| lightweight DPT (ours) | 0.850 | missing | 0.897 | missing | –; – |"
