"""What cannot fit a machine is refused with the estimate, before anything is computed."""

import pytest
import torch
from omegaconf import OmegaConf

from ptq_diffusion.command.check.bounds import LONGEST, Drawn, Room, in_units, needs, require_room, require_trainable
from ptq_diffusion.command.check.preflight import check
from ptq_diffusion.command.experiment import goal_of
from ptq_diffusion.engine.chunks import Chunk
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import DiffusersDenoiser
from tests.experiments import composed
from tests.words import quick

CPU = torch.device("cpu")
PLENTY = Room(2**60, 2**60, 2**60)


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


REPORT = ("images", "noise", "calibration", "layers")


def needed(model, *words, steps=20, features=256, used=REPORT):
    cfg = composed("correction=none", *words)
    return needs(cfg, model, Drawn.of(cfg, used, construct(cfg.correction)), steps, features, CPU)


def test_what_is_needed_grows_with_the_options_that_are_named(model):
    least = needed(model, "images=10", "seeds=[0]")
    assert needed(model, "images=20", "seeds=[0]").disk.size > least.disk.size
    assert needed(model, "images=10", "seeds=[0,1]").memory.size > least.memory.size
    assert needed(model, "images=10", "seeds=[0]", "micro_batch=128").device_memory.size > least.device_memory.size
    assert needed(model, "images=10", "seeds=[0]", steps=40).time.size > least.time.size
    assert needed(model, "images=10", "seeds=[0]", features=512).memory.size > least.memory.size
    for option in ("noise.images", "calibration.images", "layers.images"):
        assert needed(model, "images=10", "seeds=[0]", f"{option}=1000").time.size > least.time.size, option
    few, many = (needed(model, "correction=auto", f"trial.images={images}") for images in (10, 20))
    assert many.disk.size > few.disk.size and many.memory.size > few.memory.size and many.time.size > few.time.size


def test_a_goal_needs_what_it_draws(model):
    words = "images=1000000", "noise.images=2000"
    fitted, noised = needed(model, *words, used=("noise",)), needed(model, "noise.images=2000", used=("noise",))
    assert fitted == noised and fitted.disk.remedy(0) == "lower noise.images and sampler.steps"
    everything = "lower images, seeds, noise.images, calibration.images and sampler.steps"
    assert needed(model, *words).disk.remedy(0) == everything
    assert needed(model, used=("calibration",)).time.remedy(0) == "lower calibration.images and sampler.steps"


def test_a_remedy_names_the_options_of_which_one_alone_makes_room(model):
    """Half as much is left by fewer steps as well, of which there are 20; a hundredth only by what most of it is of."""
    large = needed(model, "images=10", "seeds=[0]", "layers.images=1000000")
    for amount in (large.disk, large.time):
        assert amount.remedy(0.5 * amount.size) == "lower layers.images or sampler.steps"
        assert amount.remedy(0.01 * amount.size) == "lower layers.images"
    both = needed(model, "images=1000000", "seeds=[0]", "noise.images=1000000").time
    assert both.remedy(0.5 * both.size) == "lower images, seeds or sampler.steps"
    assert both.remedy(0.01 * both.size) == "lower images, seeds, noise.images, calibration.images and sampler.steps"


def test_it_is_a_bound_from_below(model):
    """One image of three variants is 3 x 3 x 8 x 8 bytes; the weights alone are in memory for a forward."""
    least = needed(model, "images=1", "seeds=[0]", "noise.images=1", "calibration.images=1", steps=1)
    with pytest.raises(ValueError, match="all numbers are at their least: take a larger machine"):
        require_room(least, Room(2**60, 2**60, 2**4))
    assert least.disk.size == 3 * 192 + 4 * 192 * 2
    weights = 4 * sum(parameter.numel() for parameter in model.network.parameters())
    assert weights < least.device_memory.size < weights + 64 * 4 * 64 * 64


@pytest.mark.parametrize(
    ("words", "room", "message"),
    [
        (["images=1000000"], Room(2**60, 2**60, 2**20), "1.0 MiB of room on the disk .* [0-9.]+ GiB; lower images"),
        (["images=1000000"], Room(2**60, 2**20, 2**60), "1.0 MiB of memory, .* lower images"),
        (["micro_batch=1000000"], Room(2**20, 2**60, 2**60), "memory of the device, .* lower micro_batch"),
        (["images=1000000000000"], PLENTY, f"at most {LONGEST // 86400} days, got .* lower images"),
    ],
    ids=["disk", "memory", "device", "time"],
)
def test_what_has_no_room_is_refused_with_both_amounts(model, words, room, message):
    with pytest.raises(ValueError, match=message):
        require_room(needed(model, *words), room)
    require_room(needed(model, "images=16"), PLENTY)


