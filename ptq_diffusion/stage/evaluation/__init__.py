"""The description of stored images, shared by all devices, and what is told of all of them."""
