"""Direction 07: where the time and memory of a training step go, and what each optimisation buys."""
