"""Llama-X: from LLaMA 3.0.0 to 4.0.0, one measured version at a time.

The package is a house with two floors. The ground floor (`models`, `data`, `training`, `generation`, `statistics`,
`runs`, `versions`, `papers`) serves every research direction and imports none of them. The first floor has a room per
direction (`instruction_tuning`, `evaluation`, ...), each backing the notebook of its name.
"""

__version__ = "0.1.0"
