"""Every experiment of conf/experiment that is no grid runs, on a tiny model and in seconds."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.stage.training.denoiser_training import DenoiserTraining

CONF = Path(__file__).parents[3] / "conf"
# Grids differ from the default experiment by options that other tests run; here they are only composed.
EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/*.yaml") if "sweeper" not in path.read_text())
TINY_AUTOENCODER = [
    "network.sample_size=16",
    "network.block_out_channels=[8,8]",
    "network.down_block_types=[DownEncoderBlock2D,DownEncoderBlock2D]",
    "network.up_block_types=[UpDecoderBlock2D,UpDecoderBlock2D]",
]
TINY_TRAINING = {
    "train_autoencoder": [f"training.{option}" for option in TINY_AUTOENCODER],
    "train_latent_denoiser": [
        *(
            f"autoencoder.{option}"
            for option in (*TINY_AUTOENCODER, "steps=2", "warmup=1", "cooldown=1", "batch_size=8")
        ),
        "training.network.unet.block_out_channels=[8,8]",
        "training.network.unet.down_block_types=[DownBlock2D,CrossAttnDownBlock2D]",
        "training.network.unet.up_block_types=[CrossAttnUpBlock2D,UpBlock2D]",
    ],
    "train_denoiser": [
        "training.network.sample_size=16",
        "training.network.attention_head_dim=8",
        "training.network.block_out_channels=[8,8]",
        "training.network.down_block_types=[DownBlock2D,DownBlock2D]",
        "training.network.up_block_types=[UpBlock2D,UpBlock2D]",
    ],
    "train_feature_network": ["training.network.widths=[4,4,8,8]"],
}
FEW_STEPS = [
    "training.steps=6",
    "training.batch_size=8",
    "training.warmup=2",
    "training.cooldown=2",
    "training.checkpoint_every=2",
    "training.precision=32-true",
]


def of(experiment, images_folder):
    data = [f"data.folder={images_folder}"] if experiment.startswith(("train", "reference")) else []
    training = [*TINY_TRAINING[experiment], *FEW_STEPS] if experiment in TINY_TRAINING else []
    enough = ["noise.images=16", "trial.images=4"] if experiment == "demo" else []  # for every candidate of auto
    return [f"experiment={experiment}", *data, *training, *enough]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_runs_and_prints_the_path_of_what_it_made_last(experiment, make, images_folder, capsys):
    make(*of(experiment, images_folder))
    assert Path(capsys.readouterr().out.strip().splitlines()[-1]).exists()


def test_training_goes_on_after_an_interruption_and_ends_bit_identical(make, images_folder, tmp_path, monkeypatch):
    """The average of the weights is the result, so a checkpoint that misses one of its updates would show."""
    options = of("train_denoiser", images_folder)
    whole = make(*options, f"outputs={tmp_path / 'whole'}")
    step, taken = DenoiserTraining.training_step, []

    def killed_at_the_sixth_step(self, batch, index):
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(index)
        return step(self, batch, index)

    monkeypatch.setattr(DenoiserTraining, "training_step", killed_at_the_sixth_step)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        make(*options, f"outputs={tmp_path / 'halved'}")
    monkeypatch.setattr(DenoiserTraining, "training_step", lambda *args: taken.append(args[2]) or step(*args))
    halved = make(*options, f"outputs={tmp_path / 'halved'}")
    assert len(taken) == 5 + 2, "the second attempt goes on from the checkpoint of step 4"
    first, second = (load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (whole, halved))
    assert all(first[name].equal(second[name]) for name in first)
    assert DiffusersDenoiser.from_folder(str(whole)).shape == (3, 16, 16), "what was trained is a model"


def test_a_sweep_runs_every_job_of_an_ablation_with_what_is_shared_made_once(command, tmp_path):
    said = command("-m", "experiment=ptqd_ablation", "bitwidth=w4a8", "sampler.eta=1,0", "correction=none,ptqd")
    assert len(list((tmp_path / "outputs" / "runs" / "ptqd_ablation").glob("*/report.json"))) == 4
    assert said.count("calibrate: making") == 2, "once for each eta"