def test_the_limit_itself_fits(model):
    least = needed(model)
    exact = Room(least.device_memory.size, least.memory.size, least.disk.size)
    require_room(least, exact)
    with pytest.raises(ValueError, match="memory"):
        require_room(least, Room(exact.device_memory - 1, exact.memory, exact.disk))


def test_a_network_without_its_memory_is_known_to_be_too_large():
    with torch.device("meta"):
        network = torch.nn.Linear(10**6, 10**6)
    with pytest.raises(ValueError, match="take 14.6 TiB; lower the widths"):
        require_trainable(network, Room(2**40, 0, 0))
    require_trainable(torch.nn.Linear(2, 2), Room(96, 0, 0))


def test_amounts_are_readable():
    assert [in_units(size) for size in (0, 1536, 2**40, 2**70)] == [
        "0.0 bytes",
        "1.5 KiB",
        "1.0 TiB",
        "1,048,576.0 PiB",
    ]


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["images=100000000000"], "lower images"),
        (["micro_batch=100000000000"], "lower micro_batch"),
        (["goal=quantize", "calibration.images=1000000000000"], "lower calibration.images"),
        (
            ["calibration.images=1000000000000", "calibration_set=ndtc", "step_groups@quantizer.steps=equal"],
            "lower calibration.images$",
        ),
        (["goal=fit", "noise.images=1000000000000"], "lower noise.images"),
        (["goal=layers", "layers.images=1000000000"], "lower layers.images$"),
        (["layers.images=1000000000"], "lower layers.images$"),
        (["correction=auto", "goal=fit", "trial.images=1000000000000"], "lower .*trial.images"),
        (["feature=pixels", "feature.extractor.size=100000"], "lower .*feature.extractor"),
        (["model._target_=diffusers.UNet2DModel"], "model to be a Denoiser, got UNet2DModel"),
        (["+correction._partial_=true"], "correction to be a Requirements, got PTQD"),
        (["quantizer.weight._partial_=false"], "takes more arguments"),
        (["quantizer.activation.range_search._target_=ptq_diffusion.sampler.DDPM"], "options of|RangeSearch"),
        (["judging.replicates=1000000000"], "judging.replicates to be less"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_it_is_refused_before_anything_is_made(make, tmp_path, words, remedy):
    with pytest.raises(ValueError, match=remedy):
        make(*words)
    assert not list(tmp_path.glob("outputs/store/*/*"))


@pytest.mark.parametrize(
    "words",
    [
        ["goal=layers", "layers.images=1000000000"],
        [
            "goal=sensitivity",
            "bitwidth=budget",
            "bitwidth.saving=12",
            "sensitivity.images=1000000000",
            "noise.images=1000000000",
        ],
        ["correction=auto", "trial.images=1000000000", "noise.images=1000000000"],
        ["images=1000000000", "drift.images=1000000000", "layers.images=1000000000", "calibration.images=1000000000"],
    ],
    ids=" ".join,
)
def test_no_work_is_listed_before_there_is_room_for_it(tiny, monkeypatch, words):
    """However many images somebody asks for, on a machine that could hold them."""
    cfg = composed(*quick([*tiny, *words]))
    monkeypatch.setattr(Chunk, "__init__", lambda *_: pytest.fail("a chunk is listed"))
    check(cfg, goal_of(cfg), Workshop(Runtime("cpu", False)), Room.unlimited())


@pytest.mark.parametrize("judge", [[1], {}, None, 3])
def test_an_object_that_is_no_object_is_refused(judge):
    """Hydra itself merges no list into a map; a configuration that somebody wrote may hold one."""
    none = {"_target_": "ptq_diffusion.correction.NoCorrection"}
    node = {"_target_": "ptq_diffusion.correction.Auto", "candidates": {"none": none}, "images": 2, "seed": 0}
    with pytest.raises(ValueError, match="judge of Auto to name a class"):
        construct(OmegaConf.create(node | {"judge": judge}))


def test_an_error_of_memory_that_says_nothing_says_how_much_was_asked_for(make, monkeypatch):
    def obtain(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("ptq_diffusion.engine.store.Store.obtain", obtain)
    with pytest.raises(MemoryError, match=r"asks for [0-9.]+ [KM]iB at least"):
        make()
