"""How long a user waits before anything happens: import, help, the first picture.

Each command runs in fresh processes, in turns. Beyond importing torch, `infer` reads the weights, draws
and writes one picture.
"""

import subprocess
import sys
import tempfile

from benchmarks.machine import Options, compare

RUN_CLI = "import sys; from ar_t2i.cli import main; sys.exit(main(sys.argv[1:]))"
LIMITS = {"import ar_t2i": "0.3 s", "ar-t2i --help": "1 s", "import torch": "-", "ar-t2i infer PROMPT": "-"}


def run(options: Options) -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as out:
        infer = ["infer", "bird on a tree", "--out", out, "--device", options.device]
        commands = dict(
            zip(LIMITS, (["import ar_t2i"], [RUN_CLI, "--help"], ["import torch"], [RUN_CLI, *infer]), strict=True)
        )
        found = compare(
            {
                name: lambda code=code: subprocess.run([sys.executable, "-c", *code], check=True, capture_output=True)
                for name, code in commands.items()
            },
            times=2 if options.small else options.times,
        )
    print("| command | time | limit |\n|---|---|---|")
    for name, limit in LIMITS.items():
        print(f"| {name} | {found[name]} | {limit} |")
    beyond = found["ar-t2i infer PROMPT"].median - found["import torch"].median
    print(f"| infer, beyond import torch | {beyond:.2f} s | 2.5 s |")
