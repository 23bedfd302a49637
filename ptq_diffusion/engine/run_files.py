"""Names of the files that runs and sweeps leave."""

FAILURE = "failure.json"
"""The file that a failed job leaves in its run's folder."""


FAILED = "failed-*.json"
"""The files that failed jobs leave in their sweep's folder, by number: where that one is and what it says."""
