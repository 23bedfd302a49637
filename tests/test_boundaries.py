"""Boundary conditions: what happens exactly at a limit, where one sign of an inequality would change it."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from omegaconf import OmegaConf

from ptq_diffusion.artefact import files
from ptq_diffusion.correction import D2DPM, GatedPTQD, StepMoments
from ptq_diffusion.correction.evidence import MomentEvidence
from ptq_diffusion.engine.chunks import ChunkWork, Missing, do_share
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.metric.feature.resnet9 import ResNet9
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.numeric.transport import symmetric_root
from ptq_diffusion.quantizer import Percentile
from ptq_diffusion.quantizer.range_search import Distribution, affine_parameters
from ptq_diffusion.sampler import DDIM

CONFIG = dict(DDPMScheduler(clip_sample=False).config)


def column(*values):
    """Samples of one channel and pixel, (N, 1, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1)


def test_a_variance_that_changes_nothing_is_left_out():
    """Where the sampler adds no noise, none can be taken back: both misses are equal, and the simpler one is chosen."""
    (step, *_) = DDIM(4, 0.0, {}).table(CONFIG)
    m, r, x = torch.randn(3, 64, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    parts = [(m[0::2], (m + 0.1 * r)[0::2], x[0::2]), (m[1::2], (m + 0.1 * r)[1::2], x[1::2])]
    even, odd = (StepMoments.of(*part) for part in parts)
    correction = GatedPTQD().fit_step(MomentEvidence(even.merge(odd), even), step)
    assert step.sigma == correction.sigma == 0
    assert correction.residual.absorbed == 0


def test_moments_of_the_rest_tell_no_samples_apart():
    draw = torch.Generator().manual_seed(0)
    whole, part = (StepMoments.of(*torch.randn(3, count, 2, 4, 4, generator=draw)) for count in (6, 2))
    assert whole.merge(part).without(part).per_sample.shape == (0, 3)


def test_a_quantized_output_without_any_signal_is_refused_at_beta_1():
    """q = u is independent of m: Cov(D, m) = -Var m, so that beta is exactly 1."""
    m, u = column(1, -1, 1, -1), column(1, 1, -1, -1)
    (step, *_) = DDIM(4, 1.0, {}).table(CONFIG)
    with pytest.raises(ValueError, match="beta < 1, at t = .* it is 1.000"):
        D2DPM("deterministic").fit_step(MomentEvidence(StepMoments.of(m, u, m)), step)


def test_a_direction_that_rounding_makes_imaginary_is_zero():
    """With a zero terminal signal and eta 1, sigma^2 = 1 - abar_s up to the last bit of a square."""
    config = CONFIG | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, clip_sample=False)
    rests = []
    for count in range(2, 60):
        step = DDIM(count, 1.0, {"timestep_spacing": "trailing"}).table(config)[0]
        s = step.t - 1000 // count
        rests.append(1 - float(scheduler.alphas_cumprod[s]) - step.sigma**2)
        assert step.direction == max(rests[-1], 0.0) ** 0.5
    assert min(rests) < 0


def test_a_percentile_cuts_the_value_at_its_very_edge():
    """Of eight values, 75 % lie inside: the tails are exactly one value each."""
    values = torch.arange(8.0)[None]
    assert tuple(map(float, Percentile(75.0)(Distribution.of_groups(values), None))) == (1.0, 6.0)


def test_the_smallest_scale_that_divides_is_kept():
    """Below the smallest normal number an inverse would be infinite; there a group counts as all zero."""
    tiny = torch.finfo(torch.float32).tiny
    for grid in (Grid(4, symmetric=False), Grid(4, symmetric=True)):
        high = torch.tensor([tiny, tiny / 2]) * grid.high
        low = torch.tensor([tiny, tiny / 2]) * grid.low
        scale, _ = affine_parameters(low, high, grid)
        assert scale.tolist() == [tiny, 1.0]


def test_an_eigenvalue_below_zero_counts_as_zero():
    root = symmetric_root(torch.diag(torch.tensor([4.0, -1.0], dtype=torch.float64)))
    assert torch.allclose(root, torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64)))


def test_large_images_are_averaged_and_not_sampled():
    """Stripes whose sampled pixels are all black are grey to the eye."""
    network = ResNet9("test", [4, 4, 8, 8], 2).eval()
    stripes = torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(32).expand(1, 3, 128, 128)
    striped, grey, black = (
        network.describe(images).vectors for images in (stripes, torch.full_like(stripes, 0.5), 0 * stripes)
    )
    assert (striped - grey).norm() < (striped - black).norm() / 2


def test_a_report_names_the_artefact_that_a_stage_gave_last(tmp_path):
    """`auto` fits several candidates, and the chosen one once more as what all else is made of."""
    from tests.engine.test_store import Digits

    store = Store(tmp_path, Workshop(Runtime("cpu", False)))
    for number in (4, 5):
        cfg = OmegaConf.create({"a": {"number": number, "other": 1}, "factor": 2, "seeds": [1]})
        store.obtain(Digits, cfg)
        assert store.signatures[Digits.name] == store.signature(Digits, cfg)


def test_a_folder_that_was_renamed_is_brought_to_the_disk(tmp_path, monkeypatch):
    partial_folder, final, synced = tmp_path / "new.partial", tmp_path / "new", []
    partial_folder.mkdir()
    monkeypatch.setattr(files, "_sync", synced.append)
    files.replace(partial_folder, final)
    assert synced == [tmp_path] and final.is_dir()


def test_a_file_is_brought_to_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "file", []
    monkeypatch.setattr(files, "_sync", lambda beside: synced.append((beside.read_bytes(), path.exists())))
    files.write_bytes(path, b"content")
    assert synced == [(b"content", False)] and path.read_bytes() == b"content"


def test_a_folder_is_brought_to_the_disk_with_all_below_it(tmp_path, monkeypatch):
    synced = []
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_text("")
    monkeypatch.setattr(files, "_sync", synced.append)
    files.sync_folder(tmp_path)
    assert set(synced) == {tmp_path, tmp_path / "below", tmp_path / "below" / "file"}


class Threads(ChunkWork):
    def forward(self, chunk, device):
        raise AssertionError("there is no chunk")


class OneDevice:
    device, global_rank, world_size, is_global_zero = torch.device("cpu"), 0, 1, True


def test_a_process_of_several_devices_has_the_threads_that_the_signature_tells(tmp_path):
    before = torch.get_num_threads()
    try:
        missing = Missing([], tmp_path, "none", False, threads=before + 1)
        do_share(OneDevice(), build=lambda shop: Threads(), missing=missing, shop=Workshop(Runtime("cpu", False)))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
