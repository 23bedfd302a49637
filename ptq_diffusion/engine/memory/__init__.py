"""Memory: what the process keeps of what it has freed, and networks that are in it block by block."""
