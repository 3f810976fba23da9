"""Pushing and pulling a large dataset: speed beside the client's own calls, and memory.

    python benchmarks/hub.py --gigabytes 2

Everything goes over loopback to the test server of `tests/hub`, each way in a process of its own; the median of the
runs is printed. The limit is what huggingface_hub's own upload_folder and snapshot_download need for the same files.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WAYS = {
    "push, huggingface_hub": """
import sys; from huggingface_hub import HfApi
api = HfApi(); api.create_repo(sys.argv[2], repo_type="dataset", exist_ok=True)
api.upload_folder(folder_path=sys.argv[1], repo_id=sys.argv[2], repo_type="dataset", ignore_patterns=".*")
""",
    "push, ar-t2i": """
import sys; from ar_t2i.push import PushConfig, push
push(PushConfig(folder=sys.argv[1], to=sys.argv[2], license="cc0-1.0"))
""",
    "pull, huggingface_hub": """
import sys; from huggingface_hub import snapshot_download
snapshot_download(sys.argv[2], repo_type="dataset", local_dir=sys.argv[1])
""",
    "pull, ar-t2i": """
import sys; from ar_t2i.hub.pull import PullConfig, pull
pull(PullConfig(repo=sys.argv[2], type="dataset", out=sys.argv[1]))
""",
}
MEASURED = """
import resource, sys
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import huggingface_hub, datasets, pyarrow.parquet, ar_t2i.push, ar_t2i.hub.pull
from huggingface_hub.utils import disable_progress_bars; disable_progress_bars()
loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import time; began = time.perf_counter()
{code}
seconds = time.perf_counter() - began
top = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import json; print(json.dumps([seconds, (top - loaded) / 1024]))
"""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "hub"))
    from hub_server import HubServer

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "tokens"
        size = make_dataset(folder, options.gigabytes)
        results: dict[str, list[tuple[float, float]]] = {}
        for number in range(options.runs):
            for way in WAYS if number % 2 else reversed(WAYS):  # what was written before must not slow one of them
                with HubServer() as hub:
                    home = Path(scratch) / f"home-{number}-{way}"
                    environment = {**os.environ, **hub.env(home), "HF_HUB_OFFLINE": "0"}
                    target = folder
                    if way.startswith("pull"):
                        run("push, huggingface_hub", folder, environment)
                        target = Path(scratch) / "pulled"
                    os.sync()
                    results.setdefault(way, []).append(run(way, target, environment))
                    shutil.rmtree(Path(scratch) / "pulled", ignore_errors=True)
    print(f"{platform.platform()}, {os.cpu_count()} cores, {size / 1e9:.2f} GB in 4 shards, median of {options.runs}")
    print("| way | seconds | MB/s | memory above the start, MB | speed against huggingface_hub |")
    print("|---|---|---|---|---|")
    medians = {way: statistics.median(seconds for seconds, _ in found) for way, found in results.items()}
    for way, found in ((way, results[way]) for way in WAYS):
        ratio = medians[f"{way.split(',')[0]}, huggingface_hub"] / medians[way]
        top = max(memory for _, memory in found)
        print(f"| {way} | {medians[way]:.1f} | {size / 1e6 / medians[way]:.0f} | {top:.0f} | {ratio:.2f} |")


def run(way: str, folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds, and MB of memory above the start, of one way in a process of its own."""
    line = [sys.executable, "-c", MEASURED.format(code=WAYS[way]), str(folder), "tester/tokens"]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, memory = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory


def make_dataset(folder: Path, gigabytes: float) -> int:
    """Four parts of a tokenized dataset, filled with random numbers; returns their size in bytes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ar_t2i.data.parts import SCHEMA, PartRecord
    from ar_t2i.hub.remote import file_digest

    for name in ("data", "manifest"):
        (folder / name).mkdir(parents=True)
    counts = ("max_pixels", "min_edge", "max_aspect", "max_caption_chars", "num_codes", "codebook_size", "image_size")
    words = {"image_tokenizer": "none", "vocabulary": "none", "crop": "center", "versions": {}}
    (folder / "manifest.json").write_text(json.dumps({**words, **dict.fromkeys(counts, 1)}))
    (folder / "README.md").write_text("")
    rng, rows = np.random.default_rng(0), 10_000
    groups = round(gigabytes * 1e9 / 4 / (rows * 32 * 8))
    for number in range(4):
        path = folder / "data" / f"train-{number:05d}-of-00004.parquet"
        in_memory = 0
        with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
            for _ in range(groups):
                numbers = pa.array(rng.integers(0, 2**62, rows * 32))
                lists = pa.ListArray.from_arrays(pa.array(np.arange(0, rows * 32 + 1, 32, dtype=np.int32)), numbers)
                text = pa.array([""] * rows)
                empty = pa.array([[]] * rows, pa.list_(pa.int64()))
                table = pa.table([text, lists, empty, text, text], schema=SCHEMA)
                in_memory += table.nbytes
                writer.write_table(table)
        record = PartRecord(
            shard=f"{number}.tar", source=None, checksum=None, sha256=file_digest(path, "sha256"),
            bytes=path.stat().st_size, kept=groups * rows, dropped={}, examples={}, arithmetic="none",
            arrow_bytes=in_memory,
        )  # fmt: skip
        record.write(folder / "manifest" / f"{path.stem}.json")
    return sum(path.stat().st_size for path in (folder / "data").iterdir())


if __name__ == "__main__":
    main()
