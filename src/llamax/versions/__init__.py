"""The ladder 3.0.0 .. 4.0.0 and the gate that a model version has to pass."""
