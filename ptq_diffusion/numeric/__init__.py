"""Floor 0: arithmetic that knows torch and nothing else."""
