"""The command `store`: lists artefacts and removes what no run needs."""
