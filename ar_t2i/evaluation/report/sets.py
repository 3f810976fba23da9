"""The part of a report about whole sets of pictures: a table with its floor, and what papers say beside it."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ar_t2i.evaluation.distribution import NOT_MEANINGFUL
from ar_t2i.evaluation.report.page import cell, picture_uri, table

_SHOWN = 160


def sets_section(part: Mapping[str, Any], out: Path, anchor: str) -> str:
    """The section of the page."""
    parts = [
        f'<h2 id="{anchor}">{escape(part["suite"])}</h2>',
        f'<p class="soft">{escape(part["about"])}</p>',
        sets_table(part),
        *(f'<p class="soft">{escape(warning)}</p>' for warning in _warnings(part)),
    ]
    if part["published"]:
        parts += [f'<h3>Beside papers</h3><p class="soft">{escape(part["published"]["source"])}</p>', _beside(part)]
    shots = "".join(_shot(each, out / part["folder"]) for each in part["examples"]["some"])
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in part["dropped"].items()) or "none"
    return "\n".join(
        [
            *parts,
            f'<h3>Pictures, the first</h3><div class="gallery">{shots}</div>',
            f'<p class="soft" style="margin-top:16px">Reference {escape(", ".join(part["protocol"]["reference"]))}; '
            f"left out: {escape(dropped)}; captions {escape(part['protocol']['prompts'])}; "
            f"{escape(part['protocol']['crop'])}.</p>",
        ]
    )


def sets_table(part: Mapping[str, Any]) -> str:
    """A row for each set."""
    rows = [_cells(row, metrics_of(part)) for row in part["rows"]]
    return table(["pictures", *metrics_of(part), "generated", "reference"], rows)


def sets_card(part: Mapping[str, Any]) -> str:
    """What stands on the card of the head."""
    figure = _value(part["rows"][0], part["headline"])
    doubt = _doubt(part["rows"][0], part["headline"])
    others = " · ".join(f"{row['what']} {_said(_value(row, part['headline']))}" for row in part["rows"][1:])
    return (
        f'<div class="big">{_said(figure)}<span class="unit"> {escape(part["headline"])}{doubt}</span></div>'
        f'<div class="soft">{escape(others)} · {part["pictures"]:,} pictures</div>'
    )


def sets_headline(part: Mapping[str, Any]) -> str:
    """The row of the table on top of report.md."""
    row, headline = part["rows"][0], part["headline"]
    value = f"{_said(_value(row, headline))}{_doubt(row, headline)}"
    return f"| {part['suite']} | {headline} | {value} | {part['prompts']:,} | {part['pictures']:,} |"


def sets_lines(part: Mapping[str, Any]) -> list[str]:
    """The tables in Markdown."""
    metrics = metrics_of(part)
    lines = [f"| pictures | {' | '.join(metrics)} | generated | reference |", "|---" * (3 + len(metrics)) + "|"]
    for row in part["rows"]:
        counts = f"{row['pictures']['generated']:,} | {row['pictures']['reference']:,}"
        lines.append(f"| {row['name']} | {' | '.join(_long(row, metric) for metric in metrics)} | {counts} |")
    lines += ["", *_warnings(part)]
    if part["published"]:
        lines += [
            "",
            f"{part['published']['source']}:",
            "",
            "| model | parameters | FID | CLIP |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {row['model']} | {row['parameters']} | {row['fid']} | {row['clip']:.2f} |"
            for row in part["published"]["rows"]
        ]
    return lines


def metrics_of(part: Mapping[str, Any]) -> list[str]:
    """The figures that any row has, in order."""
    named = [name for row in part["rows"] for name in (*row["figures"], *(["clip"] if "clip" in row else []))]
    return list(dict.fromkeys(named))


def _shot(each: Mapping[str, Any], folder: Path) -> str:
    text, uri = escape(each["text"]), picture_uri(folder / each["picture"], _SHOWN)
    return (
        f'<figure class="shot"><div class="frame"><img src="{uri}" alt="{text}"></div>'
        f"<figcaption><q>{text}</q></figcaption></figure>"
    )


def _cells(row: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    counts = [cell(f"{row['pictures'][which]:,}", row["pictures"][which]) for which in ("generated", "reference")]
    cells = []
    for metric in metrics:
        value, found = _value(row, metric), row["figures"].get(metric)
        whole = isinstance(found, Mapping) and found["low"] is not None
        small = f"{_said(found['low'])} to {_said(found['high'])}" if whole else _doubt(row, metric).strip(", ")
        cells.append(cell(_said(value), "" if value is None else value, small))
    return [cell(row["name"], kind="text"), *cells, *counts]


def _beside(part: Mapping[str, Any]) -> str:
    ours = part["rows"][0]
    rows = [
        [cell(row["model"]), cell(row["parameters"]), cell(f"{row['fid']}", row["fid"]), cell(f"{row['clip']:.2f}")]
        for row in part["published"]["rows"]
    ]
    mine = [cell(ours["name"]), cell("–"), cell(_said(_value(ours, "fid"))), cell(_said(_value(ours, "clip")))]
    return table(["model", "parameters", "FID", "CLIP"], [*rows, mine])


def _value(row: Mapping[str, Any], metric: str) -> float | None:
    found = row.get("clip") if metric == "clip" else row["figures"].get(metric)
    return found["value"] if isinstance(found, Mapping) else found


def _said(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _long(row: Mapping[str, Any], metric: str) -> str:
    found = row["figures"].get(metric)
    if isinstance(found, Mapping) and found["low"] is not None:
        return f"{_said(found['value'])} ({_said(found['low'])} to {_said(found['high'])})"
    return _said(_value(row, metric)) + _doubt(row, metric)


def _doubt(row: Mapping[str, Any], metric: str) -> str:
    """What stands behind a figure that has an interval elsewhere, but not here."""
    found = row["figures"].get(metric)
    return f", {NOT_MEANINGFUL}" if isinstance(found, Mapping) and found["low"] is None else ""


def _warnings(part: Mapping[str, Any]) -> list[str]:
    """Each once, with the rows that it is about, if not all."""
    about: dict[str, list[str]] = {}
    for row in part["rows"]:
        for warning in row["warnings"]:
            about.setdefault(warning, []).append(row["name"])
    return [
        warning if len(names) == len(part["rows"]) else f"{', '.join(names)}: {warning}"
        for warning, names in about.items()
    ]
