"""The number of devices changes no byte: two processes on the CPU against one."""

import logging
import pickle
from types import SimpleNamespace

import pytest
import torch

from ptq_diffusion.command import experiment as command
from ptq_diffusion.command.check.offload import check_offload
from ptq_diffusion.command.experiment import STAGES
from ptq_diffusion.engine import runtime
from ptq_diffusion.engine.runtime import Quiet, Runtime
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import GaussianDenoiser
from ptq_diffusion.network import InputObservations
from ptq_diffusion.stage.evaluate import Evaluate
from tests.experiments import composed as experiment

SMALL = ["goal=samples_corrected", "images=6", "seeds=[0,1]", "noise.images=10", "correction=rescaled"]
SMALL += [
    *("calibration.images=10", "calibration_set=density", "calibration_set.images=6"),
    "step_groups@quantizer.steps=equal",
    "quantizer.steps.count=2",
    "equalisation@quantizer.equalisation=power_of_two",
]


def contents(outputs):
    """Every file of the store but locks, by its path."""
    paths = [path for path in outputs.glob("store/**/*") if path.is_file() and path.suffix not in (".lock", ".seconds")]
    return {str(path.relative_to(outputs)): path.read_bytes() for path in paths}


class Killed(BaseException):
    """What no code catches."""


@pytest.fixture
def killed(imported, make, tmp_path, monkeypatch):
    """Outputs where a calibration by two devices was killed when one of them had observed its share."""

    def dies(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(InputObservations, "join", dies)
        make(*SMALL, "goal=calibrate", f"outputs={tmp_path / 'two'}", "runtime.devices=2")
    _, second = sorted((tmp_path / "two").glob("store/calibrate/*.partial/parts/ranges/2_parts/*.safetensors"))
    second.unlink()


@pytest.mark.usefixtures("killed")
def test_two_devices_that_take_networks_block_by_block_leave_the_bytes_of_one_that_takes_them_whole(
    make, tmp_path, capsys
):
    """The images have four chunks, those of the fit and of calibration three, and all are shared."""
    path = make(*SMALL, f"outputs={tmp_path / 'two'}", "runtime.devices=2", "runtime.offload=block")
    said = capsys.readouterr().out
    assert make(*SMALL, f"outputs={tmp_path / 'one'}").name == path.name, "neither is in a signature"
    single, shared = (contents(tmp_path / name) for name in ("one", "two"))
    assert shared.keys() == single.keys()
    assert [name for name in single if single[name] != shared[name]] == []
    assert len(list(path.glob("chunks/*.safetensors"))) == 4
    told = [line for line in said.splitlines() if ": making" in line]
    assert len(told) == len(set(told)) == len(list(path.parents[1].glob("*/*/config.yaml"))), "of every stage, once"


@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize("gain", ["deviation_ratio", "least_squares"])
def test_three_devices_leave_the_fit_of_one(make, gain):
    """Where targets are few numbers, the second of them asks the float network while the first rescales."""
    words = ["goal=fit", "noise.images=14", "correction=rescaled_matched", "correction.links.rescaled.images=9"]
    words += ["force=fit", f"gain@correction.links.rescaled.gain={gain}"]
    folder = make(*words)
    one = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert make(*words, "runtime.devices=3") == folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == one


def test_lightning_tells_nothing_when_devices_are_connected():
    """A process that a function is sent to has the words of libraries left, until that arrives."""
    parcel, level = pickle.dumps(Quiet(print)), logging.getLogger("lightning.fabric").level
    try:
        logging.getLogger("lightning.fabric").setLevel(logging.INFO)
        assert pickle.loads(parcel) == Quiet(print)
        assert not logging.getLogger("lightning.fabric.utilities.rank_zero").isEnabledFor(logging.INFO)
    finally:
        logging.getLogger("lightning.fabric").setLevel(level)


def overflows(fabric):
    if fabric.global_rank == 1:
        raise FloatingPointError("expected finite numbers; raise the bits")


@pytest.mark.usefixtures("imported")
def test_an_error_of_another_device_is_raised_as_what_it_was():
    with pytest.raises(FloatingPointError, match="^expected finite numbers; raise the bits$"):
        Runtime("cpu", False, devices=2).launch(overflows, 2)


def test_every_process_keeps_freed_memory(monkeypatch, tiny):
    """One of several devices, when its function has arrived, and one of several ranks, before it serves."""
    kept, agreed = [], lambda facts: kept.append("agree")
    serving = SimpleNamespace(is_first=False, agree=agreed, serve=lambda: kept.append("serve"))
    for module in (runtime, command):
        monkeypatch.setattr(module, "keep_freed_memory", lambda module=module: kept.append(module))
    pickle.loads(pickle.dumps(Quiet(print)))
    monkeypatch.setattr(command.Ranks, "found", lambda _: serving)
    command.run(experiment(*tiny))
    assert kept == [runtime, command, "agree", "serve"]


def test_devices_are_counted(make):
    with pytest.raises(ValueError, match=r"runtime\.devices to be greater than 0"):
        make("goal=trajectories", "runtime.devices=0")


OFFLOADED = Runtime("cpu", False, offload="block")
ASKED_ALONE = [["bitwidth=budget"], ["rounding=gptq"], ["activation_scales=lsq"], ["layers.images=2"]]
ASKED_ALONE += [["goal=sensitivity", "bitwidth=budget"]]


@pytest.mark.parametrize("words", ASKED_ALONE, ids=" ".join)
def test_what_asks_layers_outside_their_blocks_is_refused_on_an_accelerator(words, tiny):
    cfg, goal, accelerated = experiment(*tiny, *words), STAGES.get, Workshop(OFFLOADED, torch.device("meta"))
    model = Workshop(OFFLOADED).model(cfg)
    with pytest.raises(ValueError, match=rf"on meta, got {words[0].split('=')[0]}.*; set runtime.offload=none"):
        check_offload(cfg, model, goal(cfg.goal, Evaluate), accelerated)
    check_offload(cfg, model, goal(cfg.goal, Evaluate), Workshop(OFFLOADED))
    check_offload(experiment(*tiny), model, Evaluate, accelerated)


def test_an_offload_needs_blocks_and_its_name(tiny):
    model = GaussianDenoiser((1, 2, 2), 0.0, 1.0)
    with pytest.raises(ValueError, match="which names none; set runtime.offload=none"):
        check_offload(experiment(*tiny), model, Evaluate, Workshop(OFFLOADED))
    with pytest.raises(ValueError, match="runtime.offload none or block, got 'blocks'"):
        Runtime("cpu", False, offload="blocks")


def test_a_build_for_an_accelerator_on_a_machine_without_one_runs_on_the_processor(monkeypatch):
    """torch names the accelerator that it was built for, unless asked what there is."""

    def built_for(check_available=False):
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", built_for)
    assert Runtime("auto", False).device_type == "cpu"
    with pytest.raises(ValueError, match="found none for runtime.accelerator=gpu"):
        Runtime("gpu", False)


def test_a_device_without_float64_is_left_for_the_processor(monkeypatch):
    """As on Apple's processors, whose accelerator torch sees."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
    used = []
    runtime = Runtime("auto", False)
    runtime.launch(lambda fabric: used.append(fabric.device.type), 1)
    assert used == [runtime.device.type] == ["cpu"]
    with pytest.raises(ValueError, match="found none for runtime.accelerator=gpu"):
        Runtime("gpu", False)
