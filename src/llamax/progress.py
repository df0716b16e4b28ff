"""Progress of long work: a bar where someone watches, lines where a log is kept.

A JupyterLab kernel and a terminal get a `tqdm` bar. A kernel started by papermill, pytest or `llamax run`, and a
process whose output is a file, get one line every few seconds instead: a redrawn bar is noise in a log.
"""

import contextlib
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
LINE_INTERVAL = 10.0  # seconds between two lines of the same piece of work
HEADLESS = ("papermill", "pytest", "llamax", "nbconvert")


class Progress:
    """Counts steps of `total`; `advance` may carry figures (loss, rate) that are shown beside the count."""

    def __init__(self, total: int, label: str):
        self.total, self.label, self.done = total, label, 0
        self.started = self.printed = time.monotonic()
        self.bar = _bar(total, label) if watched() else None

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Count `steps` more; show `figures` with four significant digits."""
        self.done += steps
        shown = {name: f"{value:.4g}" for name, value in figures.items()}
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(steps)
        elif self.done >= self.total or time.monotonic() - self.printed >= LINE_INTERVAL:
            self.printed = time.monotonic()
            text = "".join(f"  {name} {value}" for name, value in shown.items())
            print(f"{self.label}: {self.done}/{self.total}{text}  {self.printed - self.started:.0f} s", flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.close()


@contextlib.contextmanager
def progress(total: int, label: str) -> Iterator[Progress]:
    """`with progress(len(batches), "evaluate") as bar: ... bar.advance()`."""
    bar = Progress(total, label)
    try:
        yield bar
    finally:
        bar.close()


def progress_over(things: Collection[T], label: str) -> Iterator[T]:
    """The things one by one, counted as they are done."""
    with progress(len(things), label) as bar:
        for thing in things:
            yield thing
            bar.advance()


def watched() -> bool:
    """True when a person sees the output as it comes: a terminal, or a notebook with a frontend."""
    if "ipykernel" not in sys.modules:
        return sys.stderr.isatty()
    import psutil

    parent = psutil.Process().parent()
    with contextlib.suppress(psutil.Error):
        return parent is None or not any(Path(part).name in HEADLESS for part in parent.cmdline())
    return True


def _bar(total: int, label: str):
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, leave=False)
