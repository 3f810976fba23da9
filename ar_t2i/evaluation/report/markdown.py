"""A report as text for a repository or a model card."""

from collections.abc import Mapping
from typing import Any

from ar_t2i.evaluation.report.sets import sets_headline, sets_lines
from ar_t2i.evaluation.report.words import scorer, source_facts, spoken


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report, without pictures."""
    lines = [f"# Evaluation of {report['source']['name']}", ""]
    lines += ["| suite | metric | value (95 % interval) | prompts | pictures |", "|---|---|---|---|---|"]
    for part in report["suites"]:
        if part.get("kind") == "distribution":
            lines.append(sets_headline(part))
            continue
        headline = part["figures"].get(part["headline"])
        value = spoken(headline) if headline else "not asked"
        lines.append(
            f"| {part['suite']} | {part['headline']} | {value} | {part['prompts']:,} | {part['pictures']:,} |"
        )
    for part in report["suites"]:
        lines += ["", f"## {part['suite']}", "", part["about"], ""]
        lines += sets_lines(part) if part.get("kind") == "distribution" else _categories(part)
        scored = scorer(part["protocol"]["scored_by"])
        lines += ["", f"Prompts {part['protocol']['prompts']}; scored by {scored}."]
    lines += ["", "## What the figures hang on", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_plain(value)} |" for name, value in source_facts(report).items()]
    return "\n".join(lines) + "\n"


def _categories(part: Mapping[str, Any]) -> list[str]:
    metrics = list(part["figures"])
    lines = [f"| category | {' | '.join(metrics)} |", "|---" * (1 + len(metrics)) + "|"]
    for name, figures in (*part["categories"].items(), ("**all**", part["figures"])):
        said = (spoken(figures[metric]) if metric in figures else "–" for metric in metrics)
        lines.append(f"| {name if name == '**all**' else _plain(name)} | {' | '.join(said)} |")
    return lines


def _plain(text: str) -> str:
    """A text that breaks no table."""
    return " ".join(text.replace("|", "\\|").split())
