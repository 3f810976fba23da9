"""All benchmarks run as they are, with small sizes; their figures mean nothing then."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_prints_its_table(name):
    command = [sys.executable, "-m", "benchmarks", name, "--small"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr[-2000:]
    assert f"## {name}" in found.stdout and found.stdout.count("\n|") >= 3, found.stdout


def test_an_unknown_name_is_refused():
    command = [sys.executable, "-m", "benchmarks", "sampling", "nothing"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 2 and "unknown benchmark nothing" in found.stderr
