"""Floor 6: what a run and a sweep of runs end with."""
