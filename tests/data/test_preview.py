import io

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from ar_t2i.data.preview import PREVIEW, read_captions


def test_a_dataset_shows_some_of_its_rows_decoded_from_their_codes(run, tmp_path):
    run()
    out = tmp_path / "out"
    rows = pq.read_table(out / "data" / "train-00000-of-00004.parquet").to_pylist()[:8]
    picture = (out / PREVIEW).read_bytes()
    assert read_captions(picture) == [row["text"] for row in rows]
    with Image.open(io.BytesIO(picture)) as sheet:
        edge = sheet.width // 4
        assert sheet.size == (4 * edge, 2 * edge)
        for number, row in enumerate(rows):
            left, top = number % 4 * edge, number // 4 * edge
            red = np.asarray(sheet)[top : top + edge : 4, left : left + edge : 4, 0]
            assert red.ravel().tolist() == row["image_tokens"]
    card = (out / "README.md").read_text()
    assert f"]({PREVIEW})" in card and all(f"{n}. {row['text']}\n" in card for n, row in enumerate(rows, 1))
    stamp = (out / PREVIEW).stat().st_mtime_ns
    run()
    assert (out / PREVIEW).stat().st_mtime_ns == stamp


def test_captions_cannot_write_into_the_card(run, tmp_path, kit):
    mean = "<script>x</script> | **b** [a](http://x) `c`\n# d"
    kit.write_tar(tmp_path / "in.tar", [0], {0: {"png": kit.picture(0), "txt": mean.encode()}})
    run(str(tmp_path / "in.tar"), out=str(tmp_path / "odd"))
    card = (tmp_path / "odd" / "README.md").read_text()
    expected = "1. &lt;script&gt;x&lt;/script&gt; \\| \\*\\*b\\*\\* \\[a\\](http://x) \\`c\\` \\# d\n"
    assert expected in card
    assert read_captions(b"no picture") == []
