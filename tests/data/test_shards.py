"""Samples come in order from tars; damage costs the sample that it hits and is told."""

import http.server
import io
import json
import tarfile
import threading
import tracemalloc
from pathlib import Path

import pytest

from ar_t2i.data.captions import iterate_captions
from ar_t2i.data.sample import Reason, UnreadableShard
from ar_t2i.data.shards import expand_sources, iterate_samples

BLOCK = 512


def tar_bytes(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def numbered(count: int, size: int = 700) -> dict[str, bytes]:
    """Samples of two files; a picture takes two blocks and its header, a caption one and its header."""
    files = {}
    for i in range(count):
        files[f"{i:04d}.jpg"] = bytes([i]) * size
        files[f"{i:04d}.txt"] = f"caption {i}".encode()
    return files


def samples_of(source: Path | str, images: bool = True, captions: bool = True, **options) -> list:
    return [s for shard in expand_sources([str(source)], **options) for s in iterate_samples(shard, images, captions)]


def keys(samples: list, reason: Reason | None = None) -> list[str]:
    return [sample.key for sample in samples if sample.reason is reason]


@pytest.fixture
def tar(tmp_path):
    def write(files: dict[str, bytes] | bytes, name: str = "a.tar") -> Path:
        path = tmp_path / name
        path.write_bytes(files if isinstance(files, bytes) else tar_bytes(files))
        return path

    return write


def test_a_tar_gives_its_samples_in_order(tar):
    samples = samples_of(tar(numbered(5)))
    assert keys(samples) == [f"{i:04d}" for i in range(5)]
    assert [(s.image, s.caption) for s in samples] == [(bytes([i]) * 700, f"caption {i}".encode()) for i in range(5)]
    done = [sample.done for sample in samples]
    assert done == sorted(done) and 0 < done[0] < done[-1] <= 1


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_are_the_same(tar, mode):
    plain, packed = samples_of(tar(numbered(3))), samples_of(tar(tar_bytes(numbered(3), mode), "b.tar.gz"))
    assert [(s.key, s.image, s.caption) for s in packed] == [(s.key, s.image, s.caption) for s in plain]


def test_names_follow_webdataset(tar):
    files = {
        "./d.1/x.jpg": b"1", "./d.1/x.txt": b"one",  # the key ends at the first dot of the name, not of the folder
        "y.seg.png": b"mask", "y.jpg": b"2", "y.cls": b"0", "y.txt": b"two",
        "__meta__/z.jpg": b"3", "._w.jpg": b"4", "noext": b"5",
        "v.final.JPG": b"6", "v.final.TXT": b"six",
        "j.webp": b"7", "j.json": json.dumps({"width": 3, "Caption": "seven"}).encode(),
    }  # fmt: skip
    samples = samples_of(tar(files))
    assert [(s.key, s.image, s.caption) for s in samples] == [
        ("./d.1/x", b"1", b"one"), ("y", b"2", b"two"), ("v", b"6", b"six"), ("j", b"7", "seven"),
    ]  # fmt: skip
    files = {"k.jpg": b"8", "k.txt": b"short", "k.json": b'{"long": "a long one"}'}
    assert [s.caption for s in samples_of(tar(files), caption_column="long")] == ["a long one"]


def test_what_lacks_a_half_is_dropped(tar):
    files = {"a.jpg": b"1", "b.txt": b"two", "c.jpg": b"3", "c.json": b"[1, 2", "d.jpg": b"4", "d.txt": b"four"}
    samples = samples_of(tar(files))
    assert [(s.key, s.reason) for s in samples] == [
        ("a", Reason.NO_CAPTION), ("b", Reason.NO_IMAGE), ("c", Reason.NO_CAPTION), ("d", None),
    ]  # fmt: skip
    path = tar(files)
    assert keys(samples_of(path, captions=False)) == ["a", "c", "d"]
    assert keys(samples_of(path, images=False)) == ["b", "d"]
    assert all(s.image is None for s in samples_of(path, images=False))


def test_equal_names_are_two_samples(tar):
    twice = tar_bytes(numbered(2)) + tar_bytes(numbered(2))  # as `cat a.tar b.tar` makes it
    assert keys(samples_of(tar(twice))) == ["0000", "0001"] * 2
    assert len(samples_of(tar({"a.jpg": b"1", "a.txt": b"x", "b.jpg": b"2", "b.txt": b"y"}))) == 2


def test_a_cut_tar_keeps_what_is_whole_and_tells_the_rest(tar):
    whole, per_sample = tar_bytes(numbered(4)), 5 * BLOCK
    needed = 4 * BLOCK + len("caption 0")  # of a sample's bytes; the rest is padding
    told = 0
    for cut in range(1, 4 * per_sample, 97):
        samples = samples_of(tar(whole[:cut]))
        complete, rest = divmod(cut, per_sample)
        good = keys(samples)
        assert good == [f"{i:04d}" for i in range(complete + (rest >= needed))]
        if 0 < rest < needed:
            assert {s.reason for s in samples[len(good) :]} <= {Reason.DAMAGED_TAR, Reason.NO_CAPTION}
            assert len(samples) > len(good)
            told += 1
    assert told > 60


@pytest.mark.parametrize("seekable", [True, False])
def test_each_damaged_header_costs_one_sample(tar, seekable):
    whole, checked = tar_bytes(numbered(5)), 0
    for number in range(5):
        for offset in (0, 3 * BLOCK):  # the picture's header, the caption's
            damaged = bytearray(whole)
            start = number * 5 * BLOCK + offset
            damaged[start : start + BLOCK] = b"\xa5" * BLOCK
            path = tar(bytes(damaged))
            samples = samples_of(path if seekable else f"pipe:cat {path}")
            assert keys(samples) == [f"{i:04d}" for i in range(5) if i != number]
            assert len(keys(samples, Reason.DAMAGED_TAR)) >= 1
            assert {s.reason for s in samples} <= {None, Reason.DAMAGED_TAR, Reason.NO_IMAGE}
            checked += 1
    assert checked == 10


def test_random_damage_never_ends_the_reading(tar):
    import numpy as np

    whole, rng, told = tar_bytes(numbered(20), "w"), np.random.default_rng(0), 0
    for _ in range(150):
        damaged = bytearray(whole)
        start = int(rng.integers(len(whole) - 2000))
        damaged[start : start + 600] = rng.bytes(600)
        samples = samples_of(tar(bytes(damaged)))
        assert len(keys(samples)) >= 18
        told += bool(keys(samples, Reason.DAMAGED_TAR))
    assert told > 50


def test_long_and_strange_names_survive(tar):
    name = "d" * 80 + "/" + "n" * 150
    samples = samples_of(tar({f"{name}.jpg": b"1", f"{name}.txt": b"x", "\udcff.jpg": b"2", "\udcff.txt": b"y"}))
    assert keys(samples) == [name, "\ufffd"]
    damaged = bytearray(tar_bytes({f"{name}.jpg": b"1", f"{name}.txt": b"x", **numbered(2)}))
    damaged[3 * BLOCK : 4 * BLOCK] = b"\xa5" * BLOCK  # the header that the long name belongs to
    assert keys(samples_of(tar(bytes(damaged))))[-2:] == ["0000", "0001"]


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 100, b"\x1f\x8b\x08 not gzip"])
def test_what_is_no_tar_is_one_drop(tar, content):
    samples = samples_of(tar(content))
    assert [s.reason for s in samples] == [Reason.DAMAGED_TAR]


