"""Progress of long work: a bar where someone watches, lines where a log is kept.

A terminal and the kernel of a frontend (JupyterLab, an editor) get a `tqdm` bar. A kernel that papermill, pytest or a
script started, and a process whose output is a file, get one line every few seconds instead: a redrawn bar is noise in
a log, and papermill shows no widgets.
"""

import contextlib
import re
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Self, TypeVar

T = TypeVar("T")
LINE_INTERVAL = 10.0  # seconds between two lines of the same piece of work
HEADLESS = re.compile(r"papermill|pytest|llamax|(jupyter-)?(nbconvert|execute|run)")
FRONTENDS = re.compile(r"jupyter.*|node|code.*|cursor.*|pycharm.*|spyder.*")


class Progress:
    """Counts steps of `total`; `advance` may carry figures (loss, rate) that are shown beside the count.

    with Progress(len(batches), "evaluate") as bar: ... bar.advance()
    """

    def __init__(self, total: int, label: str, *, shown: bool = True):
        self.total, self.label, self.done, self.shown = total, label, 0, shown
        self.started = self.printed = time.monotonic()
        self.bar = _bar(total, label) if shown and watched() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def reach(self, step: int, **figures: float) -> None:
        """Count up to `step`, which is further on than one step where work is resumed."""
        self.advance(step - self.done, **figures)

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Count `steps` more; show `figures` with four significant digits."""
        self.done += steps
        shown = {name: f"{value:.4g}" for name, value in figures.items()}
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(steps)
        elif self.shown and (self.done >= self.total or time.monotonic() - self.printed >= LINE_INTERVAL):
            self.printed = time.monotonic()
            text = "".join(f"  {name} {value}" for name, value in shown.items())
            print(f"{self.label}: {self.done}/{self.total}{text}  {self.printed - self.started:.0f} s", flush=True)


def progress_over(things: Collection[T], label: str) -> Iterator[T]:
    """The things one by one, counted as they are done."""
    with Progress(len(things), label) as bar:
        for thing in things:
            yield thing
            bar.advance()


def watched() -> bool:
    """True when a person sees the output as it comes: a terminal, or a notebook with a frontend."""
    if "ipykernel" not in sys.modules:
        return sys.stderr.isatty()
    import psutil

    with contextlib.suppress(psutil.Error):
        parent = psutil.Process().parent()
        return parent is not None and is_frontend(parent.cmdline())
    return False


def is_frontend(command: Sequence[str]) -> bool:
    """Whether the process with this command line, which started a kernel, shows its output to a person."""
    names = [Path(part).name for part in command]
    return any(map(FRONTENDS.fullmatch, names)) and not any(map(HEADLESS.fullmatch, names))


def _bar(total: int, label: str):
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, leave=False)
