"""Many reports collected into one table, one figure and one verdict."""
