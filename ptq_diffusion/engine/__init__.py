"""Floor 4: makes every artefact once: the contract of a stage, the store, the factory, devices and run folders."""
