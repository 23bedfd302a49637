"""Floor 4: the story in order. Each stage is one file; thin Lightning modules carry the loops."""
