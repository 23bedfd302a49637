"""Stages that train the bundled networks."""
