"""TODO: room not built yet."""
