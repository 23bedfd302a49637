"""A converted checkpoint computes what the original network computes, restated from its description."""

import json
import sys

import pytest
import torch
from diffusers import AutoencoderKL, LDMPipeline, VQModel
from safetensors.torch import load_file

import ptq_diffusion as pd
from ptq_diffusion.main import main
from ptq_diffusion.model import Condition, DiffusersDenoiser
from ptq_diffusion.model.original import conversion, convert
from ptq_diffusion.model.original.conversion import EMBEDDING
from ptq_diffusion.model.original.settings import UNetSettings
from ptq_diffusion.stage.samples import read_images
from tests.model.original.originals import OriginalFirstStage, OriginalUNet
from tests.steps import at

# The three networks of PTQD's tables, small.
NETWORKS = {
    "imagenet": {
        "image_size": 8,
        "in_channels": 3,
        "attention_resolutions": [2],
        "num_heads": 2,
        "use_spatial_transformer": True,
        "context_dim": 16,
    },
    "bedroom": {"image_size": 8, "in_channels": 3, "attention_resolutions": [2], "num_head_channels": 32},
    "church": {
        "image_size": 8,
        "in_channels": 4,
        "attention_resolutions": [1, 2],
        "num_heads": 8,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
    },
}
STAGES = {"imagenet": (3, 16), "bedroom": (3, 16), "church": (4, 0)}


