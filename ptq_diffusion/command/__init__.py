"""Floor 7: the commands of the command line, one file each, and the checks in front of them."""
