"""Reports of evaluations: report.json, and report.md and report.html made of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ar_t2i.evaluation.report.html import html
from ar_t2i.evaluation.report.markdown import markdown
from ar_t2i.evaluation.report.sets import sets_lines
from ar_t2i.evaluation.report.words import spoken
from ar_t2i.untrusted import printable, read_json

SCHEMA = 1
"""Of report.json; goes up where a reader of old reports would misread new ones."""
REPORT = "report.json"


def write_report(report: Mapping[str, Any], out: Path) -> list[Path]:
    """Write report.json, report.md and report.html to a folder; returns their paths."""
    texts = {
        REPORT: json.dumps(report, indent=2, ensure_ascii=False) + "\n",
        "report.md": markdown(report),
        "report.html": html(report, out),
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in texts]


def read_report(folder: str | Path) -> dict[str, Any]:
    """What `write_report` wrote.

    Raises:
        ValueError: no report there, or one of another schema.
    """
    path = Path(folder) / REPORT
    try:
        report = read_json(path)
    except OSError as error:
        raise ValueError(f"no {REPORT} in {str(folder)!r}: expected a folder that ar-t2i evaluate wrote") from error
    if report.get("schema") != SCHEMA or "suites" not in report:
        raise ValueError(
            f"{path} has the schema {report.get('schema')!r}, this version reads {SCHEMA}: run ar-t2i evaluate again"
        )
    return report


def summary(report: Mapping[str, Any]) -> list[str]:
    """The headlines for a terminal."""
    lines = [f"{printable(report['source']['name'])}, seed {report['seed']}"]
    for part in report["suites"]:
        lines.append(f"{part['suite']}: {part['prompts']:,} prompts, {part['pictures']:,} pictures")
        if part.get("kind") == "distribution":
            lines += [f"  {printable(line)}" for line in sets_lines(part)]
            continue
        rows = {**part["categories"], "all": part["figures"]}
        for name, figures in rows.items():
            figure = figures.get(part["headline"])
            lines.append(f"  {printable(name):24}{part['headline']:12}{spoken(figure) if figure else 'not asked'}")
    return lines
