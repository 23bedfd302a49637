"""Floor 5: the stages of an experiment, in order. Each is one file; thin Lightning modules carry the loops."""
