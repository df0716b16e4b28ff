"""Direction 01, instruction tuning: what it buys, and what general ability it costs."""
