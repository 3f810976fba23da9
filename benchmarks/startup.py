"""How long a user waits before anything happens: import, help, the first picture.

    python benchmarks/startup.py

Each command runs in fresh processes; the median of five is printed.
"""

import platform
import statistics
import subprocess
import sys
import tempfile
import time

LIMITS = {"import ar_t2i": "0.3 s", "ar-t2i --help": "1 s", "import torch": "-", "ar-t2i infer PROMPT": "6 s"}


def main() -> None:
    """Measure and print the table."""
    run_cli = "import sys; from ar_t2i.cli import main; sys.exit(main(sys.argv[1:]))"
    with tempfile.TemporaryDirectory() as out:
        commands = {
            "import ar_t2i": ["-c", "import ar_t2i"],
            "ar-t2i --help": ["-c", run_cli, "--help"],
            "import torch": ["-c", "import torch"],
            "ar-t2i infer PROMPT": ["-c", run_cli, "infer", "bird on a tree", "--out", out],
        }
        print(f"{platform.platform()}, Python {platform.python_version()}")
        print("| command | seconds | limit |\n|---|---|---|")
        for name, arguments in commands.items():
            times = []
            for _ in range(5):
                start = time.perf_counter()
                subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
                times.append(time.perf_counter() - start)
            print(f"| {name} | {statistics.median(times):.2f} | {LIMITS[name]} |")


if __name__ == "__main__":
    main()
