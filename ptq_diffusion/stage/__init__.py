"""Floor 5: the story in order. Each stage is one file; thin Lightning modules carry the loops."""
