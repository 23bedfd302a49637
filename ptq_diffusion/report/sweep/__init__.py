"""Many reports as one table, one figure and one verdict."""
