"""The source of this package as definitions that refer to each other, read without running any."""
