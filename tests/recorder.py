"""A run that keeps what a study tells it, and a whole study in such a run."""

from types import SimpleNamespace


class Recorder:
    """Stands for an open run."""

    reused = False

    def __init__(self, scratch):
        self.scratch, self.completed = scratch, False
        self.record = SimpleNamespace(key="k", parts={}, notes={}, run="recorded")
        self.metrics, self.frames, self.notes = {}, {}, {}
        self.tokens, self.flops, self.seconds = 0, 0.0, 0.0

    def metric(self, name, value, **rest):
        self.metrics[name] = value

    def items(self, frame):
        self.frames["items"] = frame

    def series(self, name, frame):
        self.frames[name] = frame

    def note(self, name, value):
        self.notes[name] = value

    def cost(self, *, tokens=0, flops=0.0, seconds=0.0):
        self.tokens, self.flops, self.seconds = self.tokens + tokens, self.flops + flops, self.seconds + seconds

    def complete(self):
        self.completed = True


def run_study(kind, config, scratch):
    """Work through a study of class `kind` in `scratch`, as its notebook does; the study and what it recorded."""
    run = Recorder(scratch)
    study = kind(config, run)
    study.prepare()
    study.run_all()
    study.conclude()
    return study, run
