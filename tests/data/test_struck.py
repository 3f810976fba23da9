"""A run that is struck down, by a crash, a kill or Ctrl-C, keeps what is finished and goes on later."""

import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest

from ar_t2i.data.decode import Decoder
from ar_t2i.data.shards import expand_sources, iterate_samples


class Crash(BaseException):
    """Stands for a power cut: nothing catches it."""


def test_a_crash_at_any_write_is_made_good(kit, run, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    run(out=str(whole))
    expected, crashes = kit.files_of(whole), 0
    for last in itertools.count():
        calls = itertools.count()
        out = tmp_path / f"out-{last}"

        def crashing(function, calls=calls, last=last):
            def call(*arguments, **options):
                if next(calls) == last:
                    raise Crash
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crashing(os.replace))
            patch.setattr(os, "fsync", crashing(os.fsync))
            patch.setattr(Path, "unlink", lambda *_, **__: None)  # a power cut cleans nothing up
            try:
                run(out=str(out))
                break
            except Crash:
                crashes += 1
        run(out=str(out))
        found = {name: data for name, data in kit.files_of(out).items() if not Path(name).name.startswith(".")}
        assert found == {name: data for name, data in expected.items() if not Path(name).name.startswith(".")}
        assert not list((out / "data").glob(".*"))
    assert crashes > 20


def test_a_full_disk_keeps_finished_parts_and_a_rerun_ends_it(kit, run, small_disk, tmp_path):
    """A disk that has room for some of the parts, and then for all."""
    run(out=str(tmp_path / "whole"))
    disk = small_disk(60_000)
    with pytest.raises(ValueError, match="No space left on device.*finished parts are kept"):
        run(out=str(disk / "out"))
    kept = kit.stamps_of(disk / "out")
    assert 0 < len(kept) < 4 and all(name.endswith(".parquet") for name in kept)
    subprocess.run(["mount", "-o", "remount,size=5000000", str(disk)], check=True)
    run(out=str(disk / "out"))
    after = kit.stamps_of(disk / "out")
    assert kit.rows_of(disk / "out") == kit.rows_of(tmp_path / "whole")
    assert all(after[name] == stamp for name, stamp in kept.items()), "finished parts are not made again"


def test_an_unreadable_shard_stops_nothing_else(kit, run, tmp_path, source, capsys):
    sources = (source, f"pipe:cat {tmp_path}/in/b.tar 2>/dev/null")
    with pytest.raises(ValueError, match="1 of 5 shards have no part yet.*run the same command again"):
        run(*sources)
    assert len(kit.rows_of(tmp_path / "out")) == 120 and "120 kept" in capsys.readouterr().out
    kit.write_tar(tmp_path / "in" / "b.tar", range(200, 210))
    assert run(*sources).new_parts == 1 and len(kit.rows_of(tmp_path / "out")) == 130


def test_a_killed_worker_is_told(kit, source):
    shard = expand_sources([source])[0]
    with Decoder(1, kit.SIZE) as decode:

        def samples():
            for number, sample in enumerate(itertools.islice(itertools.cycle(iterate_samples(shard)), 4000)):
                if number == 2000:
                    for child in multiprocessing.active_children():
                        os.kill(child.pid, signal.SIGKILL)
                yield sample

        with pytest.raises(ValueError, match="a decoding worker was killed.* between 000"):
            for _, decoded in decode([(0, samples())]):
                list(decoded)


