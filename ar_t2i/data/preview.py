"""A picture of some rows of a tokenized dataset, decoded from their codes, for its card."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ar_t2i.data.images import pixel_limit
from ar_t2i.image_tokenizer import ImageTokenizer

PREVIEW = "rows.png"
"""Name of the picture in the dataset's folder."""
PREVIEW_BYTES = 64 * 2**20
ROWS, COLUMNS = 2, 4
_CAPTIONS = "captions"
MOST_PIXELS = ROWS * COLUMNS * 2048**2


@torch.inference_mode()
def draw_preview(part: Path, image_tokenizer: ImageTokenizer, device: torch.device) -> bytes:
    """Decode the first rows of a part; their captions stand in the PNG's text.

    Args:
        part: a parquet file of the dataset, with rows.
        image_tokenizer: on `device`, as it was when it wrote the codes.
        device: where it is.

    Returns:
        a PNG.
    """
    with pq.ParquetFile(part) as file:
        columns = ["image_tokens", "text"]
        rows = next(file.iter_batches(ROWS * COLUMNS, columns=columns))
    codes = torch.tensor(rows["image_tokens"].to_pylist(), device=device)
    pixels = (image_tokenizer.decode(codes).float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()
    edge = image_tokenizer.image_size
    columns_used = min(COLUMNS, len(pixels))
    sheet = Image.new("RGB", (columns_used * edge, -(-len(pixels) // COLUMNS) * edge), "white")
    for number, picture in enumerate(pixels):
        place = number % COLUMNS * edge, number // COLUMNS * edge
        sheet.paste(Image.fromarray(picture.numpy()), place)
    text = PngInfo()
    text.add_itxt(_CAPTIONS, json.dumps(rows["text"].to_pylist(), ensure_ascii=False))
    with io.BytesIO() as file:
        sheet.save(file, "png", pnginfo=text)
        return file.getvalue()


def read_captions(picture: bytes) -> list[str]:
    """The captions of the rows in a picture, none where it is not one of `draw_preview`."""
    try:
        with pixel_limit(MOST_PIXELS), Image.open(io.BytesIO(picture), formats=["png"]) as image:
            image.load()
            return [str(caption) for caption in json.loads(getattr(image, "text", {})[_CAPTIONS])][: ROWS * COLUMNS]
    except Exception:  # PIL may raise anything on a damaged file
        return []
