"""One training loop, objectives as functions, two engines (torch, DeepSpeed), checkpoints that survive `kill -9`.

`config.TrainConfig` needs no torch. `loop.fit` trains a model on packed rows; `launch.train` runs a whole job, in this
process or on many ranks.
"""

from llamax.training.config import Job, LoraConfig, TrainConfig

__all__ = ["Job", "LoraConfig", "TrainConfig"]
