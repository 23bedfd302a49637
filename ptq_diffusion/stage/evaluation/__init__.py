"""Features and scores of stored images, computed by all devices, and the shape of an evaluation's file."""