class Origin:
    """An original checkpoint on disk, and what its networks compute."""

    def __init__(self, name, folder):
        options = NETWORKS[name] | {"model_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 2]}
        options["out_channels"] = options["in_channels"]
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        draw = torch.Generator().manual_seed(1)
        latent, codebook = STAGES[name]
        unet, stage = OriginalUNet(UNetSettings(**settings)), OriginalFirstStage((32, 64), latent, codebook)
        self.x, self.t = torch.randn(2, latent, 8, 8, generator=draw), torch.tensor([3, 700])
        self.classes = 5 if name == "imagenet" else None
        self.table = torch.randn(5, 16, generator=draw)
        self.context = self.table[[0, 4]][:, None] if self.classes else None
        self.output, self.decoded = unet(self.x, self.t, self.context), stage.decode(self.x)
        self.state = unet.state | stage.state | ({EMBEDDING: self.table} if self.classes else {})
        self.content = {
            "unet": options,
            "first_stage": {"kind": "vq" if codebook else "kl"},
            "linear_start": 0.0015,
            "linear_end": 0.0195,
            "classes": self.classes,
        }
        self.folder = folder
        self.checkpoint, self.configuration = folder / "model.ckpt", folder / "config.json"
        self.save(self.state, self.content)

    def save(self, state, content):
        torch.save({"state_dict": state, "global_step": 1}, self.checkpoint)
        self.configuration.write_text(json.dumps(content))

    def yaml(self):
        """The configuration as the original code has it."""
        kind = self.content["first_stage"]["kind"].upper()
        condition = {"target": "ClassEmbedder", "params": {"n_classes": 5, "embed_dim": 16}}
        params = {
            "linear_start": 0.0015,
            "linear_end": 0.0195,
            "timesteps": 1000,
            "unet_config": {"target": "openaimodel.UNetModel", "params": self.content["unet"] | {"dropout": 0.0}},
            "first_stage_config": {"target": f"autoencoder.{kind}ModelInterface", "params": {}},
            "cond_stage_config": condition if self.classes else "__is_unconditional__",
        }
        path = self.folder / "config.yaml"
        path.write_text(json.dumps({"model": {"params": params}}))
        return path


@pytest.fixture(params=NETWORKS)
def origin(request, tmp_path):
    with torch.no_grad():
        return Origin(request.param, tmp_path)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_network_and_first_stage_compute_what_the_original_computes(origin, tmp_path):
    folder = convert(origin.checkpoint, origin.configuration, tmp_path / "out").folder
    model = DiffusersDenoiser.from_folder(str(folder))
    labels = [None, None] if origin.context is None else [Condition(labels=torch.tensor([row])) for row in (0, 4)]
    outputs = [model.predict(origin.x[[i]], at(float(origin.t[i])), labels[i]).m for i in range(2)]
    assert torch.allclose(torch.cat(outputs), origin.output, atol=1e-4)
    (stage,) = [path for path in folder.iterdir() if path.name in ("vae", "vqvae")]
    kind = VQModel if origin.content["first_stage"]["kind"] == "vq" else AutoencoderKL
    assert torch.allclose(kind.from_pretrained(stage).decode(origin.x).sample, origin.decoded, atol=1e-4)
    if origin.classes:
        described = json.loads((folder / "class_embedder" / "config.json").read_text())
        assert (described["classes"], described["dim"]) == (4, 16)
        weights = load_file(folder / "class_embedder" / "diffusion_pytorch_model.safetensors")
        assert torch.equal(weights["weight"], origin.table)


@pytest.mark.filterwarnings("ignore")
def test_converted_networks_are_sampled_quantized_and_exported(origin, tmp_path, make):
    folder = convert(origin.checkpoint, origin.configuration, tmp_path / "out").folder
    condition = ["condition=labels", "condition.guidance.scale=2"] if origin.classes else []
    words = [f"model.path={folder}", "feature=pixels", "images=2", "seeds=[0]", "calibration.images=2", *condition]
    words += ["bitwidth=w8a8", "noise.images=4", "sampler.steps=2"]
    exported = make(*words, "goal=export")
    if origin.content["first_stage"]["kind"] == "kl":
        drawn = read_images(make(*words, "goal=samples_corrected"))
        assert drawn.shape[:2] == (2, 3) and drawn.float().std() > 1
    quantized = pd.load_quantized(exported)
    told = Condition(labels=torch.tensor([4])) if origin.classes else None
    q, m = quantized.unguided().predict(origin.x[1:], at(700), told).m, origin.output[1:]
    assert (q - m).norm() < 0.2 * m.norm(), "the function of the original, but for quantization"


@pytest.mark.parametrize("heads", [3, 0, 8.0, "8"])
def test_heads_that_do_not_divide_the_channels_are_refused(heads, tmp_path):
    with torch.no_grad():
        origin = Origin("church", tmp_path)
    path = convert(origin.checkpoint, origin.configuration, tmp_path / "out").folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_heads": heads}))
    with pytest.raises(ValueError, match="expected .*attention_heads"):
        DiffusersDenoiser.from_folder(str(path.parents[1]))


def test_the_original_yaml_says_the_same_as_the_json(origin, tmp_path):
    folders = [
        convert(origin.checkpoint, configuration, tmp_path / name).folder
        for name, configuration in (("a", origin.configuration), ("b", origin.yaml()))
    ]
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*.*")) for folder in folders]
    assert files[0] == files[1]
    assert all((folders[0] / file).read_bytes() == (folders[1] / file).read_bytes() for file in files[0])


def test_unconditional_folders_load_in_their_stock_pipeline(tmp_path):
    with torch.no_grad():
        origin = Origin("bedroom", tmp_path)
    folder = convert(origin.checkpoint, origin.configuration, tmp_path / "out").folder
    pipeline = LDMPipeline.from_pretrained(folder)
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, content: state.pop("model.diffusion_model.out.2.weight"), "conv_out.weight .* got None"),
        (lambda state, content: state.update({"model.diffusion_model.more.weight": torch.zeros(1)}), "got more.weight"),
        (lambda state, content: content["unet"].update(channel_mult=[1, 4]), "expected a network .* of shape"),
        (lambda state, content: content["unet"].update(surprise=1), "surprise"),
        (lambda state, content: content.pop("linear_start"), "linear_start"),
        (lambda state, content: content["first_stage"].update(kind="kl"), "expected a first stage"),
        (
            lambda state, content: [state.pop(name) for name in list(state) if "first_stage" in name],
            "first_stage_model",
        ),
        (
            lambda state, content: state.update({"first_stage_model.encoder.down.0.attn.0.q.weight": torch.zeros(1)}),
            "attn",
        ),
    ],
)
def test_another_checkpoint_is_refused_by_the_first_name_that_differs(tmp_path, change, message):
    with torch.no_grad():
        origin = Origin("bedroom", tmp_path)
    change(origin.state, origin.content)
    origin.save(origin.state, origin.content)
    with pytest.raises(ValueError, match=message):
        convert(origin.checkpoint, origin.configuration, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "heads", [{"num_head_channels": 100}, {"num_head_channels": 0}, {"num_heads": 3}, {"num_heads": -1}], ids=str
)
def test_heads_of_another_checkpoint_are_refused_in_one_line(heads, tmp_path, monkeypatch):
    """Of attention whose queries, keys and values of all heads are one tensor."""
    with torch.no_grad():
        origin = Origin("church", tmp_path)
    monkeypatch.setitem(origin.content, "unet", {**origin.content["unet"], "num_head_channels": -1, **heads})
    origin.save(origin.state, origin.content)
    words = ["convert", str(origin.checkpoint), "--config", str(origin.configuration), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["ptq-diffusion", *words])
    with pytest.raises(SystemExit, match="^error: expected .*heads.* configuration") as ended:
        main()
    assert "\n" not in str(ended.value.code) and not (tmp_path / "out").exists()


