"""Floor 6: tables, figures and files of a run, and of a sweep of runs."""
