"""Where a run shows itself while it lasts."""
