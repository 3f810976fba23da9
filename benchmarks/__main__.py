"""Run the benchmarks and print their tables: python -m benchmarks [--device cuda] [--small] [NAME ...]."""

import argparse
import importlib

from benchmarks.machine import Options, describe

NAMES = ("sampling", "pixels", "training", "preprocess", "startup", "growth")
"""Modules of this package, each with a `run(options)` that prints its tables."""


def main() -> None:
    """Run those asked for, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all if none is given")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--times", type=int, default=5, help="timed runs of each thing")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}: expected some of {', '.join(NAMES)}")
    options = Options(device=given.device, small=given.small, times=given.times)
    print(describe(options.device))
    for name in given.names or NAMES:
        print(f"\n## {name}\n", flush=True)
        importlib.import_module(f"benchmarks.{name}").run(options)


if __name__ == "__main__":
    main()
