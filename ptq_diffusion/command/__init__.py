"""Floor 7: the commands of the command line."""
