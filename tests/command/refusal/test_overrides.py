"""Whatever stands on the command line, it is a run that may begin or an error that its user can mend."""

import sys

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ptq_diffusion.command.overrides import _require_matches
from ptq_diffusion.command.refusal import option_names
from ptq_diffusion.engine.store import Store
from ptq_diffusion.main import CONF, main

GROUPS = ("sampler", "bitwidth", "correction", "feature", "reference", "experiment", "data", "training", "model")
PLACES = (
    "metric@metric.kid",
    "quantizer@quantizer.weight",
    "quantizer@quantizer.activation",
    "range_search@quantizer.weight.range_search",
)
FILES = sorted({path.stem for path in CONF.glob("*/*.yaml")})
SOUND = (
    "images=3",
    "sampler=ddpm",
    "bitwidth=w8a8",
    "correction=none",
    "noise.seed=5",
    "feature=pixels reference=none",
)
ODD = (
    *("", "null", "true", "nan", "inf", "-inf", "1e-9", "0x10", "???", "${name}", "${nothing}", "${oc.env:HOME}"),
    *(
        "[]",
        "[null]",
        "[[1]]",
        "[a,1]",
        "{}",
        "{a: 1}",
        "{weight: 4}",
        "'quoted'",
        '"',
        "a b",
        "1,2",
        "..",
        "os.system",
    ),
    *("ptq_diffusion.sampler.DDPM", "range(3)", "choice(1,2)", "é", "\\", "\t", "[{name: x}]", "{_target_: os.system}"),
)


class ItBegins(BaseException):
    """All checks were passed."""


def values():
    words = st.text("abcXYZ019_.:,=[]{}()$*'\"@ -+~", max_size=8)
    return st.one_of(st.sampled_from(ODD), st.integers(-3, 3000).map(str), st.floats(width=32).map(str), words)


def overrides(names):
    keys = st.sampled_from([*names, *(f"{name}x" for name in names), *(f"{name}.deeper" for name in names)])
    real = st.sampled_from(names)
    sign = st.sampled_from(("", "", "", "+", "++"))
    assigned = st.builds("{}{}={}".format, sign, real | real | keys, values())
    chosen = st.builds("{}={}".format, st.sampled_from(GROUPS + PLACES), st.sampled_from(FILES) | values())
    removed = st.builds("~{}".format, keys)
    garbage = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), max_size=12)
    sound = st.lists(st.sampled_from(SOUND), unique=True).map(lambda words: " ".join(words).split())
    odd = st.lists(assigned | assigned | chosen | removed | garbage.filter(lambda text: text[:1] != "-"), max_size=3)
    return odd | odd | odd | sound


@pytest.fixture
def prepared(tiny, tmp_path, monkeypatch):
    """The command up to the moment where it would begin to compute, in a folder of its own."""

    def begin(self, stage, cfg):
        raise ItBegins

    monkeypatch.setattr(Store, "obtain", begin)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.chdir(tmp_path)
    return tiny


def test_every_command_line_begins_or_is_refused_in_one_message(prepared, composed, capfd):
    cfg = composed()
    names = [
        *option_names(OmegaConf.to_container(cfg)),
        "sampler._target_",
        "feature.extractor._target_",
        "quantizer.weight._partial_",
    ]
    ends = []

    @settings(
        max_examples=50,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(overrides([name for name in names if not name.startswith(("logger", "outputs"))]))
    def begins_or_is_refused(words):
        sys.argv = ["ptq-diffusion", *prepared, *words]
        with pytest.raises((ItBegins, SystemExit)) as stop:
            main()
        ends.append(type(stop.value))
        if isinstance(stop.value, SystemExit):
            assert isinstance(stop.value.code, str), (words, stop.value.code)
            assert stop.value.code.startswith("error: ")
            assert "\n" not in stop.value.code
            assert len(stop.value.code) < 1000

    begins_or_is_refused()
    assert ends.count(ItBegins) > 3
    assert ends.count(SystemExit) > 18


@pytest.mark.parametrize(
    "words", ["--config-dir {}", "--config-dir={}", "-cd {}", "-cd={}", "hydra.searchpath=[{}]", "--config-path {}"]
)
def test_a_pattern_of_own_names_is_taken_in_any_spelling_of_their_folder(words, tmp_path):
    (tmp_path / "bitwidth").mkdir()
    (tmp_path / "bitwidth" / "my_bits.yaml").write_text("defaults: [w4a4]\n")
    pattern = "bitwidth=glob(my_*)"
    _require_matches(["-m", *words.format(tmp_path).split(), pattern])
    with pytest.raises(ValueError, match=r"got bitwidth=glob\(my_\*\), which none fits"):
        _require_matches(["-m", *words.format(tmp_path / "elsewhere").split(), pattern])
