"""Text encoders of model folders, and the files that they are loaded from."""
