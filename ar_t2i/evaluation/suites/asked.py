"""Whether prompts that someone wrote ask for what a suite can score."""

from collections.abc import Mapping
from typing import Any

from ar_t2i.data.scenes import COLORS, PLACES, RELATIONS
from ar_t2i.evaluation.judge import Reading
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.suites import Suite
from ar_t2i.evaluation.suites.grammar import WORDS


def check_asked(suite: Suite, prompt: Prompt) -> None:
    """Refuse a prompt that a suite with a detector cannot score.

    Raises:
        ValueError: what is wrong with its `asked`, in words.
    """
    assert suite.score is not None
    if prompt.asked is None:
        raise ValueError('it does not say what must be seen: expected "asked"')
    groups, relations = prompt.asked.get("objects"), prompt.asked.get("relations", [])
    if not isinstance(groups, list) or not groups:
        raise ValueError('"asked" has no list "objects", each with "count", "kind" and "color"')
    for group in groups:
        _check_group(group, WORDS[suite.domain].plurals)
    if not isinstance(relations, list):
        raise ValueError(f'"relations" are {relations!r}: expected a list of [index, relation, index]')
    for relation in relations:
        _check_relation(relation, len(groups))
    place = prompt.asked.get("place")
    if place is not None and (suite.domain == "photos" or place not in PLACES):
        known = f"one of {', '.join(PLACES)}" if suite.domain == "scenes" else "none, as no detector of photos sees it"
        raise ValueError(f"the place is {place!r}: expected {known}")
    suite.score(prompt, Reading(None, ()))


def _check_group(group: Any, kinds: Mapping[str, str]) -> None:
    if not isinstance(group, Mapping):
        raise ValueError(f'one of "objects" is {group!r}: expected "count", "kind" and "color"')
    if type(group.get("count")) is not int or group["count"] < 1:
        raise ValueError(f"a count is {group.get('count')!r}: expected an integer of at least 1")
    if group.get("kind") not in list(kinds):
        raise ValueError(f"a kind is {group.get('kind')!r}: expected one of {', '.join(kinds)}")
    if "color" not in group or group["color"] not in [None, *COLORS]:
        raise ValueError(f"a color is {group.get('color', 'missing')!r}: expected null or one of {', '.join(COLORS)}")


def _check_relation(relation: Any, count: int) -> None:
    if not isinstance(relation, list) or len(relation) != 3 or relation[1] not in RELATIONS:
        raise ValueError(f"a relation is {relation!r}: expected [index, one of {', '.join(RELATIONS)}, index]")
    one, _, other = relation
    if {type(one), type(other)} != {int} or one == other or not (0 <= one < count and 0 <= other < count):
        raise ValueError(f"the relation {relation!r} is not between two of the {count} objects")
