import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ar_t2i.data.pictures import (
    PictureStream,
    _somewhere,
    decoded,
    picture_batches,
    unseen_pictures,
)
from ar_t2i.data.shards import expand_sources
from ar_t2i.image_tokenizer import load_image_tokenizer
from ar_t2i.slots import SlotConfig
from ar_t2i.training import slots
from ar_t2i.training.slots import SlotTrainingConfig, train_slots
from ar_t2i.training.trackers import read_metrics

TINY = SlotConfig(
    image_size=64,
    num_codes=4,
    codebook_size=32,
    code_dim=4,
    stage_widths=(16, 32, 32, 32),
    feature_channels=32,
    regions=(1, 2),
    mixer_width=16,
    unmixer_width=16,
    mixer_depth=1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of two greys, one above the other: easy enough to learn in some steps."""
    path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(120):
        picture = np.empty((64, 64, 3), dtype=np.uint8)
        picture[:32], picture[32:] = rng.integers(256), rng.integers(256)
        Image.fromarray(picture).save(path / f"{number:03d}.png")
        (path / f"{number:03d}.txt").write_text("two greys")
    return path


def _config(folder, output, **values):
    settings = {
        "autoencoder_steps": 80, "bottleneck_steps": 80, "polish_steps": 40, "bottleneck_pictures": 256,
        "bottleneck_batch_size": 32,
        "validation_pictures": 16, "learning_rate": 2e-2, "log_every": 10, "evaluate_every": 40,
        "workers": 0, "device": "cpu",
    }  # fmt: skip
    return SlotTrainingConfig(output=str(output), data=(str(folder),), model=TINY, **{**settings, **values})


def test_training_lowers_the_loss_and_leaves_a_tokenizer(folder, tmp_path):
    found = train_slots(_config(folder, tmp_path / "run"))
    tokenizer = load_image_tokenizer(found)
    unseen = unseen_pictures((str(folder),), 16, 64, seed=0).permute(0, 3, 1, 2) / 255
    codes = tokenizer.encode(unseen)
    assert len(codes.unique(dim=0)) > 1
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 20 and losses[-1] < 0.7 * losses[0], losses
    measured = [record["validation_psnr"] for record in records if "validation_psnr" in record]
    assert measured[-1] > measured[0] + 3, measured
    error = (tokenizer.decode(codes) - unseen).square().mean((1, 2, 3))
    assert abs(float((-10 * error.log10()).mean()) - measured[-1]) < 0.2
    assert {record["stage"] for record in records} == {"autoencoder", "bottleneck", "polish"}
    assert len(list((tmp_path / "run" / "pictures").glob("*.png"))) >= 5
    stored = load_file(found / "model.safetensors")
    assert stored and all(tensor.dtype == torch.float16 for tensor in stored.values())


def test_polish_leaves_the_codes_as_they_are(folder, tmp_path):
    unseen = unseen_pictures((str(folder),), 16, 64, seed=0).permute(0, 3, 1, 2) / 255
    stages = {"autoencoder_steps": 20, "bottleneck_steps": 20}
    short = load_image_tokenizer(train_slots(_config(folder, tmp_path / "short", **stages, polish_steps=0)))
    long = load_image_tokenizer(train_slots(_config(folder, tmp_path / "long", **stages, polish_steps=20)))
    assert torch.equal(short.encode(unseen), long.encode(unseen))
    assert short.fingerprint != long.fingerprint


@pytest.mark.parametrize(
    ("cut", "data"), [(10, "folder"), (20, "scenes"), (30, "folder"), (40, "scenes"), (50, "folder")]
)
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(folder, tmp_path, cut, data, monkeypatch):
    stages = {"autoencoder_steps": 20, "bottleneck_steps": 20, "polish_steps": 20}
    source = str(folder) if data == "folder" else data
    settings = {**stages, "log_every": 5, "evaluate_every": 10, "bottleneck_pictures": 64}
    config = _config(source, tmp_path / "run", **settings)
    whole = load_image_tokenizer(train_slots(_config(source, tmp_path / "whole", **settings)))
    update = slots._Run.update

    def fail(self, loss):
        if self.step == cut + 3:
            raise KeyboardInterrupt
        return update(self, loss)

    monkeypatch.setattr(slots._Run, "update", fail)
    with pytest.raises(KeyboardInterrupt):
        train_slots(config)
    monkeypatch.setattr(slots._Run, "update", update)
    resumed = load_image_tokenizer(train_slots(config, resume="auto"))
    assert resumed.fingerprint == whole.fingerprint
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [record["step"] for record in map(json.loads, lines) if "loss" in record]
    assert logged == list(range(5, 61, 5)), "each step once"


def test_the_embedded_scenes_are_drawn_afresh_and_in_order():
    stream = PictureStream(("scenes",), batch_size=2, size=256, seed=0)
    batches = picture_batches(stream, workers=0)
    first, second = next(batches).pixels, next(batches).pixels
    assert first.shape == (2, 256, 256, 3) and first.dtype == torch.uint8
    assert not torch.equal(first, second)
    later = PictureStream(("scenes",), batch_size=2, size=256, seed=0, start=1)
    assert torch.equal(next(iter(later)).pixels, second)


def test_held_out_pictures_are_never_trained_on(folder):
    held_out = {picture.numpy().tobytes() for picture in unseen_pictures((str(folder),), 100, 64, seed=0)}
    batches = picture_batches(PictureStream((str(folder),), batch_size=10, size=64, seed=0), workers=0)
    seen = {picture.numpy().tobytes() for _ in range(200) for picture in next(batches).pixels}
    assert len(held_out) >= 2 and len(seen) > 100
    assert not held_out & seen
    assert len(held_out) + len(seen) == 120


def test_pictures_that_cannot_be_read_are_counted(folder, tmp_path):
    for name in ("000", "001", "002"):
        (tmp_path / f"{name}.png").write_bytes(b"not a picture")
        (tmp_path / f"{name}.txt").write_text("nothing")
    for source in sorted(folder.glob("*.png")):
        (tmp_path / f"good{source.name}").write_bytes(source.read_bytes())
        (tmp_path / f"good{source.stem}.txt").write_text("two greys")
    batches = picture_batches(PictureStream((str(tmp_path),), batch_size=8, size=64, seed=0), workers=0)
    assert next(batches).dropped == {"not-an-image": 3}, "since the start"
    assert next(batches).dropped.get("not-an-image", 0) in (0, 3), "since the batch before"


def test_a_shard_is_read_from_somewhere_and_what_was_skipped_comes_last(folder):
    shards, dropped = expand_sources([str(folder)]), Counter()
    pictures = [picture.tobytes() for picture in decoded(shards, 64, dropped)]
    found = [picture.tobytes() for picture in decoded(shards, 64, dropped, skip=7)]
    assert len(pictures) == 120 and found == [*pictures[7:], *pictures[:7]] != pictures
    places = {_somewhere(shards[0], np.random.default_rng(seed)) for seed in range(200)}
    assert min(places) < 20 and max(places) > 100 and max(places) < 120


def test_a_shard_that_cannot_be_opened_is_counted_and_the_others_go_on(folder):
    shards, dropped = expand_sources([str(folder), "pipe:false x.tar"]), Counter()
    with pytest.warns(UserWarning, match="going on with the other shards"):
        assert len(list(decoded(shards, 64, dropped))) == 120
    assert dropped == {"unreadable-shard": 1}


@pytest.mark.parametrize(
    "values",
    [{"bottleneck_steps": 0}, {"batch_size": 0}, {"learning_rate": -1.0}, {"workers": -1}, {"bottleneck_pictures": 1}],
)
def test_options_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        SlotTrainingConfig(**values)


def test_a_loss_that_is_not_finite_stops_the_run(folder, tmp_path):
    with pytest.raises(ValueError, match="lower learning_rate"):
        train_slots(_config(folder, tmp_path / "run", learning_rate=1e20))


def test_scenes_of_another_size_and_missing_checkpoints_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="image_size=32"):
        PictureStream(("scenes",), batch_size=1, size=32, seed=0)
    with pytest.raises(ValueError, match="nowhere.*is missing or damaged"):
        train_slots(_config(folder, tmp_path / "run"), resume=str(tmp_path / "nowhere"))


def test_a_run_goes_on_under_its_own_options_alone(folder, tmp_path):
    stages = {"autoencoder_steps": 4, "bottleneck_steps": 4, "polish_steps": 4, "evaluate_every": 4}
    train_slots(_config(folder, tmp_path / "run", **stages))
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(ValueError, match="bottleneck_steps was 4, now 6"):
        train_slots(_config(folder, tmp_path / "run", **{**stages, "bottleneck_steps": 6}), resume="auto")
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    (tmp_path / "run" / "checkpoint" / "state.safetensors").write_bytes(b"garbage")
    with pytest.raises(ValueError, match="is missing or damaged"):
        train_slots(_config(folder, tmp_path / "run", **stages), resume="auto")
