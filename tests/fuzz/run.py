"""Changes valid inputs at random and gives them to every reader of what others may have written.

    python tests/fuzz/run.py --share 1        about a million cases
    python tests/fuzz/run.py --target tar --first 1234 --count 1

A reader may answer or raise ValueError or OSError. Anything else is a find: another error, more than `SECONDS`, or
more than `BYTES` of memory above what the process had. Case n of a target is a function of the seed, the target's name
and n.
"""

import argparse
import contextlib
import io
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tools"), str(HERE.parents[1])]

SECONDS = 10
BYTES = 600 * 2**20


class Slow(BaseException):
    """A case took too long."""


def finds(name: str, target: object, seed: int, first: int, count: int) -> Iterator[tuple[int, bytes, str]]:
    """Number, input and traceback of each case that goes wrong."""
    for number in range(first, first + count):
        data = target.mutate(random.Random(f"{seed} {name} {number}"), target.seeds)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            target.read(data)
        except (ValueError, OSError):
            pass
        except KeyboardInterrupt:
            raise
        except BaseException:  # a panic of a library in Rust is no Exception
            yield number, data, traceback.format_exc()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def limit_memory() -> None:
    """Let this process have `BYTES` more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES,) * 2)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries say of damaged files."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def run(
    share: float, seed: int, say: Callable[[str], None], only: str = "", first: int = 0, count: int = 0
) -> list[str]:
    """Run all targets, or one; returns what was found."""
    from targets import make_targets

    def too_slow(*_: object) -> None:
        raise Slow

    found, total, before = [], 0, signal.signal(signal.SIGALRM, too_slow)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as home:
        for name, target in make_targets(Path(home)).items():
            if only and name not in only.split(","):
                continue
            started, cases, errors = time.monotonic(), count or max(1, round(target.cases * share)), set()
            with quiet():
                for number, data, trace in finds(name, target, seed, first, cases):
                    places = [line for line in trace.splitlines() if line.startswith("  File ") and "fuzz" not in line]
                    kind = f"{trace.strip().splitlines()[-1].partition(':')[0]} {places[:1]} {places[-1:]}"
                    if kind not in errors:
                        errors.add(kind)
                        found.append(f"{name} {number}: {data[:300]!r}\n{trace}")
                        say(found[-1])
            total += cases
            say(f"{name:24}{cases:>10,} cases {time.monotonic() - started:8.1f} s {len(errors):4} finds")
    signal.signal(signal.SIGALRM, before)
    say(f"{'all':24}{total:>10,} cases, {len(found)} finds, seed {seed}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float, default=0.01, help="of a million cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", default="", help="names, with commas between; all if not given")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=0)
    options = parser.parse_args()
    import targets  # noqa: F401 - its libraries count before the limit

    limit_memory()
    found = run(
        options.share, options.seed, lambda line: print(line, flush=True), options.target, options.first, options.count
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