@pytest.fixture
def start_rank(run, monkeypatch):
    """Fork a process that preprocesses as one of several; all are gone at the end."""
    started = []

    def start_rank(rank, world, *sources):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons to those who fork with threads
            pid = os.fork()
        if pid == 0:
            os.setsid()
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
            try:
                run(*sources)
            finally:
                os._exit(0 if sys.exc_info()[0] is None else 1)
        started.append(pid)
        return pid

    yield start_rank
    for pid in started:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def test_a_rank_that_dies_delays_nobody(kit, run, start_rank, tmp_path, source, monkeypatch):
    for shard in (4, 5):
        kit.write_tar(tmp_path / "in" / f"a-{shard}.tar", range(shard * 30, shard * 30 + 30))
    slow = tmp_path / "in" / "a-4.tar"
    plain = [str(tmp_path / "in" / "a-{0..3}.tar"), str(tmp_path / "in" / "a-5.tar")]
    halting = f"pipe:head -c 20000 {slow}; sleep 300; tail -c +20001 {slow}"  # rank 1 of 3 hangs in its second shard
    sources = [*plain, f"pipe:cat {slow}"]
    run(*sources, out=str(tmp_path / "whole"))
    ranks = [start_rank(rank, 3, *plain, halting) for rank in range(3)]
    assert [os.waitpid(ranks[rank], 0)[1] for rank in (0, 2)] == [0, 0]
    data = tmp_path / "out" / "data"
    wait_for(lambda: len(list(data.glob("*.parquet"))) == 5)
    with pytest.raises(ValueError, match="another run writes"):
        run(*sources)
    os.kill(ranks[1], signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(ranks[1], 0)[1]) == signal.SIGKILL
    (data / ".train-00004-of-00006.parquet.tmp").write_bytes(b"half")  # with more rows there would be one
    reruns = 0
    for world in (1, 2, 3, 4):
        shutil.copytree(tmp_path / "out", tmp_path / f"again-{world}")
        before = kit.stamps_of(tmp_path / f"again-{world}")
        new = 0
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(world))
            new += run(*sources, out=str(tmp_path / f"again-{world}")).new_parts
        after = kit.stamps_of(tmp_path / f"again-{world}")
        assert new == 1 and before.keys() - after.keys() == {".train-00004-of-00006.parquet.tmp"}
        assert {name for name in after if after[name] != before.get(name)} == {"train-00004-of-00006.parquet"}
        for kind in ("data", "manifest"):
            found, whole = (kit.files_of(tmp_path / name / kind) for name in (f"again-{world}", "whole"))
            assert {name: found[name] for name in found if name[0] != "."} == {
                name: whole[name] for name in whole if name[0] != "."
            }
        reruns += 1
    assert reruns == 4


COMMAND = "import sys; from ar_t2i.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def command(image_tokenizer_folder, vocabulary_folder, tmp_path):
    """Start `ar-t2i preprocess` as a process of its own, in its own group."""
    started = []

    def start(*sources, out="out"):
        log = open(tmp_path / f"{out}.log", "a")  # no pipe: it would stay open as long as any child lives
        options = ["--image-tokenizer", image_tokenizer_folder, "--vocabulary", vocabulary_folder, "--workers", "1"]
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "preprocess", *sources, "--out", tmp_path / out, *map(str, options)],
            stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        log.close()
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_run_struck_in_the_middle_goes_on_later(kit, command, tmp_path, source, blow):
    last = tmp_path / "in" / "a-3.tar"
    halting = f"pipe:head -c 20000 {last}; sleep 60; tail -c +20001 {last}"  # the process is struck inside this shard
    first = [str(tmp_path / "in" / f"a-{i}.tar") for i in range(3)]
    process = command(*first, halting)
    wait_for(lambda: len(list((tmp_path / "out" / "data").glob("*.parquet"))) == 3)
    (os.kill if blow == signal.SIGKILL else os.killpg)(process.pid, blow)
    assert process.wait(timeout=30) == (-9 if blow == signal.SIGKILL else 130)
    assert "Traceback" not in (tmp_path / "out.log").read_text()
    left = ["pgrep", "-g", str(process.pid), "-f", "python"]  # no worker outlives the run
    wait_for(lambda: subprocess.run(left, capture_output=True).returncode == 1)
    before = kit.stamps_of(tmp_path / "out")
    assert len(before) == 3
    finish, uninterrupted = command(*first, f"pipe:cat {last}"), command(*first, f"pipe:cat {last}", out="whole")
    for process in (finish, uninterrupted):
        assert process.wait(timeout=120) == 0, (tmp_path / "out.log").read_text()
    after = kit.stamps_of(tmp_path / "out")
    assert len(after) == 4 and all(after[name] == stamp for name, stamp in before.items())
    rows = kit.rows_of(tmp_path / "out")
    assert rows == kit.rows_of(tmp_path / "whole") and len(rows) == 120
