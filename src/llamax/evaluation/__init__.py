"""Measuring a model: the nano suite (`nano`), public benchmarks (`definitions`: which there are, `harness`: running
them), judged code (`judge`). Every measure gives one outcome per item, because every comparison here is paired."""