def edited(path, **changes):
    content = json.loads(path.read_text())
    content["model"]["params"].update(changes)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("parameterization", "prediction"), [("v", "v_prediction"), ("x0", "sample")])
def test_what_the_network_predicts_is_told(parameterization, prediction, tmp_path):
    with torch.no_grad():
        origin = Origin("bedroom", tmp_path)
    edited(origin.yaml(), parameterization=parameterization)
    folder = convert(origin.checkpoint, tmp_path / "config.yaml", tmp_path / "out").folder
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == prediction


CLIP = {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameterization": "other"}, "expected parameterization of eps, v, x0 in .*, got 'other'"),
        ({"beta_schedule": "cosine"}, "expected beta_schedule=linear in .*, got 'cosine'"),
        ({"cond_stage_config": CLIP}, "got cond_stage_config of FrozenCLIPEmbedder in .*from_single_file"),
        ({"cond_stage_config": {"target": "ClassEmbedder", "params": {"n_classes": 4}}}, "of 4 rows in .*, got 5"),
    ],
    ids=["prediction", "schedule", "text", "classes"],
)
def test_other_models_are_refused_and_a_second_call_is_as_a_first(changes, message, tmp_path):
    with torch.no_grad():
        origin = Origin("imagenet", tmp_path)
    edited(configuration := origin.yaml(), **changes)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        convert(origin.checkpoint, configuration, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def refuse(*_):
    raise OSError("no room")


def test_a_conversion_that_is_broken_off_leaves_nothing_behind(tmp_path, monkeypatch):
    with torch.no_grad():
        origin = Origin("imagenet", tmp_path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr(conversion, "save_file", refuse)
        convert(origin.checkpoint, origin.configuration, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"model.ckpt", "config.json"}
    (tmp_path / "out").mkdir()
    assert convert(origin.checkpoint, origin.configuration, tmp_path / "out").folder == tmp_path / "out"


class Surprise:
    def __reduce__(self):
        return print, ("this must not run",)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capsys):
    with torch.no_grad():
        origin = Origin("bedroom", tmp_path)
    torch.save({"state_dict": origin.state, "callbacks": Surprise()}, origin.checkpoint)
    with pytest.raises(ValueError, match="which is not run"):
        convert(origin.checkpoint, origin.configuration, tmp_path / "out")
    assert "must not run" not in capsys.readouterr().out


def test_files_that_are_not_there_and_a_folder_in_use_are_told(tmp_path):
    with torch.no_grad():
        origin = Origin("bedroom", tmp_path)
    with pytest.raises(FileNotFoundError, match="checkpoint at"):
        convert(tmp_path / "no.ckpt", origin.configuration, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="configuration of the checkpoint"):
        convert(origin.checkpoint, tmp_path / "no.yaml", tmp_path / "out")
    with pytest.raises(FileExistsError, match="new or empty folder"):
        convert(origin.checkpoint, origin.configuration, tmp_path)


def test_the_command_ends_with_the_folder(tmp_path, capsys, monkeypatch):
    with torch.no_grad():
        origin = Origin("church", tmp_path)
    folder = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["ptq-diffusion", "convert", str(origin.checkpoint)])
    monkeypatch.setattr("sys.argv", [*sys.argv, "--config", str(origin.configuration), "--out", str(folder)])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(folder) and "8 heads" in lines[1]
