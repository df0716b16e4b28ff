"""Llama-X: from LLaMA 3.0.0 to 4.0.0, one measured version at a time.

The package is a house with two floors. The ground floor (`models`, `data`, `training`, `generation`, `statistics`,
`runs`, `versions`, `papers`) serves every research direction and imports none of them. The first floor has a room per
direction (`instruction_tuning`, `evaluation`, ...), each backing the notebook of its name.
"""

import os

__version__ = "0.1.0"

# How long an OpenMP thread spins at a barrier before it sleeps. At libgomp's default, spinning threads keep each other
# from a core as soon as something else runs: beside two busy processes nano trains 2.6 times as fast with 10,000
# rounds, alone it trains as fast (benchmarks/threads.py). It counts only where torch is imported after this.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
