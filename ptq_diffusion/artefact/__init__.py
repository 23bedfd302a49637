"""Floor 0: files on disk, written whole or not at all, and folders that come with the package."""
