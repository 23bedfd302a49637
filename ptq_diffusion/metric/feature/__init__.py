"""Feature spaces in which images are compared, and the networks that compute them."""
