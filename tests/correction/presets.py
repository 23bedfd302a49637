"""The corrections of conf/correction that are fitted; a choice among them is tested in test_auto."""

from hydra import compose, initialize_config_dir

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.main import CONF

with initialize_config_dir(str(CONF), version_base="1.3"):
    FILES = {
        path.stem: compose("config", [f"correction={path.stem}"]).correction
        for path in sorted((CONF / "correction").glob("*.yaml"))
    }
    shifted_file = compose(
        "config", ["correction=rescaled_matched", "shift@correction.links.rescaled.shift=mean"]
    ).correction
CORRECTIONS = {name: construct(file) for name, file in FILES.items() if "candidates" not in file}
SHIFTED = "rescaled_matched, shifted"
"""The name of a preset with another choice of a group that all presets leave at none."""
WITH_SHIFTED = CORRECTIONS | {SHIFTED: construct(shifted_file)}
