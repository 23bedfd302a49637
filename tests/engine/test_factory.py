"""A configuration constructs our classes and those of a few libraries, and nothing else."""

import pytest
from omegaconf import OmegaConf

from ptq_diffusion.engine.factory import construct

BEHIND_OURS = [
    "ptq_diffusion.stage.training.checkpoint.torch.load",
    "ptq_diffusion.stage.training.checkpoint.shutil.rmtree",
    "torch.optim.adam.torch.load",
    "ptq_diffusion.numeric.grid.FLOAT_BITS",
    "ptq_diffusion.artefact.files.replace",
    "diffusers.utils.dynamic_modules_utils.get_class_in_module",
    "diffusers.DiffusionPipeline.from_pretrained",
]


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "torch.load", "subprocess.run", *BEHIND_OURS])
def test_a_configuration_constructs_nothing_outside_the_allowlist(target):
    with pytest.raises(ValueError, match="_target_"):
        construct(OmegaConf.create({"inner": {"_target_": target}, "_target_": "ptq_diffusion.sampler.DDIM"}))
