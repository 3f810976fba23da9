"""The folder of a run: one run at a time, and one checkpoint that all of its processes go on from."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from ar_t2i.training.checkpoint import find_checkpoint


def choose_checkpoint(output: Path, resume: str, accelerator: Accelerator) -> Path | None:
    """`find_checkpoint` in the main process, for all: files are read and compared once.

    Raises:
        ValueError: as there, in every process.
    """
    found: list[str | None] = ["", None]
    if accelerator.is_main_process:
        try:
            found[1] = str(find_checkpoint(output, resume, accelerator.print) or "")
        except (ValueError, OSError) as error:
            found[0] = str(error)
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    if found[0]:
        raise ValueError(found[0])
    return Path(found[1]) if found[1] else None


def _hear(problem: str, accelerator: Accelerator) -> None:
    """Raise ValueError in all processes where the main one has a problem."""
    told = [problem]
    if accelerator.num_processes > 1:
        broadcast_object_list(told)
    if told[0]:
        raise ValueError(told[0])


@contextmanager
def claimed(output: Path, config: str, accelerator: Accelerator) -> Iterator[None]:
    """Make the folder, write config.yaml, and keep other runs out while this one is at work.

    The lock goes with the process: a run that was killed leaves none behind.

    Raises:
        ValueError: another run is at work there, or the folder cannot be written.
    """
    if not accelerator.is_main_process:
        _hear("", accelerator)
        yield
        return
    lock = FileLock(output / ".lock", timeout=0)
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        for left in (*output.glob(".*-*"), *output.glob("checkpoints/.*-*")):  # half folders of a run that was killed
            shutil.rmtree(left)
        (output / "config.yaml").write_text(config, encoding="utf-8")
        problem = ""
    except Timeout:
        problem = f"another run is at work in output={str(output)!r}: wait for its end"
    except OSError as error:
        problem = f"cannot write output={str(output)!r}: {error.strerror}; give another folder"
    try:
        _hear(problem, accelerator)
        yield
    finally:
        lock.release()
        with suppress(OSError):
            (output / ".lock").unlink()