def test_an_empty_tar_is_no_drop(tar):
    assert samples_of(tar({})) == []


def test_a_file_beyond_the_limit_is_not_read(tar, monkeypatch):
    monkeypatch.setattr("ar_t2i.data.tar.MAX_FILE_BYTES", 1000)
    samples = samples_of(tar({"a.jpg": b"1" * 1001, "a.txt": b"x", "b.jpg": b"1" * 1000, "b.txt": b"y"}))
    assert [(s.key, s.reason) for s in samples] == [("a", Reason.FILE_TOO_LARGE), ("b", None)]


def test_a_failed_command_is_no_damage(tar):
    path = tar(numbered(3))
    assert len(samples_of(f"pipe:cat {path}")) == 3
    with pytest.raises(UnreadableShard, match="exit 7"):
        samples_of(f"pipe:cat {path}; exit 7")
    with pytest.raises(UnreadableShard, match="exit 1"):
        samples_of(f"pipe:cat {path}.missing 2>/dev/null")
    shard = expand_sources([str(path)])[0]
    path.unlink()
    with pytest.raises(UnreadableShard, match="a.tar"):
        list(iterate_samples(shard))


def test_urls_are_read(tar, tmp_path):
    tar(numbered(3), "x-0.tar"), tar(numbered(2), "x-1.tar")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        shards = expand_sources([root + "/x-{0..1}.tar?token=secret"])
        assert [shard.name for shard in shards] == ["x-0.tar", "x-1.tar"]
        assert [len(list(iterate_samples(shard))) for shard in shards] == [3, 2]
        with pytest.raises(UnreadableShard):
            samples_of(root + "/missing.tar")
        server.shutdown()


