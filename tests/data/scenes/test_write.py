import gc
import hashlib
import io
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import webdataset
from PIL import Image

from ar_t2i.data.scenes import ScenesConfig, batch, decode_mask, example, scene_at, write_scenes, write_shards


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_an_example_depends_on_seed_index_and_split_alone():
    forwards = {index: example(4, index, "train") for index in range(20)}
    counted = 0
    for index in reversed(range(20)):
        image, text, facts = example(4, index, "train")
        assert image.tobytes() == forwards[index][0].tobytes()
        assert (text, facts) == forwards[index][1:]
        counted += 1
    assert counted == 20
    assert example(4, 0, "validation")[2] != forwards[0][2]
    assert example(5, 0, "train")[2] != forwards[0][2]


def test_batch_is_the_examples():
    pixels, captions = batch(seed=4, start=3, count=5, split="heldout")
    assert pixels.shape == (5, 256, 256, 3)
    assert pixels.dtype == np.uint8
    for offset in range(5):
        image, text, _ = example(4, 3 + offset, "heldout")
        assert (pixels[offset] == np.asarray(image)).all()
        assert captions[offset] == text


@pytest.mark.parametrize("image_format", ["jpg", "png"])
def test_same_seed_same_bytes_whatever_the_workers(tmp_path, image_format):
    options = {"count": 25, "seed": 7, "shard_size": 10, "image_format": image_format}
    first = write_shards(str(tmp_path / "a"), **options)
    write_shards(str(tmp_path / "b"), workers=2, **options)
    write_shards(str(tmp_path / "c"), **{**options, "seed": 8})
    assert [path.name for path in first] == [f"scenes-train-000{number}.tar" for number in range(3)]
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert not set(digests(tmp_path / "a").values()) & set(digests(tmp_path / "c").values())


@pytest.mark.parametrize("image_format", ["jpg", "png"])
def test_webdataset_reads_the_shards(tmp_path, image_format):
    paths = write_shards(str(tmp_path), count=12, seed=3, split="heldout", shard_size=5, image_format=image_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
        rows = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False))
        gc.collect()
    counted = 0
    for index, row in enumerate(rows):
        image, text, facts = example(3, index, "heldout")
        assert row["__key__"] == f"{index:09d}"
        assert row["txt"].decode() == text
        assert json.loads(row["json"]) == facts == json.loads(json.dumps(facts))
        stored = Image.open(io.BytesIO(row[image_format]))
        difference = np.abs(np.asarray(stored).astype(int) - np.asarray(image).astype(int))
        assert difference.max() == 0 if image_format == "png" else difference.mean() < 3
        assert decode_mask(facts["objects"][0]["mask"]).any()
        counted += 1
    assert counted == 12


def test_write_scenes_tells_what_it_wrote(tmp_path, capsys):
    paths = write_scenes(ScenesConfig(out=str(tmp_path), count=3))
    assert [path.name for path in paths] == ["scenes-train-0000.tar"]
    told = capsys.readouterr().out
    assert "3 pictures of the split train in 1 shard(s)" in told
    assert str(paths[0]) in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "count is 0, expected at least 1"),
        ({"count": -5}, "count is -5"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"split": "test"}, "split 'test' is not known; use one of train, validation, heldout"),
        ({"image_format": "gif"}, "image_format 'gif' is not known; use jpg or png"),
    ],
)
def test_wrong_options_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        ScenesConfig(**{"out": str(tmp_path), **change})
    with pytest.raises(ValueError, match=message):
        write_shards(**{"out": str(tmp_path / "new"), "count": 2, **change})
    assert list(tmp_path.iterdir()) == []


def test_negative_index_and_unknown_split_are_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        scene_at(0, -1, "train")
    with pytest.raises(ValueError, match="split 'dev' is not known"):
        example(0, 0, "dev")


def test_a_folder_that_cannot_be_made_or_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot make the folder .*file"):
        write_shards(str(tmp_path / "file"), count=1)
    with pytest.raises(ValueError, match="cannot make the folder .*inside"):
        write_shards(str(tmp_path / "file" / "inside"), count=1)


def test_a_read_only_folder_is_one_clear_error(as_nobody):
    with as_nobody() as folder:
        (folder / "shut").mkdir(mode=0o500)
        with pytest.raises(ValueError, match="cannot write to the folder"):
            write_shards(str(folder / "shut"), count=1)


def test_a_failed_shard_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(seed, index, split):
        raise OSError("no space left on device")

    monkeypatch.setattr("ar_t2i.data.scenes.write.scene_at", fail)
    with pytest.raises(OSError, match="no space left"):
        write_shards(str(tmp_path), count=1)
    assert list(tmp_path.iterdir()) == []


def test_shards_of_an_earlier_larger_run_are_not_mixed_in(tmp_path):
    write_shards(str(tmp_path), count=3, shard_size=1)
    write_shards(str(tmp_path), count=3, shard_size=1, seed=2)
    with pytest.raises(ValueError, match="holds scenes-train-0002.tar of an earlier, larger run"):
        write_shards(str(tmp_path), count=2, shard_size=1)


def test_importing_scenes_does_not_import_torch():
    code = "import sys, ar_t2i.data.scenes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
