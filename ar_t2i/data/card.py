"""The dataset card: README.md with the yaml that `datasets.load_dataset` and the Hub read.

What people write into the card stays: only the default config in the yaml and the text between two marks are ours. For
a folder with such a yaml the datasets library caches by the yaml alone, whatever becomes of the files. So the config
has a description that changes with the parts; without it people would go on with the rows of last time.
"""

import hashlib
import json
from pathlib import Path

from ar_t2i.data.parts import PartRecord, write_atomically
from ar_t2i.hub.cards import read_card, write_card_text

BEGIN, END = "<!-- written by ar-t2i preprocess: begin -->", "<!-- written by ar-t2i preprocess: end -->"

_NEW_TEXT = """
# Captioned pictures as tokens

What the pictures are, where they come from and under which licence they may be used: please fill in, here and as
`license:` in the yaml above.

{marked}
"""
_MARKED = """{begin}
| split | rows | dropped | parts | MB |
|---|---|---|---|---|
{table}

A row is a captioned picture of {image_size}x{image_size} pixels as {num_codes} codes of 0..{last_code}.

| column | |
|---|---|
| `__key__` | name of the sample in its source |
| `image_tokens` | the codes |
| `text_tokens` | ids of the caption |
| `text` | the caption |
| `data` | both as one sequence of tokens |

Image tokenizer `{image_tokenizer}`, vocabulary `{vocabulary}` (sha256), crop rule `{crop}`.
`manifest/` tells for each part its source, its checksum and what was dropped and why.
{end}"""


def write_card(out: Path) -> None:
    """Make or update README.md from the manifest; does nothing while no part is finished.

    Raises:
        ValueError: the yaml of a README.md that is there cannot be read.
    """
    records = _records(out)
    if not records:
        return
    splits = _splits(records)
    path = out / "README.md"
    facts = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    rows = [" | ".join([name, *(f"{number:,}" for number in totals)]) for name, totals in splits.items()]
    table = "\n".join(f"| {row} |" for row in rows)
    marked = _MARKED.format(begin=BEGIN, end=END, table=table, last_code=facts["codebook_size"] - 1, **facts)
    files = [{"split": name, "path": f"data/{name}-*.parquet"} for name in splits]
    checksums = "".join(f"{stem} {record.sha256}\n" for stem, record in records.items())
    description = f"parts {hashlib.sha256(checksums.encode()).hexdigest()[:16]}"
    default = {"config_name": "default", "description": description, "data_files": files}
    if path.exists():
        header, body = read_card(path.read_text(encoding="utf-8"), str(path))
        others = [entry for entry in header.get("configs") or [] if entry.get("config_name", "default") != "default"]
        header["configs"] = [default, *others]
        start, end = body.find(BEGIN), body.find(END)
        found = 0 <= start < end
        body = body[:start] + marked + body[end + len(END) :] if found else f"{body.rstrip()}\n\n{marked}\n"
    else:
        header = {"task_categories": ["text-to-image"], "tags": ["ar_t2i"], "configs": [default]}
        body = _NEW_TEXT.format(marked=marked)
    write_atomically(path, write_card_text(header, body))


def _records(out: Path) -> dict[str, PartRecord]:
    """Records of the finished parts, by the name of the part."""
    found = {path.stem: PartRecord.read(path) for path in sorted((out / "manifest").glob("*-of-*.json"))}
    return {stem: record for stem, record in found.items() if record and (out / "data" / f"{stem}.parquet").exists()}


def _splits(records: dict[str, PartRecord]) -> dict[str, tuple[float, ...]]:
    """Rows, dropped samples, parts and megabytes of each split; train first."""
    totals: dict[str, list[int]] = {}
    for stem, record in records.items():
        split = totals.setdefault(stem.rsplit("-", 3)[0], [0, 0, 0, 0])
        for place, number in enumerate((record.kept, sum(record.dropped.values()), 1, record.bytes)):
            split[place] += number
    order = {"train": 0, "validation": 1, "test": 2}
    names = sorted(totals, key=lambda name: (order.get(name, 3), name))
    return {name: (*totals[name][:3], round(totals[name][3] / 1e6, 1)) for name in names}
