"""The words of captions, so that a model can say which words of a prompt it has never seen.

A word is a run of letters, marks and digits of any script, in lower case. Apostrophes inside belong to it (don't,
l'arbre), an English 's at its end does not (artist's is artist). Scripts that put no spaces between words count
character by character, which also keeps their lists short.
"""

import hashlib
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ar_t2i.untrusted import read_text

_UNSPACED = ("CJK ", "HIRAGANA ", "KATAKANA", "THAI ", "LAO ", "KHMER ", "MYANMAR ")
_APOSTROPHES = "'\u2019\u02bc"


class _Letters(dict[int, str]):
    """A table for `str.translate` that fills itself: what no word is made of becomes a space."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if character in _APOSTROPHES:
            kept = "'"
        elif unicodedata.category(character)[0] not in "LMN":
            kept = " "
        elif unicodedata.name(character, "").startswith(_UNSPACED):
            kept = f" {character} "
        else:
            kept = character
        self[code] = kept
        return kept


_LETTERS = _Letters()


def words_of(texts: Iterable[str]) -> set[str]:
    """The distinct words of some texts; memory grows with these alone."""
    found: set[str] = set()
    for text in texts:
        found.update(unicodedata.normalize("NFKC", text).lower().translate(_LETTERS).split())
    words = {raw.strip("'").removesuffix("'s").strip("'") for raw in found}
    return {word for word in words if any(map(str.isalnum, word))}  # a mark alone is left over from an emoji


def read_words(path: Path) -> frozenset[str]:
    """The words of a file that `write_words` wrote.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return frozenset(read_text(path).split())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no list of words in UTF-8: {error}") from error


def write_words(path: Path, words: Iterable[str]) -> None:
    """Write words sorted, one a line."""
    path.write_text(_lines(words), encoding="utf-8", newline="\n")


def fingerprint_of_words(words: Iterable[str]) -> str:
    """sha256 hex of the sorted words."""
    return hashlib.sha256(_lines(words).encode()).hexdigest()


def _lines(words: Iterable[str]) -> str:
    return "".join(f"{word}\n" for word in sorted(words))
