import json
import re
from pathlib import Path

from ar_t2i.data.scenes import COLORS, HELD_OUT, KINDS, PLACE_PHRASES, PLACES, RELATIONS, example

PAGE = (Path(__file__).parents[3] / "docs" / "scenes.md").read_text()


def listed(sentence):
    """The comma-separated words of the paragraph that matches."""
    found = re.search(sentence, PAGE, re.DOTALL)
    assert found, sentence
    return [" ".join(word.split()) for word in found.group(1).split(",")]


def test_the_page_lists_what_the_code_has():
    assert listed(r"\*\*20 kinds\*\*: (.*?)\.\n") == list(KINDS)
    assert listed(r"\*\*10 colours\*\*: (.*?)\.") == list(COLORS)
    assert listed(r"\*\*5 relations\*\*: (.*?)\.") == list(RELATIONS)
    assert listed(r"What can carry another object: (.*?)\.") == [kind for kind, facts in KINDS.items() if facts.seat]
    assert {tuple(pair.split()) for pair in listed(r"a tenth of all pairs:\n\n(.*?)\.")} == HELD_OUT
    rows = dict(re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \|$", PAGE, re.MULTILINE))
    assert {place: rows[place] for place in PLACES} == {
        place: ", ".join(PLACE_PHRASES.get(place, ("never said",))) for place in PLACES
    }


def test_the_example_on_the_page_is_what_the_code_gives():
    shown = json.loads(PAGE.split("```json\n")[1].split("```")[0])
    _, _, facts = example(shown["seed"], shown["index"], shown["split"])
    for short, whole in zip(shown["objects"], facts["objects"], strict=True):
        runs = short["mask"]["counts"]
        assert runs.pop() == "..."
        whole["mask"]["counts"] = whole["mask"]["counts"][: len(runs)]
    assert shown == facts
