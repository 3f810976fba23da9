import html.parser
import json
import re
import shutil
import subprocess

import pytest
from evaluations import PAINT, paint

from ar_t2i.evaluation.report import read_report, summary
from ar_t2i.evaluation.report.page import page
from ar_t2i.evaluation.report.words import spoken

RIGHT = {"ball-00", "ball-01", "cube_x-02"}


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("painted")
    return folder, paint(folder, RIGHT, name="<b>painter</b>")


class Reader(html.parser.HTMLParser):
    """Collects the cells of tables, links to elsewhere, and whether tags are closed in order."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.outside, self.rows, self.pictures, self.text = [], [], [], 0, []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.pictures += tag == "img"
        for name, value in attributes:
            if name in ("src", "href") and not value.startswith(("data:", "#")):
                self.outside.append(value)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "td" in self.open:
            self.rows[-1][-1] += data


def read_page(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    return reader


def test_the_page_holds_all_that_it_shows(painted):
    folder, report = painted
    text = (folder / "report.html").read_text()
    reader = read_page(text)
    assert not reader.outside and "http" not in re.sub(r"http-equiv", "", text)
    assert reader.pictures == 8 and "Content-Security-Policy" in text
    assert "<b>painter</b>" not in text and "&lt;b&gt;painter" in text
    assert "ball <0> & seed 0" in reader.text  # a prompt as it is
    rows = {row[0]: row[1:] for row in reader.rows if row}
    part = report["suites"][0]
    for name, figures in (*part["categories"].items(), ("all", part["figures"])):
        shown = [re.match(r"\d+\.\d", each) for each in rows[name]]
        assert [float(each[0]) for each in shown if each] == [
            pytest.approx(100 * figure["value"], abs=0.05) for figure in figures.values()
        ]


def test_the_text_says_the_same(painted):
    folder, report = painted
    text = (folder / "report.md").read_text()
    part = report["suites"][0]
    for figures in (*part["categories"].values(), part["figures"]):
        line = next(line for line in text.splitlines() if all(f" {spoken(f)} |" in line for f in figures.values()))
        assert line.replace("\\|", "").count("|") == 2 + len(figures)
    assert "37.5 % (13.7 to 69.4)" in text and "scored by colors" in text
    assert any("37.5 %" in line for line in summary(report))


def test_the_gallery_takes_the_categories_by_turns(painted):
    shown = painted[1]["suites"][0]["examples"]
    assert [each["id"] for each in shown["right"]] == ["ball-00", "cube_x-02", "ball-01"]
    assert [each["category"] for each in shown["wrong"]] == ["ball", "cube|x"] * 2 + ["cube|x"]
    assert all((painted[0] / PAINT.name / each["picture"]).is_file() for each in shown["wrong"])


def test_a_prompt_cannot_end_the_script():
    held = json.dumps({"text": "</script><script>alert(1)</script>"})
    text = page("x", "", data=held)
    found = re.search(r'id="data">(.*?)</script>', text, re.S)
    assert found and json.loads(found[1]) == json.loads(held) and text.count("<script") == 2


def test_reports_of_another_kind_are_refused(painted, tmp_path):
    with pytest.raises(ValueError, match="no report.json in"):
        read_report(tmp_path)
    for change in ({"schema": 99}, {"schema": "1"}):
        (tmp_path / "report.json").write_text(json.dumps({**painted[1], **change}))
        with pytest.raises(ValueError, match="this version reads 1"):
            read_report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ValueError, match="not valid json"):
        read_report(tmp_path)


def browse(path, script, folder):
    """The page in Chromium after a script; everything that it wrote to the console fails the test."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    page = folder / "browsed.html"
    page.write_text(path.read_text() + f"<script>{script}</script>")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--dump-dom", f"file://{page}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout


def test_tables_sort_in_a_browser(painted, tmp_path):
    click = "const b = document.querySelectorAll('table.sorts thead button'); b[1].click(); b[1].click();"
    reader = read_page(browse(painted[0] / "report.html", click, tmp_path))
    names = [row[0] for row in reader.rows if row and row[0] in ("ball", "cube|x", "all")]
    assert names == ["cube|x", "ball", "all"]  # 1 of 4 before 2 of 4, and the foot stays


def test_the_ballot_in_a_browser(painted, tmp_path):
    """Keys vote, undo takes back, and what is saved is counted."""
    from ar_t2i.evaluation.blind import BlindConfig, blind

    paint(tmp_path / "other", {"ball-03"}, name="other")
    reports = (str(painted[0]), str(tmp_path / "other"))
    out = tmp_path / "blind.html"
    assert blind(BlindConfig(reports=reports, out=str(out), count=4))["pairs"] == 4
    assert "painter" not in out.read_text() and "http" not in out.read_text().replace("http-equiv", "")
    press = (
        "for (const key of ['ArrowLeft', 'ArrowRight', 'Backspace', 'ArrowDown', 'ArrowRight', 'a', 'ArrowLeft'])"
        " document.dispatchEvent(new KeyboardEvent('keydown', { key }));"
        "document.title = decodeURIComponent(document.querySelector('#save').href.split(',').slice(1).join(','));"
    )
    dom = browse(out, press, tmp_path)
    saved = html.unescape(re.search(r"<title>(.*?)</title>", dom, re.S)[1])  # type: ignore[index]
    (tmp_path / "votes.csv").write_text(saved)
    found = blind(BlindConfig(reports=reports, result=str(tmp_path / "votes.csv")))
    assert found["votes"] == 4 and found["tally"]["tie"] == 1
    assert [line.rsplit(",", 1)[1] for line in saved.split()[1:] if line.count(",") > 1][-1:] == ['"left"']
