"""The folder's README names no correction that there is not, and its example is one."""

import re
from pathlib import Path

import torch
from diffusers import DDPMScheduler

import ptq_diffusion.correction
from ptq_diffusion.correction import Correction, PairedBatch, PathEvidence
from ptq_diffusion.sampler import DDIM
from tests.correction.presets import FILES

README = (Path(ptq_diffusion.correction.__file__).parent / "README.md").read_text()


def test_its_table_is_of_corrections_that_there_are_each_once():
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row) if name != "correction"]
    assert len(names) == len(set(names)) > 20 and set(names) <= FILES.keys()


def test_the_example_subtracts_the_mean_error():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    namespace: dict[str, type[Correction]] = {}
    exec(code, namespace)
    step = DDIM(4, 1.0, {}).table(DDPMScheduler().config)[1]
    m, noise = torch.randn(2, 40, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    q = m + 0.1 * noise + torch.tensor([0.3, -0.2, 0.0])[:, None, None]
    found = namespace["PathBias"]().fit_step(PathEvidence([PairedBatch(0, q, m, q, m, m, m)]), step)
    expected = q - (q - m).mean((0, 2, 3))[:, None, None]
    torch.testing.assert_close(found.output(q, m, q), expected)
