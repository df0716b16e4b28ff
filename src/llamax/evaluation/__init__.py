"""Measuring a model: the nano suite (`nano`), real benchmarks through lm-eval's tasks (`harness`), judged code
(`code_check`). Every measure gives one outcome per item, because every comparison here is paired."""
