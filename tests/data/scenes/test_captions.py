import re
from collections import Counter

from ar_t2i.data.scenes import COLORS, HELD_OUT, KINDS, PLACE_PHRASES, noun_phrase, relation_holds, scene_at, truth

NAMES = {name: kind for kind, facts in KINDS.items() for name in (kind, facts.plural)}
NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "": 1}
LONGEST_FIRST = sorted(NAMES, key=len, reverse=True)
NOUN = re.compile(
    rf"(?:\b(a|an|two|three) )?(?:(small|big) )?(?:({'|'.join(COLORS)}) )?\b({'|'.join(LONGEST_FIRST)})\b"
)


def parse(text):
    """Read a caption back, knowing English only: what `said` should be."""
    place = None
    for name, phrases in PLACE_PHRASES.items():
        for phrase in phrases:
            if re.search(rf"(^{phrase},|{phrase}$)", text):
                place, text = name, text.replace(phrase, "")
    nouns = list(NOUN.finditer(text))
    objects = [
        {"count": NUMBERS[number or ""], "kind": NAMES[name], "color": color, "size": size}
        for number, size, color, name in (noun.groups() for noun in nouns)
    ]
    relations = []
    if len(nouns) == 2:
        between = text[nouns[0].end() : nouns[1].start()].strip()
        if between == "with":
            assert text[nouns[1].end() :].strip() == "on it"
            objects.reverse()
            between = "on"
        between = {"to the left of": "left of", "to the right of": "right of", "under": "below"}.get(between, between)
        if between in ("and", ","):
            assert between != "," or not any(noun.group(1) in ("a", "an") for noun in nouns)
        else:
            relations.append([0, between, 1])
    return {"objects": objects, "relations": relations, "place": place}


def captioned(split, count=3000, seed=21):
    for index in range(count):
        yield scene_at(seed, index, split)


def test_the_caption_says_what_said_says():
    forms = Counter()
    for split in ("train", "heldout"):
        for _, words in captioned(split):
            assert parse(words.text) == words.said, words.text
            forms[words.text.split()[0]] += 1
    assert {"a", "an", "two", "three", "there", "under", "at", "by", "in", "red"} <= set(forms)


def test_what_is_said_is_true_of_the_picture():
    counted = Counter()
    for scene, words in captioned("train", count=1500):
        facts = truth(scene)
        chosen = []
        for said in words.said["objects"]:
            matches = [
                index
                for index, thing in enumerate(facts["objects"])
                if thing["kind"] == said["kind"] and said["color"] in (None, thing["color"])
            ]
            assert len(matches) == said["count"], (words.text, facts["objects"])
            assert said["size"] in (None, facts["size_word"])
            counted["size"] += said["size"] is not None
            counted["unsaid color"] += said["color"] is None
            chosen.append(matches[0])
        assert sum(said["count"] for said in words.said["objects"]) == len(facts["objects"])
        for first, relation, second in words.said["relations"]:
            assert [chosen[first], relation, chosen[second]] in facts["relations"]
            boxes = [facts["objects"][chosen[index]]["box"] for index in (first, second)]
            assert relation_holds(boxes[0], relation, boxes[1])
            counted[relation] += 1
        assert words.said["place"] in (None, facts["place"])
        counted["place"] += words.said["place"] is not None
    for name in ("size", "unsaid color", "on", "above", "below", "left of", "right of", "place"):
        assert counted[name] > 20, counted


def test_plain_names_no_place_and_what_floats_is_not_said_to_be_on_the_ground():
    counted = Counter()
    for scene, words in captioned("train"):
        if scene.place == "plain":
            assert words.said["place"] is None
            counted["plain"] += 1
        if re.search(r"on the (grass|beach)", words.text):
            assert not any(KINDS[thing.kind].floats for thing in scene.things)
            counted["ground"] += 1
    assert min(counted["plain"], counted["ground"]) > 100


def test_held_out_pairs_and_colors_of_twins_are_always_said():
    counted = Counter()
    for scene, words in captioned("heldout", count=1000):
        said = {(thing["color"], thing["kind"]) for thing in words.said["objects"]}
        assert HELD_OUT & {(thing.color, thing.kind) for thing in scene.things} <= said
        counted["held out"] += 1
        kinds = [thing["kind"] for thing in words.said["objects"]]
        if len(kinds) > len(set(kinds)):
            assert None not in {thing["color"] for thing in words.said["objects"]}
            counted["twins"] += 1
    assert counted["held out"] == 1000
    assert counted["twins"] > 0


def test_articles_and_plurals_are_english():
    assert noun_phrase(1, "apple", None) == "an apple"
    assert noun_phrase(1, "umbrella", "red") == "a red umbrella"
    assert noun_phrase(1, "cat", "orange") == "an orange cat"
    assert noun_phrase(1, "cat", "orange", "big") == "a big orange cat"
    assert noun_phrase(2, "sheep", "white") == "two white sheep"
    assert noun_phrase(3, "fish", None) == "three fish"
    assert noun_phrase(2, "butterfly", "blue") == "two blue butterflies"
    assert noun_phrase(1, "tree", "green", article=False) == "green tree"
    wrong = re.compile(r"\ba [aeiou]|\ban [^aeiou]|sheeps|fishs|butterflys|there is (two|three)|there are (a|an)\b|  ")
    counted = 0
    for _, words in captioned("train"):
        assert not wrong.search(words.text), words.text
        assert words.text == words.text.strip().lower()
        counted += 1
    assert counted == 3000


def test_captions_vary():
    texts = Counter(words.text for _, words in captioned("train"))
    assert len(texts) > 2000
