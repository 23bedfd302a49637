"""Every option of every group says what it is and how to choose it, and those words choose it."""

import contextlib
import re
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from rich.console import Console

from ptq_diffusion.command.options import options_of, options_without_group, print_options
from ptq_diffusion.command.refusal import refusal
from ptq_diffusion.main import CONF, command

GROUPS = sorted({path.parent.name for path in CONF.glob("*/*.yaml")})
OPTIONS = [(group, option) for group in GROUPS for option in options_of(CONF / group)]


def printed(*words):
    console = Console(width=200)
    with console.capture() as capture:
        print_options(words, CONF, console)
    return capture.get()


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda part: getattr(part, "name", part))
def test_the_words_of_an_option_choose_it(group, option):
    words = [word for word in option.command.split() if word not in ("ptq-diffusion", "-m")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        choices = compose("config", words, return_hydra_config=True).hydra.runtime.choices
    assert option.name in {name for place, name in choices.items() if place.partition("@")[0] == group}


@pytest.mark.parametrize("words", [(), ("correction",), ("sampler", "bitwidth")], ids=str)
def test_the_options_of_the_groups_that_are_named_are_printed_or_of_all(words):
    text = printed(*words)
    for group, option in OPTIONS:
        expected = not words or group in words
        assert (re.search(f"^{re.escape(option.command)} *$", text, re.MULTILINE) is not None) == expected, option


def test_a_choice_is_printed_with_its_options_and_no_other_choice():
    text = printed("bitwidth=budget")
    assert "bitwidth=budget" in text and "saving: 30" in text and "bitwidth=w4a8" not in text
    assert "# Exceptions by name" in printed("bitwidth=w4a4"), "inherited from w4a8"
    assert printed("+equalisation@quantizer.equalisation=smoothquant").endswith("alpha: 0.5\n")
    for word, remedy in (("bitwidth=budgt", "budget"), ("bitwidh=budget", "bitwidth"), ("bitwidth=", "lists all")):
        with pytest.raises(ValueError, match=f"expected .*{remedy}"):
            printed(word)


def test_every_file_is_printed_line_by_line():
    for group, option in OPTIONS:
        lines = (CONF / group / f"{option.name}.yaml").read_text().replace("# @package _global_\n", "").splitlines()
        lines.remove(f"# {option.what}:  {option.command}")
        shown = printed(f"{group}={option.name}")
        assert [line for line in lines if line not in shown] == []


PARTS = options_without_group(CONF / "config.yaml")


def test_every_option_outside_of_groups_is_explained_and_its_words_set_it():
    named = {option.name: option for options in PARTS.values() for option in options}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"{word}" for option in named.values() if "$" not in (word := option.command)])
    plain = OmegaConf.to_container(cfg, resolve=False)
    own = [key for key in OmegaConf.load(CONF / "config.yaml") if key not in ("defaults", "hydra", "labels")]
    parts = {key: list(plain[key]) if isinstance(plain[key], dict) else [""] for key in own}
    names = {f"{key}.{part}".rstrip(".") for key in own for part in parts[key]}
    assert set(named) == names and all(len(option.what) > 10 for option in named.values())
    text = printed("runtime", "images")
    assert "runtime.accelerator=auto" in text and "images=1024" in text and "judging.seed" not in text


@pytest.mark.parametrize("words", [["options", "--help"], ["doctor", "-h"]])
def test_a_command_explains_itself(words, capsys):
    with contextlib.suppress(SystemExit):
        command(words)
    said = capsys.readouterr().out
    assert said.startswith(f"usage: ptq-diffusion {words[0]} ") and max(map(len, said.splitlines())) <= 80


def test_no_command_loads_torch_to_explain_itself():
    code = (
        "import sys\nfrom ptq_diffusion.main import command\n"
        "for name in 'collect convert doctor layers options plan store'.split():\n"
        "    try:\n        command([name, '--help'])\n    except SystemExit:\n        pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and ended.stdout.count("usage: ptq-diffusion") == 7


def test_a_reader_that_leaves_is_no_error():
    ended = subprocess.run(
        f"{sys.executable} -m ptq_diffusion --help | head -n 1; echo ${{PIPESTATUS[0]}}",
        **{"shell": True, "executable": "/bin/bash", "capture_output": True, "text": True, "check": True},
    )
    assert ended.stderr == "" and ended.stdout.splitlines()[-1] == "0"


def test_a_group_that_is_not_there_is_refused_with_the_closest():
    with pytest.raises(
        ValueError,
        match=r"expected a group, a choice of one as GROUP=NAME or a part, got 'corection'; "
        "the closest are correction, condition, calibration",
    ):
        command(["options", "corection"])


def test_an_option_of_swept_choices_alone_is_told_how_to_be_swept():
    words = ("bitwidth=budget,greedy", "bitwidth.saving=40")
    error = ConfigCompositionException("Could not override 'bitwidth.saving'.")
    assert refusal(error, words, CONF).endswith("write bitwidth.saving=choice(VALUE)")
    assert "choice" not in refusal(error, ("bitwidth=w4a8", "bitwidth.saving=40"), CONF)


def test_a_file_that_does_not_say_what_it_is_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with pytest.raises(ValueError, match=r"in .*mine\.yaml"):
        list(options_of(tmp_path))
