"""The judging of stored images, with Lightning."""
