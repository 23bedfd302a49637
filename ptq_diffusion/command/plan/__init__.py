"""The command `plan`: sizes, passes, bytes, memory and time of an experiment, told before anything runs."""
