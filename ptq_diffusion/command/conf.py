"""The folder of the configurations: within the package in a wheel, beside it in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
