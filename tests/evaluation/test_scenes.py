"""The verifier that is shipped reads scenes, and says no where something is wrong."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ar_t2i.data.scenes import COLORS, KINDS, PLACES, SIZE, Scene, Thing, background, draw, example, truth
from ar_t2i.evaluation.judge import judge, same_scene
from ar_t2i.evaluation.reader import ReaderConfig, SceneReader
from ar_t2i.evaluation.reader_scenes import blot
from ar_t2i.evaluation.scene_scores import verifier_shares
from ar_t2i.evaluation.scenes import SceneVerifier, score_reconstruction


@pytest.fixture(scope="module")
def verifier() -> SceneVerifier:
    return SceneVerifier.from_pretrained()


@pytest.fixture(scope="module")
def small() -> SceneVerifier:
    """Random weights, with a threshold at which they see objects all over."""
    torch.manual_seed(0)
    config = ReaderConfig(
        kinds=tuple(KINDS),
        colors=tuple(COLORS),
        places=tuple(PLACES),
        stem_width=4,
        fine_width=8,
        wide_width=8,
        threshold=0.018,
    )
    return SceneVerifier(SceneReader(config).eval())


class Straight:
    """An image tokenizer that loses nothing: one code is one picture that it has seen."""

    num_codes, codebook_size, image_size, fingerprint = 1, 4096, SIZE, "straight"
    code_vectors = torch.zeros(4096, 1)

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        first = len(self.seen)
        self.seen += list(pixels)
        return torch.arange(first, len(self.seen))[:, None]

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.seen[int(code)] for code in codes[:, 0]])


def recolored(thing: Thing, color: str) -> Thing:
    return Thing(
        kind=thing.kind, color=color, size=thing.size, left=thing.left, top=thing.top, mirrored=thing.mirrored
    )


def singles(count: int, seed: int) -> list[Scene]:
    """Scenes of one thing, every kind and colour in turn, held-out pairs too."""
    rng = np.random.default_rng(seed)
    names = [(kind, color) for kind in KINDS for color in COLORS]
    chosen = [names[int(index)] for index in rng.permutation(len(names))[:count]]
    return [
        Scene(
            place=PLACES[int(rng.integers(len(PLACES)))],
            layout="single",
            things=(Thing(kind=kind, color=color, size=116, left=70, top=84, mirrored=bool(rng.integers(2))),),
            size_word="medium",
        )
        for kind, color in chosen
    ]


def test_shipped_verifier_reads_single_objects(verifier):
    for what, least in (("one object", 196), ("held-out pair", 97)):
        number = 200 if what == "one object" else 100
        shares = verifier_shares(verifier, what, number, seed=77, spoilers=("clean",))
        assert shares["clean"].total == number and shares["clean"].number >= least, (what, shares)


def test_shipped_verifier_reads_pairs_with_their_relation(verifier):
    share = verifier_shares(verifier, "two objects", 100, seed=78, spoilers=("clean",))["clean"]
    assert share.total == 100 and share.number >= 96


def test_another_color_or_kind_or_a_missing_object_is_wrong(verifier):
    """The truth of one scene is held against the picture of another that differs in one thing."""
    scenes = singles(60, seed=3)
    rng = np.random.default_rng(4)
    pictures, known = [], []
    for scene in scenes:
        thing = scene.things[0]
        color = str(rng.choice([name for name in COLORS if name != thing.color]))
        kind = str(rng.choice([name for name in KINDS if name != thing.kind]))
        other_kind = Thing(
            kind=kind, color=thing.color, size=thing.size, left=thing.left, top=thing.top, mirrored=thing.mirrored
        )
        for things in ((recolored(thing, color),), (other_kind,), ()):
            pictures.append(draw(Scene(place=scene.place, layout="single", things=things, size_word=None)))
            known.append(truth(scene))
    wrong = 0
    for reading, facts in zip(verifier.read(pictures), known, strict=True):
        thing = facts["objects"][0]
        asked = {"objects": [{"count": 1, "kind": thing["kind"], "color": thing["color"]}]}
        assert same_scene(reading, facts) <= judge(reading, asked).right
        wrong += not judge(reading, asked).right
    assert len(known) == 180 and wrong >= 178


def test_shapes_without_meaning_are_no_objects(verifier):
    rng = np.random.default_rng(6)
    pictures = []
    for _ in range(60):
        picture = background(PLACES[int(rng.integers(len(PLACES)))]).copy()
        shape = blot(rng, 100)
        picture.paste(shape, (78, 90), shape)
        pictures.append(picture)
    pictures += [background(place) for place in PLACES]
    assert sum(not reading.objects for reading in verifier.read(pictures)) >= 0.93 * len(pictures)
    noise = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    assert all(not reading.objects for reading in verifier.read(noise))


def test_places_are_read_from_empty_pictures(verifier):
    readings = verifier.read([background(place) for place in PLACES])
    assert [reading.place for reading in readings] == list(PLACES)


def test_a_picture_is_read_the_same_alone_and_in_a_batch(verifier):
    pictures = [example(9, index)[0] for index in range(8)]
    together = verifier.read(pictures)
    checked = 0
    for picture, reading in zip(pictures, together, strict=True):
        alone = verifier.read([picture])[0]
        tensor = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 255
        for other in (alone, verifier.read(tensor)[0]):
            assert other.place == reading.place
            for one, same in zip(reading.objects, other.objects, strict=True):
                assert (one.kind, one.color) == (same.kind, same.color)
                assert one.box == pytest.approx(same.box, abs=0.01) and one.score == pytest.approx(
                    same.score, abs=1e-4
                )
                checked += 1
    assert checked >= 16 and verifier.read([]) == []


def test_save_and_load(small, tmp_path):
    small.save_pretrained(tmp_path / "first")
    first = SceneVerifier.from_pretrained(tmp_path / "first")
    first.save_pretrained(tmp_path / "second")
    pictures = [example(9, index)[0] for index in range(4)]
    readings = first.read(pictures)
    assert readings == SceneVerifier.from_pretrained(tmp_path / "second").read(pictures)
    assert sum(len(reading.objects) for reading in readings) > 0, "the law was tried on nothing"
    assert first.config == small.config
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_wrong_folders_are_told(small, tmp_path):
    with pytest.raises(ValueError, match="no scene verifier"):
        SceneVerifier.from_pretrained(tmp_path)
    small.save_pretrained(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    for change, words in (
        ({"model_type": "slots"}, "model_type"),
        ({"fine_width": 12}, "do not fit"),
        ({"threshold": 2.0}, "threshold"),
        ({"kinds": []}, "kinds"),
        ({"depth": 3}, "depth"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**facts, **change}))
        with pytest.raises(ValueError, match=words) as error:
            SceneVerifier.from_pretrained(tmp_path)
        assert "\n" not in str(error.value)


def test_wrong_pictures_are_told(small):
    for images, words in (
        (torch.zeros(1, 3, 128, 128), "shape"),
        (torch.zeros(3, SIZE, SIZE), "shape"),
        (torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), "divide"),
        (torch.full((1, 3, SIZE, SIZE), 2.0), "expected values"),
        (torch.full((1, 3, SIZE, SIZE), float("nan")), "expected values"),
        ([Image.new("RGB", (100, 256))], "100"),
        (["bird.png"], "str"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            small.read(images)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="batch_size"):
        small.read(torch.zeros(1, 3, SIZE, SIZE), batch_size=0)


def test_reconstruction_without_loss_is_read_as_the_original(verifier):
    scores = score_reconstruction(Straight(), verifier, count=40, seed=11)
    right, total = (sum(column) for column in zip(*scores.same.values(), strict=True))
    assert total == 40 and right >= 38 and len(scores.wrong) == total - right
    assert scores.psnr == 100 and scores.distinct_codes == 40

    class Grey(Straight):
        def decode(self, codes):
            return torch.full((len(codes), 3, SIZE, SIZE), 0.5)

    assert all(right == 0 for right, _ in score_reconstruction(Grey(), verifier, count=20, seed=11).same.values())
    with pytest.raises(ValueError, match="count"):
        score_reconstruction(Straight(), verifier, count=0)
