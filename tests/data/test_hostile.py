"""Tars, tables, folders, pictures and datasets made to do harm (SECURITY.md)."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import tracemalloc
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from records import FACTS, RECORD

from ar_t2i.data import decode
from ar_t2i.data.captions import clean_caption
from ar_t2i.data.card import describe, write_card
from ar_t2i.data.dataset import check_codes, load_rows
from ar_t2i.data.decode import Decoder
from ar_t2i.data.hub_shards import finished_shards, parse_shard_record
from ar_t2i.data.images import prepare
from ar_t2i.data.parts import PartRecord, PartWriter
from ar_t2i.data.preview import read_captions
from ar_t2i.data.sample import Reason, Sample
from ar_t2i.data.shards import expand_sources, iterate_samples
from ar_t2i.data.streamed import StreamedDataset

GOOD = {"z.jpg": b"1", "z.txt": b"good"}


def samples_of(path, **options) -> list[Sample]:
    return [sample for shard in expand_sources([str(path)], **options) for sample in iterate_samples(shard)]


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, size: int | None = None) -> bytes:
    """A header and its data; `size` may lie."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + data + b"\0" * (-len(data) % 512)


GOOD_TAR = b"".join(member(name, data) for name, data in GOOD.items()) + bytes(1024)


def keys_of(samples: list[Sample]) -> list[str]:
    return [sample.key for sample in samples if sample.reason is None]


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_members_that_hold_code_are_never_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = pickle.dumps(Code())
    names = ("pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "cls", "mp", "json", "txt", "jpg")
    (tmp_path / "a.tar").write_bytes(b"".join(member(f"a.{name}", code) for name in names) + GOOD_TAR)
    (first, second) = samples_of(tmp_path / "a.tar")
    assert (first.key, second.key) == ("a", "z") and clean_caption(first.caption) is Reason.CAPTION_NOT_UTF8
    assert prepare(first.image) is Reason.NOT_AN_IMAGE and not (tmp_path / "ran").exists()


def test_names_lead_nowhere(tmp_path, kit, run):
    """Names that go up, absolute ones, links and devices: what is read is data alone."""
    (tmp_path / "in").mkdir(exist_ok=True)
    data = b"".join(
        member(f"{name}.{kind}", content)
        for name in ("../../up", "/abs", "a/../../b", "..")
        for kind, content in (("png", kit.picture(1)), ("txt", b"x"))
    )
    odd = [member(f"l{kind!r}.png", kind=kind) for kind in (b"1", b"2", b"3", b"4", b"5", b"6")]
    (tmp_path / "in" / "x.tar").write_bytes(data + b"".join(odd) + bytes(1024))
    before = {path for path in tmp_path.rglob("*")}
    run(str(tmp_path / "in" / "x.tar"))
    keys = [row["__key__"] for row in kit.rows_of(tmp_path / "out")]
    assert keys == ["../../up", "/abs", "a/../../b"]
    out = tmp_path / "out"
    assert all(path.is_relative_to(out) for path in set(tmp_path.rglob("*")) - before)


PAX = tarfile.XHDTYPE
HOSTILE = {
    "size below zero by an extension": member("x", b"19 size=-1024000000\n"[:20], PAX) + member("a.jpg", b"1"),
    "size below zero": GOOD_TAR[:124] + b"\xff" * 10 + b"\xfc\0" + GOOD_TAR[136:512],
    "thousand extensions": b"".join(member("x", b"9 path=a\n", PAX) for _ in range(1000)),
    "thousand long names": b"".join(member("L", b"a.jpg\0", tarfile.GNUTYPE_LONGNAME) for _ in range(1000)),
    "quadratic extension": member("x", b"2 " * 8000 + b"=", PAX) * 3 + member("a.jpg"),
    "global extensions": b"".join(member("x", b"108 k%d=%s\n" % (n, b"v" * 98), tarfile.XGLTYPE) + member(f"{n}.jpg")
                                  for n in range(1000, 2100)),
    "extension without end": member("x", b"", PAX, 8**11 - 1),
    "long name without end": member("x", b"", tarfile.GNUTYPE_LONGNAME, 8**11 - 1),
    "sparse": member("a.jpg", b"", tarfile.GNUTYPE_SPARSE, 2**30) * 3,
    "sparse by an extension": member("x", b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", PAX)
                              + member("a.jpg", b"9\n" * 300),
    "a size that lies": member("a.jpg", b"", size=2**33),
    "a name that is no text": member("a.jpg").replace(b"a.jpg", b"\xff.jpg"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers(tmp_path, name, little_memory):
    """tarfile alone loops for ever, calls itself without end, or takes all memory."""
    for start, end in ((b"", b""), (b"", GOOD_TAR), (GOOD_TAR[:-1024], GOOD_TAR)):
        (tmp_path / "a.tar").write_bytes(start + HOSTILE[name] + end)
        found = samples_of(tmp_path / "a.tar")
        assert len(found) < 4100 and all(sample.key.encode() for sample in found)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_bombs(tmp_path, monkeypatch, pack, little_memory):
    """50 MB of zeros in some KB: they are passed over in small pieces, and not without end."""
    monkeypatch.setattr("ar_t2i.data.tar.MAX_FILE_BYTES", 5_000_000)
    zeros = b"".join(member(name, data) for name, data in GOOD.items()) + member("a.jpg", size=10**10)
    packed = pack(zeros) + b"".join([pack(bytes(10_000_000))] * 5)
    tracemalloc.reset_peak()
    (tmp_path / "a.tar").write_bytes(packed)
    found = samples_of(tmp_path / "a.tar")
    assert keys_of(found) == ["z"] and found[-1].reason is not None
    (tmp_path / "b.tar").write_bytes(pack(GOOD_TAR)[:-3])
    assert keys_of(samples_of(tmp_path / "b.tar"))[:1] in (["z"], [])


def test_a_sample_of_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr("ar_t2i.data.tar._GROUP_FILES", 10)
    (tmp_path / "a.tar").write_bytes(b"".join(member(f"a.{n}.jpg", b"1") for n in range(1000)) + GOOD_TAR)
    assert [sample.reason for sample in samples_of(tmp_path / "a.tar")] == [Reason.FILE_TOO_LARGE, None]


def test_large_captions_are_not_read(tmp_path, monkeypatch):
    for module in ("tar", "folders"):
        monkeypatch.setattr(f"ar_t2i.data.{module}.MAX_TEXT_BYTES", 1000)
    (tmp_path / "a.tar").write_bytes(member("a.jpg", b"1") + member("a.txt", b"x" * 1001) + GOOD_TAR)
    assert [sample.reason for sample in samples_of(tmp_path / "a.tar")] == [Reason.FILE_TOO_LARGE, None]
    deep = b'{"caption":' * 100_000
    (tmp_path / "b.tar").write_bytes(member("a.jpg", b"1") + member("a.json", deep[:900]) + GOOD_TAR)
    assert [sample.reason for sample in samples_of(tmp_path / "b.tar")] == [Reason.NO_CAPTION, None]


def test_tables_name_no_devices_pipes_or_addresses(tmp_path):
    """A device has no end, a pipe waits for its writer; an address or a command is never opened."""
    os.mkfifo(tmp_path / "pipe")
    names = [
        "/dev/zero",
        "pipe",
        "/dev/stdin",
        "http://localhost:1/x.jpg",
        "pipe:touch ran",
        "a\0b",
        str(tmp_path),
        "ab" * 5000,
    ]
    lines = [json.dumps({"image": name, "caption": "x"}) for name in [*names, "\ud800"]]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    reasons = [sample.reason for sample in samples_of(tmp_path / "t.jsonl")]
    assert reasons == [Reason.URL if "://" in name else Reason.MISSING_FILE for name in [*names, ""]]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_table_of_a_folder_stays_in_it(tmp_path, suffix):
    """One that was named says itself where its pictures lie."""
    (tmp_path / "secret.jpg").write_bytes(b"1")
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "a.jpg").write_bytes(b"1")
    names = ["sub/a.jpg", "../secret.jpg", str(tmp_path / "secret.jpg"), "sub/../../secret.jpg"]
    rows = [{"file_name": name, "caption": "x"} for name in names]
    path = tmp_path / "in" / f"metadata.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "csv":
        path.write_text("file_name,caption\n" + "".join(f"{name},x\n" for name in names))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [sample.reason for sample in samples_of(tmp_path / "in")] == [None, *[Reason.OUTSIDE] * 3]
    assert [sample.reason for sample in samples_of(path)] == [None] * 4


def test_lines_and_rows_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("ar_t2i.data.tables.MAX_TEXT_BYTES", 10_000)
    good = "a.jpg,b\n"
    (tmp_path / "a.jpg").write_bytes(b"1")
    for bad in ("x" * 500_000 + ",y\n", '"' + "x" * 500_000 + "\n", '"x\n",' * 20_000 + "y\n"):
        (tmp_path / "t.csv").write_text("path,caption\n" + good * 3 + bad)
        found = samples_of(tmp_path / "t.csv")
        assert keys_of(found)[:3] == ["a"] * 3 and all(sample.reason for sample in found[3:])
    rows = json.dumps({"path": "a.jpg", "caption": "b"}) + "\n"
    (tmp_path / "t.jsonl").write_text(rows + '{"path":"' + "x" * 500_000 + '"}\n' + "[" * 9000 + "\n" + rows)
    reasons = [sample.reason for sample in samples_of(tmp_path / "t.jsonl")]
    assert reasons == [None, Reason.DAMAGED_ROW, Reason.DAMAGED_ROW, None]


def test_a_parquet_file_that_claims_too_many_rows(tmp_path, little_memory):
    table = pa.table({"path": pa.array(["a.jpg"]).dictionary_encode().take([0] * 10**6), "caption": ["x"] * 10**6})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="claims 1,000,000 rows, more than it has bytes"):
        expand_sources([str(tmp_path / "t.parquet")])


def test_columns_without_end_are_not_all_told(tmp_path):
    (tmp_path / "t.csv").write_text(",".join(f"c{n}" for n in range(100_000)) + "\n" + "x," * 100_000 + "\n")
    with pytest.raises(ValueError, match="no picture column") as raised:
        samples_of(tmp_path / "t.csv")
    assert len(str(raised.value)) < 2000


def test_links_in_a_folder_cost_their_sample(tmp_path):
    for name, target in (("a.jpg", "/dev/zero"), ("b.jpg", "nowhere"), ("c.txt", "/dev/zero"), ("d.txt", "nowhere")):
        (tmp_path / name).symlink_to(target)
    for name in ("a.txt", "b.txt", "e.txt", "c.jpg", "d.jpg", "e.jpg"):
        (tmp_path / name).write_bytes(b"1")
    (shard,) = expand_sources([str(tmp_path)])
    missing = Reason.MISSING_FILE
    assert [sample.reason for sample in iterate_samples(shard)] == [missing, missing, missing, missing, None]
    assert shard.checksum()


def test_names_that_are_no_text(tmp_path, kit, run):
    """Of a folder, a tar and a picture: they are shown and written down with a mark in their place."""
    folder = os.path.join(os.fsencode(tmp_path), b"in-\xff")
    os.mkdir(folder)
    for name, data in ((b"\xfe.png", kit.picture(1)), (b"\xfe.txt", b"a caption")):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
    assert run(os.fsdecode(folder)).kept == 1
    assert [row["__key__"] for row in kit.rows_of(tmp_path / "out")] == ["\ufffd"]
    assert "in-\ufffd" in (tmp_path / "out" / "README.md").read_text()


def png(width: int, height: int) -> bytes:
    """A PNG of which only the header says so."""
    with io.BytesIO() as file:
        Image.new("L", (1, 1)).save(file, "png")
        data = bytearray(file.getvalue())
    import zlib

    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("where", ["tar", "table", "folder"])
def test_picture_bombs_are_not_decoded(tmp_path, kit, run, where, little_memory):
    bomb = png(60_000, 60_000)
    (tmp_path / "in" / "f").mkdir(parents=True, exist_ok=True)
    (tmp_path / "in" / "f" / "a.png").write_bytes(bomb)
    (tmp_path / "in" / "f" / "a.txt").write_text("x")
    (tmp_path / "in" / "t.csv").write_text("path,caption\nf/a.png,x\n")
    (tmp_path / "in" / "t.tar").write_bytes(member("a.png", bomb) + member("a.txt", b"x") + bytes(1024))
    source = {"tar": "t.tar", "table": "t.csv", "folder": "f"}[where]
    assert run(str(tmp_path / "in" / source)).dropped == {"image-too-large": 1}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
def test_every_format_is_measured_before_it_is_decoded(kind):
    from ar_t2i.data.images import ImageLimits

    with io.BytesIO() as file:
        Image.new("RGB", (64, 64)).save(file, kind)
        assert prepare(file.getvalue(), limits=ImageLimits(max_pixels=4000)) is Reason.IMAGE_TOO_LARGE


def test_a_jpeg_of_thousands_of_scans_is_not_decoded():
    from ar_t2i.data.images import ImageLimits

    with io.BytesIO() as file:
        Image.new("RGB", (64, 64)).save(file, "JPEG", progressive=True)
        data = file.getvalue()
    limits = ImageLimits(max_pixels=64 * 64)
    assert isinstance(prepare(data, 16, limits=limits), np.ndarray)
    start = data.rindex(b"\xff\xda")
    assert prepare(data[:start] + data[start:-2] * 100 + data[-2:], 16, limits=limits) is Reason.IMAGE_TOO_LARGE


def test_few_large_files_wait_at_once(monkeypatch):
    """Without this, 300 files of 512 MB would."""
    monkeypatch.setattr(decode, "BYTES_AHEAD", 3000)
    monkeypatch.setattr(decode, "CHUNK_BYTES", 500)
    read = taken = most = 0

    def samples():
        nonlocal read
        for number in range(200):
            read += 1
            yield Sample(key=str(number), image=b"x" * 400, caption="x")

    with Decoder(0, 16) as decoder:
        for _, items in decoder([(0, samples())]):
            for _ in items:
                most, taken = max(most, read - taken), taken + 1
    assert taken == read == 200 and most <= 3000 // 400 + 4


MARKUP = "<script>`x`|y</script>\x1b[2J"


@pytest.mark.parametrize(
    "changes",
    [{"shard": ["x"]}, {"shard": {}}, {"bytes": "x"}, {"kept": -1}, {"dropped": []}, {"dropped": {"a": "b"}},
     {"examples": 3}, {"sha256": None}, {"kept": 1e400}, {"more": 1}],
)  # fmt: skip
def test_records_of_other_types_are_none(tmp_path, changes):
    (tmp_path / "x.json").write_text(json.dumps(asdict(RECORD)))
    assert PartRecord.read(tmp_path / "x.json") == RECORD
    (tmp_path / "x.json").write_text(json.dumps(asdict(RECORD) | changes))
    assert PartRecord.read(tmp_path / "x.json") is None
    with pytest.raises(ValueError, match="the record of x"):
        parse_shard_record(json.dumps({"parts": [asdict(RECORD) | changes]}).encode(), "x")


@pytest.mark.parametrize("text", ["[]", "3", "[" * 10**5, '{"num_codes": NaN}', "\ud800"])
def test_a_damaged_manifest_is_told(tmp_path, source, run, text):
    run()
    (tmp_path / "out" / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match="manifest.json"):
        run()


@pytest.mark.parametrize(
    "changes", [{"image_size": "x"}, {"versions": []}, {"codebook_size": None}, {"max_pixels": "{x}"}]
)
def test_a_card_tells_facts_of_the_right_types(changes):
    with pytest.raises(ValueError, match="manifest: "):
        describe(FACTS | changes, {"train": [RECORD]}, {"train": 1}, [])


def test_what_others_wrote_is_text_in_the_card():
    from dataclasses import replace

    hostile = {"image_tokenizer": MARKUP, "vocabulary": MARKUP, "crop": MARKUP, "versions": {MARKUP: MARKUP}}
    text = describe(FACTS | hostile, {"train": [replace(RECORD, shard=MARKUP)]}, {"train": 1}, [MARKUP])
    assert "<script" not in text and "\x1b" not in text


def test_names_of_parts_lead_nowhere(tmp_path):
    """A split is a word, and of parts there are not so many that counting them takes for ever."""
    for folder in ("data", "manifest"):
        (tmp_path / folder).mkdir()
    for stem in ("<b>-00000-of-00001", "a|b-00000-of-00001", "train-00000-of-99999999999999", ".._x-00000-of-00001"):
        (tmp_path / "manifest" / f"{stem}.json").write_text(json.dumps(asdict(RECORD)))
        (tmp_path / "data" / f"{stem}.parquet").write_bytes(b"x" * 10)
    write_card(tmp_path)
    assert not (tmp_path / "README.md").exists()
    with pytest.raises(ValueError, match="no finished part"):
        list(finished_shards(tmp_path, {}))


def test_a_foreign_card_is_kept_as_data(tmp_path, run):
    run()
    card = tmp_path / "out" / "README.md"
    card.write_text("---\nconfigs: [x, 3, {config_name: [a]}, null]\n---\n# mine\n")
    run()
    assert "# mine" in card.read_text()
    card.write_text("---\na: &a [*a]\n---\n")
    with pytest.raises(ValueError, match="README.md cannot be read"):
        run()


@pytest.mark.parametrize(
    "files",
    ["../x.parquet", "/etc/passwd", "https://localhost:1/x.parquet", "hf://datasets/a/b/x", "zip://x::../a",
     ["a", "../b"], [{"split": "train", "path": ["data/../../x"]}], {"train": "~/../x"}]
)  # fmt: skip
def test_a_card_names_data_of_its_folder_alone(tokenized, tmp_path, vocabulary, files):
    (tmp_path / "data").symlink_to(tokenized / "data")
    header = json.dumps({"configs": [{"config_name": "default", "data_files": files}]})
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")
    with pytest.raises(ValueError, match="as data, expected files of its folder"):
        load_rows(tmp_path, "train")
    with pytest.raises(ValueError, match="as data, expected files of its folder"):
        StreamedDataset(str(tmp_path), "train", vocabulary, max_caption_length=8, num_codes=32)


@pytest.mark.parametrize(
    "codes", [["a"] * 4, [None] * 4, [1.5] * 4, [True] * 4, [[1]] * 4, None, [], [0, 1, 2, 2**70]]
)
def test_codes_are_whole_numbers(codes):
    with pytest.raises(ValueError, match="row 7 has"):
        check_codes(codes, 7, 4, 16)


def test_previews_are_pictures_with_few_captions(little_memory):
    from PIL.PngImagePlugin import PngInfo

    assert read_captions(png(60_000, 60_000)) == []
    for text, expected in (("[" * 100_000, 0), (json.dumps(["a"] * 1000), 8), ("3", 0)):
        info = PngInfo()
        info.add_itxt("captions", text)
        with io.BytesIO() as file:
            Image.new("RGB", (8, 8)).save(file, "png", pnginfo=info)
            assert len(read_captions(file.getvalue())) == expected


def test_keys_of_dropped_samples_steer_no_terminal(tmp_path):
    part = PartWriter(tmp_path / "x")
    part.drop("a\x1b[2J\x9b\u202e", Reason.URL)
    assert part.examples == {"url": [r"a\x1b[2J\x9b\u202e"]}
