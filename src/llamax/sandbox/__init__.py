"""Running programs that nobody has vouched for: generated code of benchmarks, and the tools of a model that acts."""

from llamax.sandbox.execute import MECHANISMS, Limits, Result, active, execute, weakness

__all__ = ["MECHANISMS", "Limits", "Result", "active", "execute", "weakness"]
