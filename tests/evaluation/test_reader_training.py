"""The pictures that the reader learns from are marked rightly, and its losses are least where it is right."""

import numpy as np
import pytest
import torch

from ar_t2i.data.scenes import COLORS, KINDS, PLACES, SIZE
from ar_t2i.evaluation.reader import CELL, ReaderConfig, ReaderOutput
from ar_t2i.evaluation.reader_scenes import MOST_OBJECTS, free_scene, marked_picture, odd_thing, spoil, tight_box
from ar_t2i.evaluation.reader_training import (
    MarkedBatch,
    ReaderTrainingConfig,
    focal_loss,
    heat_target,
    marked_batch,
    reader_losses,
    train_reader,
)
from ar_t2i.evaluation.scenes import SceneVerifier


@pytest.fixture(scope="module")
def batch() -> MarkedBatch:
    return marked_batch(np.random.default_rng(0), 24)


def perfect(batch: MarkedBatch) -> ReaderOutput:
    """What a network without fault would say."""
    grid = SIZE // CELL
    count = len(batch.place_B)
    heat = torch.logit(heat_target(batch, len(KINDS), grid), eps=1e-6)
    color, sides = torch.zeros(count, len(COLORS) + 1, grid, grid), torch.ones(count, 4, grid, grid)
    middles = (torch.arange(grid) + 0.5) * CELL
    nearest = torch.full((count, grid, grid), torch.inf)
    for row in range(count):
        for (kind, shade), box in zip(batch.labels_BN2[row].tolist(), batch.boxes_BN4[row], strict=True):
            if kind < 0:
                continue
            x, y = (box[:2] + box[2:]) / 2
            far = (middles[None, :] - x).square() + (middles[:, None] - y).square()
            own = far < nearest[row]
            nearest[row] = torch.minimum(nearest[row], far)
            color[row, :, own] = 0
            color[row, shade, own] = 50
            distances = torch.stack(
                (
                    (middles[None, :] - box[0]).expand(grid, grid),
                    (middles[:, None] - box[1]).expand(grid, grid),
                    (box[2] - middles[None, :]).expand(grid, grid),
                    (box[3] - middles[:, None]).expand(grid, grid),
                )
            )
            sides[row][:, own] = distances[:, own]
    place = torch.nn.functional.one_hot(batch.place_B, len(PLACES)).float() * 50
    return ReaderOutput(heat, color, sides, place, torch.zeros(len(place), 2))


def test_losses_are_least_where_all_is_right(batch):
    right = {name: value.item() for name, value in reader_losses(perfect(batch), batch).items()}
    assert set(right) == {"heat", "color", "sides", "overlap", "place"}
    assert right["place"] == pytest.approx(0, abs=1e-6)
    torch.manual_seed(0)
    noise = ReaderOutput(*(torch.randn_like(part) for part in perfect(batch)))
    wrong = {name: value.item() for name, value in reader_losses(noise, batch).items()}
    for name in right:
        assert right[name] < 0.06 * wrong[name], name


def test_a_picture_without_objects_still_teaches(batch):
    empty = batch._replace(labels_BN2=torch.full_like(batch.labels_BN2, -1))
    losses = reader_losses(perfect(empty), empty)
    assert set(losses) == {"heat", "place"} and losses["heat"] < 1e-3


def test_heat_is_one_in_the_cell_of_each_middle(batch):
    heat = heat_target(batch, len(KINDS), SIZE // CELL)
    checked = 0
    for row in range(len(heat)):
        for (kind, _), box in zip(batch.labels_BN2[row].tolist(), batch.boxes_BN4[row].tolist(), strict=True):
            if kind >= 0:
                x, y = int((box[0] + box[2]) / 2 // CELL), int((box[1] + box[3]) / 2 // CELL)
                assert heat[row, kind, y, x] == 1
                checked += 1
    assert checked == (batch.labels_BN2[..., 0] >= 0).sum() > 24
    assert 0 <= heat.min() and heat.max() == 1


def test_focal_loss_by_hand():
    logits, target = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.5])
    expected = np.log(2) * 0.25 * (1 + 1 + 0.5**4)
    assert focal_loss(logits, target).item() == pytest.approx(expected)


def test_marked_pictures_are_what_their_marks_say():
    """The same numbers give the same picture; objects lie inside it; colours of all ten and none of them come up."""
    colors, counts = set(), set()
    for index in range(120):
        picture = marked_picture(np.random.default_rng(index), spoilt=index % 4 == 0)
        again = marked_picture(np.random.default_rng(index), spoilt=index % 4 == 0)
        assert picture.objects == again.objects and picture.image.tobytes() == again.image.tobytes()
        assert picture.image.size == (SIZE, SIZE) and picture.image.mode == "RGB"
        assert len(picture.objects) <= MOST_OBJECTS and 0 <= picture.place < len(PLACES)
        counts.add(len(picture.objects))
        for kind, color, (x0, y0, x1, y1) in picture.objects:
            assert 0 <= kind < len(KINDS) and 0 <= x0 < x1 <= SIZE and 0 <= y0 < y1 <= SIZE
            colors.add(color)
    assert colors == set(range(len(COLORS) + 1)) and counts >= {0, 1, 2, 3, 4}


def test_odd_things_and_spoiling():
    rng = np.random.default_rng(3)
    forms = {odd_thing(rng)[1] is None for _ in range(30)}
    assert forms == {True, False}
    scene = free_scene(rng, 4)
    assert 1 <= len(scene.things) <= 4
    image = marked_picture(rng, spoilt=False).image
    before = image.tobytes()
    changes = [np.abs(np.asarray(spoil(image, rng), dtype=float) - np.asarray(image)).mean() for _ in range(30)]
    assert image.tobytes() == before
    assert min(changes) == 0 and 1 < np.mean(changes) < 20
    mask = np.zeros((9, 9), bool)
    mask[2:5, 3:4] = True
    assert tight_box(mask) == (3, 2, 4, 5)


def test_a_few_steps_of_training(tmp_path, capsys):
    config = ReaderTrainingConfig(
        output=str(tmp_path), steps=3, batch_size=2, workers=0, save_every=2, fit_count=4, device="cpu"
    )
    train_reader(config)
    verifier = SceneVerifier.from_pretrained(tmp_path)
    assert verifier.config == ReaderConfig(
        kinds=tuple(KINDS), colors=tuple(COLORS), places=tuple(PLACES), threshold=verifier.config.threshold
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and '"step": 2' in lines[0] and '"step": 3' in lines[1] and "threshold" in lines[2]


def test_wrong_options_are_told():
    for options, words in (({"steps": 0}, "steps"), ({"workers": -1}, "workers"), ({"fit_count": 0}, "fit_count")):
        with pytest.raises(ValueError, match=words):
            ReaderTrainingConfig(output="x", **options)
