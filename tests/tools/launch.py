"""Start a run as users do: by torchrun where there are several processes, which CPUs need, with any strategy."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--master_port=0"]
TORCHRUN += ["--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0"]


def command(config: Path, *options: str, processes: int = 1, restarts: int = 0) -> list[str]:
    """The line that starts `train.py`."""
    several = [*TORCHRUN, f"--nproc_per_node={processes}", f"--max_restarts={restarts}"]
    door = several if processes > 1 or restarts else [sys.executable]
    return [*door, str(ROOT / "train.py"), "--config", str(config), *options]


def environment(strategy: str = "ddp", **more: str) -> dict[str, str]:
    """As `accelerate launch` would set it from configs/accelerate/."""
    chosen = {
        "ddp": {},
        "fsdp": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        "deepspeed": {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"},
    }[strategy]
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **chosen, **more}


def launch(config: Path, *options: str, processes: int = 1, strategy: str = "ddp", **more: str) -> str:
    """Run to the end; returns what it printed."""
    line = command(config, *options, processes=processes)
    done = subprocess.run(line, capture_output=True, text=True, env=environment(strategy, **more), timeout=900)
    assert done.returncode == 0, done.stderr[-20000:]
    return done.stdout + done.stderr
