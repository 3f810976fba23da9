import csv
import json
import re
import shutil
from dataclasses import replace

import pytest
from evaluations import PAINT, paint

from ar_t2i.cli import main
from ar_t2i.evaluation.blind import COLUMNS, BlindConfig, blind
from ar_t2i.evaluation.compare import CompareConfig, compare
from ar_t2i.evaluation.report import side_by_side
from ar_t2i.evaluation.results import read_results
from ar_t2i.evaluation.statistics import paired_interval

FIRST = {"ball-00", "ball-01", "cube_x-02"}
SECOND = {"ball-00", "ball-02", "cube_x-00", "cube_x-01", "cube_x-02"}


@pytest.fixture
def two(tmp_path):
    paint(tmp_path / "one", FIRST, name="one")
    paint(tmp_path / "two", SECOND, name="two")
    return str(tmp_path / "one"), str(tmp_path / "two")


def test_differences_are_paired(two, tmp_path, capsys):
    found = compare(CompareConfig(reports=two, out=str(tmp_path / "out")))
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == json.loads(json.dumps(found))
    (part,) = found["suites"]
    rows = [
        {r.id: r.scores for r in read_results(tmp_path / name / "scenes/paint/results.jsonl")}
        for name in ("one", "two")
    ]
    for metric in ("right", "half", "even"):
        asked = [id for id in rows[0] if rows[0][id][metric] is not None]
        values = [[scores[id][metric] for id in asked] for scores in rows]
        expected = paired_interval(values[1], values[0], 0)
        difference = part["differences"][0][metric]
        assert (difference["value"], difference["low"], difference["high"]) == (
            expected.value,
            expected.low,
            expected.high,
        )
        assert difference["count"] == len(asked)
    assert part["differences"][0]["right"]["value"] == pytest.approx(2 / 8)
    printed = capsys.readouterr().out
    assert "| right | 37.5 %" in printed and "+25.0 (" in printed and "compare.html" in printed


def test_what_differs_is_shown_side_by_side(two, tmp_path):
    found = compare(CompareConfig(reports=two, out=str(tmp_path / "out")))
    apart = found["suites"][0]["apart"]
    assert [each["pictures"][0]["id"] for each in apart] == ["ball-01", "ball-02", "cube_x-00", "cube_x-01"]
    text = (tmp_path / "out" / "compare.html").read_text()
    assert text.count("<img ") == 8 and "http" not in text.replace("http-equiv", "")


def test_only_what_all_have_counts(two, tmp_path, capsys):
    """More prompts or rounds in one of them are left out, and said to be."""
    paint(tmp_path / "more", SECOND, name="more", count=6, rounds=2)
    (part,) = compare(CompareConfig(reports=(two[0], str(tmp_path / "more")), out=str(tmp_path / "out")))["suites"]
    assert (part["prompts"], part["pictures"], part["left_out"]) == (8, 8, [0, 16])
    assert part["differences"][0]["right"]["value"] == pytest.approx(2 / 8)
    said = (
        "8 prompts, 8 pictures of each model; pictures left out, as not all have their prompts or rounds: 16 of more."
    )
    assert all(said in (tmp_path / "out" / name).read_text() for name in ("compare.md", "compare.html"))
    assert said in capsys.readouterr().out


def test_rounds_of_a_prompt_do_not_count_as_prompts(tmp_path):
    for name, right in (("one", {("ball-00", 1)}), ("two", {"ball-00", ("ball-01", 0)})):
        paint(tmp_path / name, right, name=name, count=2, rounds=2)
    reports = (str(tmp_path / "one"), str(tmp_path / "two"))
    difference = compare(CompareConfig(reports=reports, out=str(tmp_path / "out")))["suites"][0]["differences"][0][
        "right"
    ]
    expected = paired_interval([1, 0.5, 0, 0], [0.5, 0, 0, 0], 0)
    assert (difference["value"], difference["low"], difference["count"]) == (expected.value, expected.low, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"facts": {"name": "other eyes", "weights": "none"}}, "protocol differs in scored_by.name: one has 'colors'"),
        ({"facts": {"name": "colors", "weights": "new"}}, "protocol differs in scored_by.weights"),
        ({"seed": 1}, "protocol differs in prompts: ball-00 does not ask for the same"),
        ({"suite": replace(PAINT, name="scenes/other")}, "no suite is in all reports"),
    ],
)
def test_other_protocols_are_refused(two, tmp_path, capsys, options, message):
    paint(tmp_path / "other", FIRST, name="other", **options)
    command = ["evaluate", "compare", two[0], str(tmp_path / "other"), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and message in error[0] and not (tmp_path / "out").exists()


def test_wrong_reports(two, tmp_path, capsys):
    for reports, message in (
        ((two[0],), "1 report: expected at least two"),
        ((two[0], two[0]), "a report comes twice"),
        ((two[0], str(tmp_path / "none")), "no report.json in"),
    ):
        assert main(["evaluate", "compare", *reports, "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


def test_models_of_one_name_get_those_of_their_folders(tmp_path):
    for name in ("left", "right"):
        paint(tmp_path / name, FIRST, name="same")
    reports = (str(tmp_path / "left"), str(tmp_path / "right"))
    found = compare(CompareConfig(reports=reports, out=str(tmp_path / "out")))
    assert [model["name"] for model in found["models"]] == ["left", "right"]


def ballot(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.S)[1])  # type: ignore[index]


def write_votes(path, pairs, choose):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**pair, "choice": choose(pair)} for pair in pairs)


