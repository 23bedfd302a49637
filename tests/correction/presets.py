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
    ruled_file = compose(
        "config",
        [
            "correction=rescaled_matched",
            "gain@correction.links.rescaled.gain=least_squares",
            "gain_steps@correction.links.rescaled.steps=pooled",
            "correction.links.matched.path=float",
            "correction.links.matched.images=null",
        ],
    ).correction
CORRECTIONS = {name: construct(file) for name, file in FILES.items() if "candidates" not in file}
SHIFTED = "rescaled_matched, shifted"
"""The name of a preset with another choice of a group that all presets leave at none."""
RULED = "rescaled_matched, by other rules"
"""The name of a preset whose layers are rescaled by no rule of the presets."""
WITH_SHIFTED = CORRECTIONS | {SHIFTED: construct(shifted_file), RULED: construct(ruled_file)}
