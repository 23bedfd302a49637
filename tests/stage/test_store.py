"""The store: a stage sees what it declares, and a signature is a function of what made the artefact."""

import pytest
from omegaconf import OmegaConf

from ptq_diffusion.stage.factory import construct
from ptq_diffusion.stage.runtime import Runtime
from ptq_diffusion.stage.store import Stage, Store, select


class Digits(Stage):
    """Writes its number."""

    name = "digits"
    version = 1
    uses = ("a.number",)

    def make(self, cfg, inputs, out, runtime):
        (out / "number").write_text(str(cfg.a.number))


class Doubled(Stage):
    """Needs digits."""

    name = "doubled"
    version = 1
    needs = (Digits,)
    uses = ("factor",)

    def make(self, cfg, inputs, out, runtime):
        if "a" in cfg:
            raise AssertionError("a stage sees what it did not declare")
        (out / "number").write_text(str(cfg.factor * int((inputs["digits"] / "number").read_text())))


class Failing(Stage):
    """Fails half-way."""

    name = "failing"
    version = 1
    uses = ()

    def make(self, cfg, inputs, out, runtime):
        (out / "half").write_text("")
        raise OSError("no space left on device")


BEHIND_OURS = ["ptq_diffusion.stage.checkpoint.torch.load", "ptq_diffusion.stage.checkpoint.shutil.rmtree"]
CFG = OmegaConf.create({"a": {"number": 4, "other": 1}, "factor": 2, "seeds": [1]})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, Runtime("cpu", False))


def changed(key, value):
    cfg = CFG.copy()
    OmegaConf.update(cfg, key, value)
    return cfg


def test_an_artefact_is_made_of_its_needs(store):
    assert (store.obtain(Doubled, CFG) / "number").read_text() == "8"


def test_a_signature_follows_what_is_declared_and_nothing_else(store):
    own = store.signature(Doubled, CFG)
    assert store.signature(Doubled, changed("a.other", 9)) == own
    assert store.signature(Doubled, changed("factor", 3)) != own
    assert store.signature(Doubled, changed("a.number", 5)) != own, "a need's signature is part of its own"
    assert store.signature(Digits, changed("factor", 3)) == store.signature(Digits, CFG)


def test_a_failed_stage_leaves_no_artefact(store, tmp_path):
    with pytest.raises(OSError, match="no space"):
        store.obtain(Failing, CFG)
    assert not [path for path in tmp_path.glob("failing/*") if path.is_dir() and path.suffix != ".partial"]


def test_forget_removes_one_artefact(store, tmp_path):
    store.obtain(Doubled, CFG)
    store.forget(Doubled, CFG)
    assert not [path for path in tmp_path.glob("doubled/*") if path.is_dir()]
    assert [path for path in tmp_path.glob("digits/*") if path.is_dir()]


def test_selecting_a_missing_key_names_it():
    with pytest.raises(ValueError, match="nothing"):
        select(CFG, ("nothing",))


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "torch.load", "subprocess.run", *BEHIND_OURS])
def test_a_configuration_constructs_nothing_outside_the_allowlist(target):
    with pytest.raises(ValueError, match="_target_"):
        construct(OmegaConf.create({"inner": {"_target_": target}, "_target_": "ptq_diffusion.sampler.DDIM"}))
