"""Floor 3: what images and features are judged by. Distances of distributions, and paired distances per image."""
