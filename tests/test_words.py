import unicodedata

import pytest

from ar_t2i.bundles import WORDS, shipped_bundle
from ar_t2i.data.scenes import scene_at
from ar_t2i.words import fingerprint_of_words, read_words, words_of, write_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red bird, on a RED tree.", "a bird on red tree"),
        ("hard-rock artist (live) @ 7pm_show!", "7pm artist hard live rock show"),
        ("the artist's cats' toys don't 'sing' at five o'clock", "artist at cats don't five o'clock sing the toys"),
        ("the artist\u2019s dog doesn\u2019t", "artist dog doesn't the"),
        ("it's rock 'n' roll", "it n rock roll"),
        ("' '' 's \u2019", "s"),
        ("L'arbre \u00e9t\u00e9 \u00c9T\u00c9 e\u0301te\u0301", "l'arbre \u00e9t\u00e9"),
        ("\u041b\u0415\u0422\u041e \u0438 \u043b\u0435\u0442\u043e", "\u0438 \u043b\u0435\u0442\u043e"),
        ("\u0932\u093e\u0932, \u0932\u093e\u0932!", "\u0932\u093e\u0932"),
        ("\ube68\uac04 \uc0c8", "\ube68\uac04 \uc0c8"),
        ("\u7ea2\u9e1f a\u9e1f", "a \u7ea2 \u9e1f"),
        ("\uff22\uff29\uff32\uff24 \U0001f426 \u2764\ufe0f x\u00b2", "bird x2"),
        ("!? -- \n\t", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_words(text, words):
    assert words_of([text]) == {unicodedata.normalize("NFKC", word) for word in words.split()}


def test_words_of_words_are_the_same_words():
    captions = [scene_at(3, index, "train")[1].text for index in range(200)] + [
        "the artist's o'clock d\u00e9j\u00e0 2"
    ]
    words = words_of(captions)
    assert len(words) > 30 and words_of(words) == words
    assert words_of(caption.upper() for caption in captions) == words
    assert set().union(*(words_of([caption]) for caption in captions)) == words


def test_a_file_holds_them_sorted(tmp_path):
    words = {"tree", "bird", "\u00e9t\u00e9"}
    write_words(tmp_path / "a.txt", words)
    assert (tmp_path / "a.txt").read_bytes() == "bird\ntree\n\u00e9t\u00e9\n".encode()
    assert read_words(tmp_path / "a.txt") == words
    (tmp_path / "b.txt").write_bytes("bird\r\ntree\r\n\u00e9t\u00e9\r\n".encode())
    assert fingerprint_of_words(read_words(tmp_path / "b.txt")) == fingerprint_of_words(sorted(words))
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"c.txt is no list of words in UTF-8"):
        read_words(tmp_path / "c.txt")


def test_the_shipped_bundle_knows_the_words_of_scenes_alone():
    known = read_words(shipped_bundle() / WORDS)
    assert words_of(scene_at(5, index, "train")[1].text for index in range(1000)) <= known
    assert words_of(["Hard rock artist performing music"]).isdisjoint(known)
