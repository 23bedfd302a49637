"""Bootstrap errors and intervals of metrics, and hypothesis tests."""
