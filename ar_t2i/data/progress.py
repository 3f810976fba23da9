"""How far a run over shards is: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self

from tqdm import tqdm

from ar_t2i.data.decode import Decoded
from ar_t2i.data.parts import PartRecord

SECONDS_BETWEEN_LINES = 60.0


class Progress:
    """Counts samples and guesses the time left from the part of the shards that lies behind; a context manager."""

    def __init__(self, shards: int, shown: bool = True):
        """Show progress through `shards` shards, or show nothing."""
        self.shards, self.shown = shards, shown
        self.seen, self.finished = 0, 0
        self.bar: tqdm | None = None
        self.started = self.last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self.shown and sys.stderr.isatty():
            self.bar = tqdm(unit=" pictures", smoothing=0.05, dynamic_ncols=True)
        self.started = self.last_line = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.shown and self.bar is not None:
            self.bar.write(line)
        elif self.shown:
            print(line, flush=True)

    def watch(self, items: Iterable[Decoded]) -> Iterator[Decoded]:
        """The samples of one shard, counted as they go by."""
        for item in items:
            yield item
            self.advance(1, item.done)

    def advance(self, samples: int, begun: float) -> None:
        """Count samples; `begun` is the part that lies behind of the shards that are not finished, added up."""
        self.seen += samples
        behind = self.finished + begun
        if self.bar is not None:
            self.bar.total = round(self.seen * self.shards / behind) if behind else None
            self.bar.update(samples)
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self._line(f"{self.seen:,} pictures", behind)

    def finish(self, name: str, record: PartRecord) -> None:
        """A shard is done."""
        self.finished += 1
        if self.bar is None:
            self._line(f"{name}: {record.kept:,} kept, {sum(record.dropped.values()):,} dropped", self.finished)

    @property
    def per_second(self) -> float:
        """Samples a second since the start."""
        return self.seen / max(time.monotonic() - self.started, 1e-9)

    def _line(self, what: str, behind: float) -> None:
        self.last_line = time.monotonic()
        left = (self.last_line - self.started) * (self.shards / behind - 1) if behind else None
        remaining = "" if left is None else f", {tqdm.format_interval(left)} left"
        self.say(f"{what}; {self.per_second:,.1f} pictures/s{remaining}")
