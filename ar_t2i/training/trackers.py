"""metrics.jsonl, always; and whatever trackers accelerate knows, by name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from tqdm import tqdm


class Metrics:
    """Writes records of one run; on every process but the first it does nothing."""

    def __init__(self, accelerator: Accelerator, output: Path, settings: dict[str, Any], done: int):
        """Open the log.

        Args:
            accelerator: with its trackers chosen.
            output: folder of the run.
            settings: flat options of the run, for the trackers.
            done: optimizer steps already done; later records, of a run that was cut off, are dropped.
        """
        self.accelerator, self.path = accelerator, output / "metrics.jsonl"
        accelerator.init_trackers("ar_t2i", config=settings)
        if accelerator.is_main_process:
            kept = [record for record in read_metrics(self.path) if record["step"] <= done] if done else []
            self.path.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values after `step` optimizer steps."""
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write(text)


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that would log nothing; accelerate leaves them out without a word.

    Raises:
        ValueError: a tracker that accelerate does not know, or that is not installed.
    """
    installed = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(
                f"loop.trackers: {name!r} is not known; expected some of {', '.join(LOGGER_TYPE_TO_CLASS)}"
            )
        if name not in installed:
            raise ValueError(f"loop.trackers: {name} is not installed: pip install {name}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, in order; none if there is no such file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
