"""Running programs that nobody has vouched for."""
