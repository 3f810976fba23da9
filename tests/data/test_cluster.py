"""The Ray engine writes what the local one writes, whatever happens to the nodes."""

import itertools
import random
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ar_t2i.config import build
from ar_t2i.data.preprocess import PreprocessConfig

on_a_cluster = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module")
def cluster(kit):
    """Four nodes in processes of this machine; the first has no core and only leads."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    module = sys.modules[kit.MeanTokenizer.__module__]
    ray.cloudpickle.register_pickle_by_value(module)  # workers cannot import this folder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20})
        for _ in range(3):
            cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
        ray.shutdown()
        cluster.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(module)


def dataset(kit, out: Path) -> dict[str, bytes]:
    """Parts and records, and the manifest."""
    files = kit.files_of(out)
    return {name: files[name] for name in files if name.endswith((".parquet", ".json"))}


@pytest.fixture
def many(kit, tmp_path):
    """Twelve tars, one of them hostile, one cut in the middle: their pattern."""
    (tmp_path / "many").mkdir()
    for shard in range(12):
        hostile = {number + 60: files for number, files in kit.hostile_files().items()}
        kit.write_tar(tmp_path / "many" / f"b-{shard:02d}.tar", range(shard * 30, shard * 30 + 30), hostile)
    cut = tmp_path / "many" / "b-05.tar"
    cut.write_bytes(cut.read_bytes()[:20000])
    return str(tmp_path / "many" / "b-{00..11}.tar")


@on_a_cluster
def test_both_engines_write_the_same_bytes(kit, run, cluster, many, tmp_path, capsys):
    (tmp_path / "many" / "b-12.tar").write_bytes(b"<html>404</html>" * 1000)  # no rows, and no arithmetic
    sources = (many, str(tmp_path / "many" / "b-12.tar"), f"pipe:cat {tmp_path}/gone.tar 2>/dev/null")
    lines = {}
    for engine, workers in (("local", 0), ("ray", 2)):
        out, pool = tmp_path / engine, {"encoders": 1} if workers else {}
        first = run(str(tmp_path / "many" / "b-{03..04}.tar"), out=str(out), dtype="auto")  # parts of an earlier run
        assert first.new_parts == 2
        before = set(kit.stamps_of(out).values())
        with pytest.raises(ValueError, match="1 of 14 shards have no part yet.*run the same command again"):
            run(*sources, out=str(out), engine=engine, workers=workers, dtype="auto", **pool)
        assert before <= set(kit.stamps_of(out).values()) and (out / "rows.png").exists()
        lines[engine] = sorted(line.split(";")[0] for line in capsys.readouterr().out.splitlines() if " kept" in line)
    assert lines["ray"] == [line.replace("/local,", "/ray,") for line in lines["local"]] and len(lines["ray"]) == 15
    found, expected = dataset(kit, tmp_path / "ray"), dataset(kit, tmp_path / "local")
    assert len(expected) == 13 * 2 + 1 and found == expected
    assert run(*sources[:2], out=str(tmp_path / "ray"), engine="ray", workers=None, dtype="auto").new_parts == 0


@on_a_cluster
def test_a_node_lost_in_the_middle_costs_no_row_and_doubles_none(kit, run, cluster, many, tmp_path, monkeypatch):
    from ar_t2i.data.progress import Progress

    class Slow(kit.MeanTokenizer):
        """Leaves a file for each batch: the node that encoded it."""

        def encode(self, pixels):
            import ray

            number = len(list(self.trace.iterdir()))
            (self.trace / f"{number:04d}-{ray.get_runtime_context().get_node_id()}").touch()
            time.sleep(0.02)
            return super().encode(pixels)

    Slow.trace, lost, finished = tmp_path / "trace", [], []
    Slow.trace.mkdir()
    finish = Progress.finish

    def strike(progress, name, record):
        finish(progress, name, record)
        finished.append(name)
        if len(finished) == 3:
            nodes = {node.node_id: node for node in cluster.worker_nodes}  # the head cannot be taken away
            latest = [path.name[5:] for path in sorted(Slow.trace.iterdir()) if path.name[5:] in nodes][-1]
            lost.append(latest)
            cluster.remove_node(nodes[latest], allow_graceful=False)

    run(many, out=str(tmp_path / "local"))
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "finish", strike)
        report = run(many, out=str(tmp_path / "out"), tokenizer=Slow(), engine="ray", workers=2, encoders=2)
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    assert len(lost) == 1 and len(finished) == len(set(finished)) == 12 == report.new_parts
    encoded = [path.name[5:] for path in sorted(Slow.trace.iterdir())]
    assert lost[0] in encoded and encoded[-1] != lost[0]  # another node went on
    assert dataset(kit, tmp_path / "out") == dataset(kit, tmp_path / "local")


@on_a_cluster
def test_what_goes_wrong_on_a_node_is_one_line(kit, run, cluster, tmp_path, source, monkeypatch):
    from ar_t2i.data.manifest import TokenizedFolder

    with pytest.raises(ValueError, match="^the image tokenizer gave codes .* expected 0 to 255") as caught:
        run(tokenizer=kit.MeanTokenizer(wrong=200), engine="ray", workers=1, encoders=1)
    assert "\n" not in str(caught.value) and not list((tmp_path / "out" / "data").iterdir())
    with pytest.raises(ValueError, match="device='cuda': no node of the cluster has a GPU"):
        run(engine="ray", workers=1, device="cuda")
    monkeypatch.setattr(TokenizedFolder, "path", lambda *_: tmp_path / "gone" / "train-00000-of-00004.parquet")
    with pytest.raises(ValueError, match=r"^cannot write .*No such file") as caught:
        run(engine="ray", workers=1, encoders=1)
    assert "\n" not in str(caught.value)


@on_a_cluster
def test_a_shard_that_kills_every_worker_ends_the_run(kit, run, cluster, tmp_path, source, monkeypatch):
    from ar_t2i.data import cluster as engine

    monkeypatch.setattr(engine, "RETRIES", 1)
    with pytest.raises(ValueError, match="^the cluster gave up: .*finished parts are kept") as caught:
        run(source, "pipe:kill -9 $PPID; cat poison.tar", engine="ray", workers=2, encoders=1)
    assert "\n" not in str(caught.value)


def test_a_shard_is_never_in_memory_as_a_whole(kit, tmp_path, vocabulary, monkeypatch):
    import pickle

    import pyarrow as pa

    from ar_t2i.data import cluster as engine
    from ar_t2i.data.images import ImageLimits
    from ar_t2i.data.shards import expand_sources

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda references: references))
    decoded = []
    prepare = engine.Decoder._start
    monkeypatch.setattr(
        engine.Decoder, "_start", lambda self, files: lambda: decoded.extend(files) or prepare(self, files)()
    )
    (shard,) = expand_sources([str(kit.write_tar(tmp_path / "t.tar", range(200)))])
    settings = engine._Settings(kit.SIZE, "center", ImageLimits(min_edge=2), 100, 16)
    task = pa.table({"shard": [7], "source": [pickle.dumps(shard)]})
    chunks = engine._decode(task, [vocabulary], settings)
    seen = []
    for number, chunk in enumerate(itertools.islice(chunks, 5)):
        assert chunk["number"].to_pylist() == [number] and chunk["samples"].to_pylist() == [16]
        assert len(decoded) <= 16 * (number + 1) + 8  # one list of files ahead
        seen.append(chunk)
    again = list(itertools.islice(engine._decode(task, [vocabulary], settings), 5))
    assert len(seen) == 5 and again == seen  # a task that is begun again gives the same


def chunks_of(shards: int, chunks: int):
    from ar_t2i.data.cluster import Chunk

    return [
        Chunk(
            shard, number, 1, (number + 1) / chunks, number == chunks - 1, None, None, b"", bytes([shard, number]), ""
        )
        for shard in range(shards)
        for number in range(chunks)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_chunks_in_any_order_and_twice_make_each_shard_once_and_in_order(seed):
    from ar_t2i.data.cluster import Gathering

    arrivals = chunks_of(6, 5) * 2
    random.Random(seed).shuffle(arrivals)
    gathering, whole, new = Gathering(), {}, 0
    for chunk in arrivals:
        new += gathering.add(chunk)
        assert 0 <= gathering.begun <= 6 - len(whole)
        if (taken := gathering.take(chunk.shard)) is not None:
            assert chunk.shard not in whole
            whole[chunk.shard] = [part.codes for part in taken]
    assert new == 30 and gathering.begun == 0 and gathering.whole == set(range(6))
    assert whole == {shard: [bytes([shard, number]) for number in range(5)] for shard in range(6)}


def test_a_shard_with_a_gap_is_never_whole():
    from ar_t2i.data.cluster import Gathering

    for missing in range(5):
        gathering, chunks = Gathering(), chunks_of(1, 5)
        for chunk in chunks[:missing] + chunks[missing + 1 :]:
            gathering.add(chunk)
            assert gathering.take(0) is None
        assert gathering.whole == set()


def test_a_part_that_is_written_again_is_the_same(tmp_path):
    import pickle

    from ar_t2i.data.cluster import Rows, _write
    from ar_t2i.data.sample import Reason

    rows = Rows(["a", "b"], ["one", "two"], [[1], [2, 3]], [("c", Reason.NO_IMAGE)], "sum")
    chunk = pickle.dumps(rows), np.arange(64, dtype=np.int64).tobytes(), "cpu float32"
    outcomes = []
    for _ in range(2):
        record = _write(tmp_path / "p.parquet", tmp_path / "p.json", "s", None, [chunk])
        outcomes.append((record, {path.name: path.read_bytes() for path in tmp_path.iterdir()}))
    assert outcomes[0] == outcomes[1] and outcomes[0][0].kept == 2 and set(outcomes[0][1]) == {"p.parquet", "p.json"}


def test_without_ray_one_line_tells_what_to_install(run, monkeypatch, source):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'ar_t2i\[ray\]'"):
        run(engine="ray", workers=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"engine": "spark"}, "engine='spark'"), ({"engine": "ray", "workers": 0}, "workers=0"),
     ({"engine": "ray", "encoders": 0}, "encoders=0"), ({"encoders": 2}, "encoders=2")],
)  # fmt: skip
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(PreprocessConfig, {"sources": ["a.tar"], "out": "o", "image_tokenizer": "t", **options})