def test_names_hold_no_secret_and_little_of_the_machine(tar):
    path = tar(numbered(1))
    assert expand_sources([str(path)])[0].name == f"{path.parent.name}/a.tar"
    signed = "pipe:curl -H 'Authorization: Bearer abc' 'https://host/b/c/00.tar?sig=x'"
    assert expand_sources([signed])[0].name == "c/00.tar"
    assert expand_sources(["s3://bucket/cc3m/00.tar"])[0].name == "cc3m/00.tar"
    assert expand_sources(["s3://bucket/cc 3m/00.tar"])[0].url == "pipe:aws s3 cp 's3://bucket/cc 3m/00.tar' -"
    assert "secret" not in expand_sources(["pipe:secret command"])[0].name


def test_braces_and_wildcards(tar, tmp_path):
    for i in range(3):
        tar(numbered(1), f"p-{i:02d}.tar")
    expected = [f"{tmp_path.name}/p-{i:02d}.tar" for i in range(3)]
    spellings = [
        ["p-{00..02}.tar"], ["p-*.tar"], ["p-{01,02}.tar", "p-00.tar"], ["p-0[0-1].tar", "p-{02..02}.tar"], [""],
    ]  # fmt: skip
    for sources in spellings:
        assert [s.name for s in expand_sources([str(tmp_path / source) for source in sources])] == expected
    tar(numbered(1), "odd{1,2}[x].tar")
    assert len(expand_sources([str(tmp_path / "odd{1,2}[x].tar")])) == 1


def test_wrong_sources_are_named(tar, tmp_path):
    tar(numbered(1), "p-00.tar")
    (tmp_path / "empty").mkdir()
    for source, message in {
        "none.tar": "none.tar", "p-{00..01}.tar": "p-01.tar", "*.zip": r"\*.zip", "p-{00.tar": "braces",
        "empty": "no pictures",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            expand_sources([str(tmp_path / source)])
    with pytest.raises(ValueError, match="gopher"):
        expand_sources(["gopher://host/a.tar"])
    with pytest.raises(ValueError, match="two shards are called"):
        expand_sources([str(tmp_path / "p-00.tar"), str(tmp_path / "p-*.tar")])


def test_captions_alone_take_constant_memory(tmp_path):
    picture = b"\xff" * 200_000
    files = {f"{i:03d}.{kind}": data for i in range(100) for kind, data in (("jpg", picture), ("txt", b"a caption"))}
    (tmp_path / "big.tar").write_bytes(tar_bytes(files))
    del files
    shards = expand_sources([str(tmp_path / "big.tar")])
    tracemalloc.start()
    assert sum(1 for _ in iterate_captions(shards)) == 100
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_real_sources(shared):
    data = shared / "data"
    assert len(list(iterate_captions(expand_sources([str(data / "captions" / "coco_captions.csv")])))) == 30_000
    assert len(list(iterate_captions(expand_sources([str(data / "captions" / "PartiPrompts.tsv")])))) == 1632
    shards = expand_sources([str(data / "photos" / "photos-train-{0000..0007}.tar")])
    samples = [sample for shard in shards for sample in iterate_samples(shard)]
    assert len(samples) == 800 and all(s.reason is None for s in samples) and len({s.key for s in samples}) == 800
