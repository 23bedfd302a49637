"""The name of a run says what it is."""

import re

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import ptq_diffusion as pd
from ptq_diffusion.command.run_name import LONGEST, named
from tests.experiments import composed

NAMES = {
    "cifar10_ddpm-w4a8-auto": [
        "sampler.eta=1",
        "bitwidth=w4a8",
        "logger=none",
        "runtime.progress=false",
        "~metric.kid",
    ],
    "cifar10_ddpm-w3a6-auto": ["bitwidth.inner={weight:3,activation:6}"],
    "cifar10_ddpm-w3a4-auto": ["bitwidth=w4a4", "bitwidth.inner.weight=3"],
    "cifar10_ddpm-w4a8-auto-steps4-eta0-seeds3_5": ["sampler.steps=4", "sampler.eta=0.0", "seeds=[3,5]"],
    "cifar10_ddpm-w4a8-auto-images512-seeds0to5": ["seeds=[0,1,2,3,4,5]", "images=512"],
    "diffusers-w4a8-auto-church_256": ["model=diffusers", "model.path=/some/where/church-256/"],
    "demo-fashion_ddpm": ["experiment=demo", "model=fashion_ddpm"],
    "frontier/cifar10_ddpm-budget-ptqd-eta0-saving36": [
        *("experiment=frontier", "bitwidth=budget", "bitwidth.saving=36", "correction=ptqd", "sampler.eta=0")
    ],
    "cifar10_ddpm-w4a8-auto-ddpm-weight_affine_per_tensor-noise_images64": [
        *("sampler=ddpm", "quantizer@quantizer.weight=affine_per_tensor", "noise.images=64")
    ],
    "cifar10_ddpm-w4a8-ptqd-recipe_ptqd": ["recipe=ptqd", "correction=ptqd"],
    "cifar10_ddpm-w4a8-none-recipe_ptqd-rounding_nearest-calibration_images8": [
        *("recipe=ptqd", "correction=none", "rounding=nearest", "calibration.images=8")
    ],
    "cifar10_ddpm-w4a8-auto-calibration_set_ndtc-states_per_image2": [
        *("calibration_set=ndtc", "calibration_set.states_per_image=2")
    ],
    "cifar10_ddpm-w4a8-auto-tac-no_matched": [
        *("+correction@correction.candidates.tac=tac", "~correction.candidates.matched")
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_it_tells_the_options_that_differ_from_the_choices(name):
    cfg = named(composed(*NAMES[name]))
    assert cfg.name == name
    assert named(cfg).name == name, "once is enough"
    assert pd.compose(*NAMES[name]).name == name, "the same words in Python"


def test_it_stays_short_and_safe_whatever_the_options():
    path, patterns = "/a b/c:d*é", '[{name:"*.conv",weight:32,activation:32}]'
    wild = composed(
        f"model.path='{path}'", f"bitwidth.patterns={patterns}", f"seeds={list(range(0, 90, 3))}".replace(" ", "")
    )
    assert re.fullmatch(r"[A-Za-z0-9._-]+", named(wild).name)
    many = [
        f"{part}.{key}={value}"
        for part in ("calibration", "noise", "trial")
        for key, value in (("images", 123456), ("seed", 987654))
    ]
    name = named(
        composed(*many, "micro_batch=7", "judging.replicates=123", "judging.seed=456", "sampler.eta=0.125")
    ).name
    assert len(name) <= LONGEST + len("-and9more") and re.search(r"-and\d+more$", name) and "eta0.125" in name


def test_a_configuration_of_another_main_file_keeps_its_name(monkeypatch):
    monkeypatch.setattr("ptq_diffusion.command.run_name.HydraConfig.initialized", lambda: False)
    cfg = OmegaConf.create({"name": "mine"})
    assert named(cfg) is cfg


def test_python_names_runs_of_any_folder_and_of_words_with_references(tmp_path, monkeypatch):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # As outside of any job
    assert pd.compose("name=first/${labels.correction}", "correction=ptqd").name == "first/ptqd"
    assert pd.compose("~metric@metric.fid", "+metric@metric.fid=kid").name == "cifar10_ddpm-w4a8-auto"
    folder = tmp_path / "a b,ü(c)"
    (folder / "correction").mkdir(parents=True)
    for last_line in ("", "variance: fixed\n"):
        text = f"# Mine:  correction=mine\ndefaults:\n  - ptqd\n  - _self_\n{last_line}"
        (folder / "correction" / "mine.yaml").write_text(text)
        cfg = pd.compose(f"hydra.searchpath=['{folder}']", "correction=mine", "sampler.steps=4")
        assert cfg.name == "cifar10_ddpm-w4a8-mine-steps4", "a file that changed is read anew"