def test_votes_are_counted_for_whom_they_are(two, tmp_path, capsys):
    out = tmp_path / "blind.html"
    assert main(["evaluate", "blind", *two, "--out", str(out), "--seed", "3"]) == 0
    pairs = ballot(out)["pairs"]
    assert len(pairs) == 8 and len({pair["left"] for pair in pairs}) == 2  # both stand on both sides
    first = "".join(re.findall(r"votes-(\w+)-", json.dumps(ballot(out)["name"])))
    votes = tmp_path / "votes.csv"
    write_votes(votes, pairs, lambda pair: "left" if pair["left"] == first else "right")
    found = blind(BlindConfig(reports=two, result=str(votes)))
    assert (found["first"], found["value"], found["interval"]) == ("one", 1.0, "Wilson")
    assert found["low"] == pytest.approx(0.6756, abs=1e-4)
    turned = blind(BlindConfig(reports=two[::-1], result=str(votes)))
    assert (turned["first"], turned["value"], turned["tally"]["second"]) == ("two", 0.0, 8)
    write_votes(votes, pairs, lambda pair: "tie" if pair["id"].startswith("ball") else "left")
    found = blind(BlindConfig(reports=two, result=str(votes)))
    lefts = sum(pair["left"] == first for pair in pairs if not pair["id"].startswith("ball"))
    assert found["value"] == pytest.approx((2 + lefts) / 8) and found["tally"]["tie"] == 4
    assert found["interval"] == "bootstrap" and found["low"] <= found["value"] <= found["high"]
    assert "4 ties, of 8 votes" in capsys.readouterr().out


def test_the_seed_settles_order_and_sides(two, tmp_path):
    pages = []
    for seed in (0, 0, 1):
        blind(BlindConfig(reports=two, out=str(tmp_path / "page.html"), seed=seed, count=5))
        pages.append([(pair["id"], pair["left"]) for pair in ballot(tmp_path / "page.html")["pairs"]])
    assert pages[0] == pages[1] != pages[2] and len(pages[0]) == 5


def test_votes_that_do_not_count(two, tmp_path, capsys):
    out, votes = tmp_path / "blind.html", tmp_path / "votes.csv"
    blind(BlindConfig(reports=two, out=str(out)))
    pairs = ballot(out)["pairs"]
    paint(tmp_path / "three", FIRST, name="three", seed=0)
    cases = [
        (pairs, lambda pair: "both", two, "line 2 is no vote"),
        ([*pairs, pairs[0]], lambda pair: "left", two, "line 10: .* has a vote already"),
        (pairs, lambda pair: "left", (two[0], str(tmp_path / "three")), "line 2 is about other models"),
        ([], lambda pair: "left", two, "holds no votes"),
    ]
    for rows, choose, reports, message in cases:
        write_votes(votes, rows, choose)
        assert main(["evaluate", "blind", *reports, "--result", str(votes)]) == 2
        assert re.search(message, capsys.readouterr().err)
    votes.write_text("name\nx\n")
    assert main(["evaluate", "blind", *two, "--result", str(votes)]) == 2
    assert main(["evaluate", "blind", *two, "--result", str(tmp_path / "none.csv")]) == 2
    assert main(["evaluate", "blind", two[0], "--out", str(out)]) == 2


@pytest.mark.parametrize("picture", ["../../../secret.png", "/etc/secret.png"])
def test_a_report_shows_no_pictures_from_elsewhere(two, tmp_path, picture):
    path = tmp_path / "two" / "scenes/paint/results.jsonl"
    path.write_text(path.read_text().replace("pictures/ball-01-0.png", picture))
    with pytest.raises(ValueError, match=f"names '{picture}', which lies outside of"):
        compare(CompareConfig(reports=two, out=str(tmp_path / "out")))
    with pytest.raises(ValueError, match="which lies outside of"):
        blind(BlindConfig(reports=two, out=str(tmp_path / "blind.html")))


def test_pictures_that_are_gone(two, tmp_path):
    shutil.rmtree(tmp_path / "two" / "scenes/paint/pictures")
    with pytest.raises(ValueError, match="cannot show the picture"):
        compare(CompareConfig(reports=two, out=str(tmp_path / "out")))


def test_more_leakage_is_no_gain():
    found = {"value": 0.2, "low": 0.1, "high": 0.3, "scale": "share"}
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "scale": "share", "interval": "bootstrap"}
    for metric, kind in (("right", "yes"), ("leakage", "no"), ("missing", "no")):
        part = {
            "prompts": 20,
            "headline": "right",
            "figures": [{metric: figure}] * 2,
            "differences": [{metric: found}],
        }
        assert f'class="{kind}"' in side_by_side._row(metric, part)[-1]
