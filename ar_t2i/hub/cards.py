"""Cards of what is published: README.md with the yaml that the Hub shows and searches."""

import html
import re
from collections.abc import Mapping
from typing import Any

import yaml

from ar_t2i.untrusted import parse_yaml, printable

_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_COMMANDS = re.compile(r"""(from_pretrained\("|--bundle )[\w.-]+/[\w.@/-]+""")
"""Of a card that was published under another id before."""
PLACEHOLDER = "path/to/this/folder"
"""What a card that was not published yet says in the place of its id."""
LIBRARY: dict[str, dict[str, Any]] = {
    "bundle": {"library_name": "transformers", "pipeline_tag": "text-to-image", "tags": ["ar_t2i"]},
    "image tokenizer": {"tags": ["ar_t2i", "image-tokenizer"]},
    "vocabulary": {"tags": ["ar_t2i"]},
}


def read_card(text: str, name: str = "README.md") -> tuple[dict[str, Any], str]:
    """The yaml of a card and the text below it.

    Raises:
        ValueError: the yaml cannot be read or is no mapping.
    """
    match = _FRONT.match(text)
    if match is None:
        return {}, text
    try:
        header = parse_yaml(match[1], name) or {}
    except ValueError as error:
        raise ValueError(f"the yaml of {name} cannot be read: {error}; mend it") from error
    if not isinstance(header, dict):
        raise ValueError(f"the yaml of {name} is no mapping; mend it")
    return header, text[match.end() :]


def write_card_text(header: Mapping[str, Any], body: str) -> str:
    """A card of yaml and text."""
    return f"---\n{yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)}---\n{body}"


def published_card(text: str, address: str, kind: str, links: Mapping[str, str]) -> str:
    """The card as it stands on the Hub: with licence and links, and the id where the folder's path stood.

    Args:
        text: the card so far, "" for none.
        address: owner/name, with @branch where it is not main.
        kind: bundle, image tokenizer or vocabulary.
        links: license, datasets and base_model; empty ones are left as they are.

    Raises:
        ValueError: neither card nor links name a licence, or the yaml cannot be read.
    """
    header, body = read_card(text)
    for name, value in LIBRARY[kind].items():
        header.setdefault(name, value)
    for name, value in links.items():
        if value:
            header[name] = [value] if name == "datasets" else value
    if not header.get("license"):
        raise ValueError("the card names no licence: give --license, such as apache-2.0, or write `license:` into it")
    body = body.replace(PLACEHOLDER, address)
    body = _COMMANDS.sub(lambda found: found[1] + address, body)
    repo_id = address.partition("@")[0]
    return write_card_text(header, body or f"\n# {repo_id.rpartition('/')[2]}\n\nA {kind} of ar_t2i.\n")


def plain(text: str) -> str:
    """A text as text alone in markdown and html, one line, cut where it is long."""
    short = printable(text)
    short = short if len(short) <= 200 else short[:200] + "…"
    return re.sub(r"([\\`*_\[\]|!#~])", r"\\\1", html.escape(short, quote=False))
