"""The name of a run says what it is: its choices, and the options in which it differs from them."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from ptq_diffusion.command.conf import CONF
from ptq_diffusion.command.option_words import differences, quoted_for_hydra, word_of_choice, words_of_options

FROM = ("experiment", "recipe", "model")
"""Groups whose files choose those of other groups, each also those of the ones behind it."""
LONGEST = 140
"""Letters of a name."""
HYDRA_REFERENCE = re.compile(r"\$\{hydra:([^{}]+)\}")
"""A reference to what Hydra knows of a composition, such as the names of the choices."""
HYDRA_PROVIDERS = ("hydra", "schema")
"""Providers of configurations beside those of the package and of the user."""
INNER = ("bitwidth.inner.weight", "bitwidth.inner.activation")
"""The bits that a name tells in the word of its policy."""
Composed = Callable[[tuple[str, ...]], tuple[Mapping[str, Any], Mapping[str, str]]]
"""From choices to the options that follow from them, and the choices of all groups."""


def named(cfg: DictConfig) -> DictConfig:
    """A copy of a configuration that Hydra composed, whose name tells it from others of the same choices.

    `sampler.steps=4 seeds=[3,4]` make cifar10_ddpm-w4a8-auto-steps4-seeds3_4 of cifar10_ddpm-w4a8-auto, and
    `bitwidth.inner.weight=3` cifar10_ddpm-w3a8-auto. A name holds each word once and at most 140 letters; the words
    without room are counted at its end. A configuration that Hydra composed from another main file, such as that of an
    earlier run, keeps its name.
    """
    composition = Composition.current()
    if composition is None:
        return cfg
    copy = cfg.copy()
    with open_dict(copy):
        copy.name = composition.name(cfg, _without_hydra(cfg))
    return copy


def named_without_hydra(cfg: DictConfig) -> DictConfig:
    """A configuration that Hydra's `compose` returned with its own part, without that part, and named as by `named`.

    What refers to Hydra's part is replaced by its value.
    """
    options = _without_hydra(cfg)
    plain = OmegaConf.create(_replaced(options, cfg.hydra))
    if composition := Composition.of(cfg.hydra):
        plain.name = composition.name(plain, options)
    OmegaConf.set_struct(plain, True)
    return plain


@dataclass(frozen=True)
class Composition:
    """The words that chose the files of a job.

    Args:
        choices: each GROUP=NAME, as it was written.
        folders: where files of groups lie beside the package's own.
    """

    choices: tuple[str, ...]
    folders: tuple[str, ...]

    @classmethod
    def current(cls) -> "Composition | None":
        """The composition of Hydra's current job; None without a job, or where its main file is not the package's."""
        return cls.of(HydraConfig.get()) if HydraConfig.initialized() else None

    @classmethod
    def of(cls, hydra: DictConfig | HydraConf) -> "Composition | None":
        """The composition that Hydra's own part of a configuration tells of; None of another main file."""
        paths = [
            source.path if source.schema == "file" else f"{source.schema}://{source.path}"
            for source in hydra.runtime.config_sources
            if source.provider not in HYDRA_PROVIDERS
        ]
        if hydra.job.config_name != "config" or str(CONF) not in paths:
            return None
        # As they were written: a word may refer to what is known within its own composition alone.
        words = cast(list[str], OmegaConf.to_container(hydra.overrides.task, resolve=False))
        keys = {key for key in hydra.runtime.choices if not key.startswith("hydra")}
        choices = [word for word in words if _key(word) in keys and not _key(word).startswith("logger")]
        return cls(tuple(choices), tuple(path for path in paths if path != str(CONF)))

    def name(self, cfg: DictConfig, options: Mapping[str, Any]) -> str:
        """The name of a configuration with the words that it lacks.

        Args:
            cfg: what was composed.
            options: the same without Hydra's part, interpolations as they are written.
        """
        start, slash, last = str(cfg.name).rpartition("/")
        # Each composition once; the files of other folders may change from name to name.
        composed = cache(partial(_composed, folders=self.folders)) if self.folders else _composed_of_package
        changed = dict(differences(composed(self.choices)[0], options))
        words, choices = last.split("-"), self._words_of_choices(composed)
        if any(key in changed for key in INNER):
            # The name of the policy's file would tell other bits than the run has.
            label, bits = str(cfg.labels.bitwidth), "w{weight}a{activation}".format(**options["bitwidth"]["inner"])
            words = [bits if word == label else word for word in words]
            choices = [bits, *(word for word in choices if word != label)]
            changed = {key: value for key, value in changed.items() if key not in INNER}
        return f"{start}{slash}{_joined(words, [*choices, *words_of_options(changed, options)])}"

    def _words_of_choices(self, composed: Composed) -> list[str]:
        """A word for each choice that is not the one which the model and the experiment make."""
        usual: dict[str, str] = {}
        for count in range(len(FROM) + 1):
            first = tuple(word for word in self.choices if _key(word) in FROM[:count])
            usual = dict(composed(first)[1]) | {key: usual[key] for key in FROM[:count] if key in usual}
        pairs = [(_key(word), word.partition("=")[2]) for word in self.choices if not word.startswith("~")]
        return [word for key, choice in pairs if usual.get(key) != choice and (word := word_of_choice(key, choice))]


def _key(word: str) -> str:
    """The group or option, with its package, that a word of a command line is about."""
    return word.partition("=")[0].lstrip("+~")


def _composed(choices: tuple[str, ...], folders: tuple[str, ...]) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """The options that follow from choices alone, interpolations as they are written, and the choices of all groups."""
    beside = [f"hydra.searchpath=[{','.join(map(quoted_for_hydra, folders))}]"] if folders else []
    with _beside_the_job(), initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*choices, *beside], return_hydra_config=True)
    return _without_hydra(cfg), dict(cfg.hydra.runtime.choices)


_composed_of_package = cache(partial(_composed, folders=()))


@contextmanager
def _beside_the_job() -> Iterator[None]:
    """Sets Hydra's own state of the running job aside, within which it composes nothing else."""
    hydra, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        yield
    finally:
        # Hydra's own context leaves another instance behind.
        GlobalHydra.instance().hydra = hydra


def _without_hydra(cfg: DictConfig) -> dict[str, Any]:
    """The options of a configuration without Hydra's own part, interpolations as they are written."""
    options = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items() if key != "hydra"}


def _replaced(node: Any, known: DictConfig) -> Any:  # noqa: ANN401
    """Parts of a configuration with values in place of references to what Hydra knows."""
    if isinstance(node, dict):
        return {key: _replaced(value, known) for key, value in node.items()}
    if isinstance(node, list):
        return [_replaced(value, known) for value in node]
    if not isinstance(node, str):
        return node
    if whole := HYDRA_REFERENCE.fullmatch(node):
        return OmegaConf.select(known, whole[1], throw_on_missing=True)
    return HYDRA_REFERENCE.sub(lambda match: str(OmegaConf.select(known, match[1], throw_on_missing=True)), node)


def _joined(words: Sequence[str], more: Sequence[str]) -> str:
    """The words of a name and those that it lacks, as far as there is room."""
    name, lacking = "-".join(words), [word for word in dict.fromkeys(more) if word not in words]
    for place, word in enumerate(lacking):
        if len(name) + 1 + len(word) > LONGEST:
            return f"{name}-and{len(lacking) - place}more"
        name = f"{name}-{word}"
    return name
