"""Floor 4: how anything is made once: stages, their store, and what they are built and run with."""
