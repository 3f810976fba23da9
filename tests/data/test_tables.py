"""Folders and tables of pictures and captions; a bad row costs itself."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ar_t2i.data.captions import clean_caption
from ar_t2i.data.sample import Reason
from ar_t2i.data.shards import expand_sources, iterate_samples


def samples_of(source: Path | str, images: bool = True, captions: bool = True, **options) -> list:
    return [s for shard in expand_sources([str(source)], **options) for s in iterate_samples(shard, images, captions)]


def keys(samples: list, reason: Reason | None = None) -> list[str]:
    return [sample.key for sample in samples if sample.reason is reason]


def picture_folder(root: Path, count: int = 5) -> Path:
    for i in range(count):
        path = root / ("sub" if i % 2 else ".") / f"p.{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([i]) * 10)
        path.with_suffix(".txt").write_text(f"caption {i}")
    return root


def test_a_folder_of_pictures_with_text_files(tmp_path):
    root = picture_folder(tmp_path / "pets")
    (root / "lonely.jpg").write_bytes(b"x")
    (root / "readme.txt").write_text("hello")
    (root / ".hidden.jpg").write_bytes(b"x")
    shards = expand_sources([str(root)], rows_per_shard=3)
    assert [shard.name for shard in shards] == [f"{tmp_path.name}/pets#{i:05d}" for i in range(3)]
    samples = samples_of(root, rows_per_shard=3)
    assert sorted(keys(samples)) == ["p.0", "p.2", "p.4", "sub/p.1", "sub/p.3"]
    assert keys(samples, Reason.NO_CAPTION) == ["lonely"] and keys(samples, Reason.NO_IMAGE) == ["readme"]
    assert sorted((s.image[0], s.caption) for s in samples if not s.reason) == [
        (i, f"caption {i}".encode()) for i in range(5)
    ]  # fmt: skip
    (root / "sub" / "p.1.png").unlink()
    left = [s for shard in shards for s in iterate_samples(shard)]
    assert keys(left, Reason.MISSING_FILE) == ["sub/p.1"]


def write_table(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(rows[0]), *(mark.join(f'"{value}"' for value in row.values()) for row in rows)]
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("columns", [("path", "caption"), ("File_Name", "text"), ("image", "Prompt")])
def test_tables_of_paths_and_captions(tmp_path, suffix, columns):
    root = picture_folder(tmp_path, 11)
    path, caption = columns
    rows = [{"id": str(i), path: f"{'sub/' if i % 2 else ''}p.{i}.png", caption: f"a, {i}\nb"} for i in range(11)]
    table = write_table(root / f"table{suffix}", rows)
    for per_shard in (3, 4, 100):
        shards = expand_sources([str(table)], rows_per_shard=per_shard)
        assert [shard.rows for shard in shards] == [min(per_shard, 11 - i) for i in range(0, 11, per_shard)]
        samples = [sample for shard in reversed(shards) for sample in iterate_samples(shard)]
        assert sorted((s.image[0], s.caption) for s in samples) == [(i, f"a, {i}\nb") for i in range(11)]
        assert {s.key for s in samples} == {f"{'sub/' if i % 2 else ''}p.{i}" for i in range(11)}


def test_metadata_in_a_folder_names_its_pictures(tmp_path):
    root = picture_folder(tmp_path, 4)
    write_table(root / "metadata.jsonl", [{"file_name": "p.0.png", "text": "from the table"}])
    assert [(s.key, s.caption) for s in samples_of(root)] == [("p.0", "from the table")]


def test_parquet_may_hold_the_pictures(tmp_path):
    there, missing = {"bytes": b"abc", "path": "x.png"}, {"bytes": None, "path": None}
    rows = [{"image": there, "text": "t"}, {"image": missing, "text": "u"}]
    first, second = samples_of(write_table(tmp_path / "a.parquet", rows))
    assert (first.key, first.image, first.reason) == ("x", b"abc", None)
    assert (second.image, second.reason) == (None, Reason.NO_IMAGE)


def test_bad_rows_cost_only_themselves(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    table = tmp_path / "t.csv"
    lines = [b"path,caption", b"a.png,one", b"gone.png,two", b"a.png", b"https://host/a.png,three", b",four", b"",
             b"a.png,caf\xe9", b'a.png,"' + b"x" * 200_000, b"a.png,last"]  # fmt: skip
    table.write_bytes(b"\n".join(lines))
    samples = samples_of(table)
    assert [s.reason for s in samples] == [
        None, Reason.MISSING_FILE, Reason.DAMAGED_ROW, Reason.URL, Reason.NO_IMAGE, None, Reason.DAMAGED_ROW, None,
    ]  # fmt: skip
    assert clean_caption(samples[5].caption) is Reason.CAPTION_NOT_UTF8 and samples[-1].caption == "last"
    (tmp_path / "t.jsonl").write_text('{"path": "a.png", "caption": "one"}\n{"path": \n[1]\n{"path": "a.png"}\n')
    assert [s.reason for s in samples_of(tmp_path / "t.jsonl")] == [
        None, Reason.DAMAGED_ROW, Reason.DAMAGED_ROW, Reason.NO_CAPTION,
    ]  # fmt: skip


def test_columns_that_are_missing_are_named(tmp_path):
    table = write_table(tmp_path / "t.csv", [{"Prompt": "a bird", "Category": "animal"}])
    assert [s.caption for s in samples_of(table, images=False)] == ["a bird"]
    assert [s.caption for s in samples_of(table, images=False, caption_column="Category")] == ["animal"]
    with pytest.raises(ValueError, match=r"no picture column among \['Prompt', 'Category'\].*--image-column"):
        samples_of(table)
    with pytest.raises(ValueError, match="no column 'caption'; it has"):
        samples_of(table, caption_column="caption")
    for name, content in {"a.parquet": b"PAR1 no", "b.csv": b"\xff\xfe\0x\0"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            samples_of(tmp_path / name)


def test_growth_at_the_end_changes_only_the_last_shard(tmp_path):
    rows = [{"path": f"{i}.png", "caption": f"{i}"} for i in range(10)]
    before = expand_sources([str(write_table(tmp_path / "t.jsonl", rows[:7]))], rows_per_shard=3)
    after = expand_sources([str(write_table(tmp_path / "t.jsonl", rows))], rows_per_shard=3)
    pairs = zip(before, after, strict=False)
    same = [old.name == new.name and old.fingerprint == new.fingerprint for old, new in pairs]
    assert same == [True, True, False] and len(after) == 4


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b" a bird \r\n", "a bird"),
        (b"\xef\xbb\xbfa bird", "a bird"),
        ("caf\u00e9".encode(), "caf\u00e9"),
        (b"", Reason.CAPTION_EMPTY),
        (b" \n\t\xe3\x80\x80", Reason.CAPTION_EMPTY),
        (b"caf\xe9", Reason.CAPTION_NOT_UTF8),
        ("lone \ud800", Reason.CAPTION_NOT_UTF8),
        ("a bird".encode("utf-16"), Reason.CAPTION_NOT_UTF8),
        ("a bird".encode("utf-16-le"), Reason.CAPTION_HAS_NUL),
        (b"x" * 20, "x" * 20),
        (b"x" * 21, Reason.CAPTION_TOO_LONG),
    ],
)
def test_captions(raw, expected):
    assert clean_caption(raw, max_chars=20) == expected
