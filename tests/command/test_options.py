"""Every option of every group says what it is and how to choose it, and those words choose it."""

import re

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from ptq_diffusion.command.options import options_of, print_options
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


def test_a_group_that_is_not_there_is_refused_with_the_closest():
    with pytest.raises(ValueError, match=r"expected a group, got 'corection'; the closest is correction"):
        command(["options", "corection"])


def test_a_file_that_does_not_say_what_it_is_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with pytest.raises(ValueError, match=r"in .*mine\.yaml"):
        list(options_of(tmp_path))
