"""A page that is one file: style, scripts and pictures inside, and nothing from anywhere else."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from PIL import Image

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_QUALITY = 82


def page(title: str, body: str, script: str = "page.js", data: str = "") -> str:
    """A whole html document.

    Args:
        title: of the window.
        body: html.
        script: name of a file of this folder.
        data: json for the script, which finds it in the element #data.
    """
    plain = data.replace("<", "\\u003c")  # json stays the same, and no tag can end in it
    held = f'<script type="application/json" id="data">{plain}</script>\n' if data else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n'
        f"<style>\n{_file('page.css')}</style>\n</head>\n"
        f"<body>\n{body}\n{held}<script>\n{_file(script)}</script>\n</body>\n</html>\n"
    )


def picture_uri(path: Path, size: int) -> str:
    """A picture as a data: URI, at most `size` pixels wide and high.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"cannot show the picture {str(path)!r}: {error}") from error
    small.thumbnail((size, size), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, "WEBP", quality=_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode()


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], foot: Sequence[str] = (), name: str = "sorts") -> str:
    """An html table; cells are html, each a whole <td> or what stands in one."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(_row(cells) for cells in rows)
    foot_html = f"<tfoot>{_row(foot)}</tfoot>" if foot else ""
    head_html = f"<thead><tr>{head}</tr></thead>" if heads else ""
    return f'<div class="scroll"><table class="{name}">{head_html}<tbody>{body}</tbody>{foot_html}</table></div>'


def cell(text: str, value: float | str | None = None, small: str = "", kind: str = "") -> str:
    """A <td>: what is shown, what it is sorted by, and small print below."""
    sort = "" if value is None else f' data-value="{escape(str(value))}"'
    below = f"<small>{escape(small)}</small>" if small else ""
    name = f' class="{kind}"' if kind else ""
    return f"<td{name}{sort}>{escape(text)}{below}</td>"


def facts_table(facts: Mapping[str, object]) -> str:
    """Names and values, two columns."""
    return table((), [(escape(name), escape(str(value))) for name, value in facts.items()], name="facts")


def chips(texts: Iterable[str]) -> str:
    """Short facts in a row."""
    return '<ul class="chips">' + "".join(f"<li>{escape(text)}</li>" for text in texts if text) + "</ul>"


def _row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(each if each.startswith("<td") else f"<td>{each}</td>" for each in cells) + "</tr>"


def _file(name: str) -> str:
    return resources.files("ar_t2i.evaluation.report").joinpath(name).read_text(encoding="utf-8")
