"""Shortcuts past what libraries do again for each of thousands of tests, and none of them looks at.

A composition of Hydra's reads forty files, whose texts are parsed once here, and makes a map of all choices for each; a
command line is composed once more to see whether it asks for a mode. What files of the same choices say together is
merged once, and Hydra examines its own lists of what it builds once, in place of once for each object.
Every experiment counts the multiply-accumulates of its network, which has one of few architectures.
Drawing its figures takes a third of a tiny experiment, and waiting for the disk a twentieth.
"""

import copy
import io
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import omegaconf
import pytest
import torch
from hydra._internal import defaults_list, target_policy
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from ptq_diffusion.command.check.composition import TYPED
from ptq_diffusion.command.conf import CONF
from ptq_diffusion.model import diffusers_denoiser
from ptq_diffusion.model.macs import count_macs

OWN = {("pkg", "hydra.conf"), ("file", str(CONF)), ("structured", "")}
"""Where a composition of the package's own files finds them, which no test changes."""


def parsed_once(load):
    """A function as `OmegaConf.load`, which remembers what texts hold, and not what they fail with."""
    known = {}

    def read(file):
        text = Path(file).read_text(encoding="utf-8") if isinstance(file, str | Path) else file.read()
        if text not in known:
            if not isinstance(file, str | Path):
                file.seek(0)
            known[text] = OmegaConf.to_container(load(file), resolve=False)
        return OmegaConf.create(known[text])

    return read


def made_where_used(interpolation_map):
    """A function as Hydra's, which makes its map for those lists of defaults only that have an interpolation."""

    def made(overrides, defaults, self_added):
        used = any(default.is_interpolation() for default in defaults if not default.is_self())
        return interpolation_map(overrides, defaults, self_added) if used else OmegaConf.create({})

    return made


def mode_where_asked(get_mode):
    """A method as Hydra's, which composes only where other files than the package's, or words, may ask for a mode."""

    def mode(hydra, config_name, overrides):
        places = hydra.config_loader.get_search_path().get_path()
        ours = {place.path.removeprefix("file://") for place in places if place.provider in TYPED} == {str(CONF)}
        return None if ours and "hydra" not in " ".join(overrides) else get_mode(hydra, config_name, overrides)

    return mode


def of_package_alone(repo):
    """Whether a composition finds its files in `OWN`."""
    return {(source.scheme(), source.path) for source in repo.get_sources()} == OWN


def listed_once(create):
    """A function as Hydra's, which remembers the files that the same choices lead to in the package's own folder."""
    known = {}

    def listed(repo, config_name, overrides, prepend_hydra, skip_missing):
        if not of_package_alone(repo):
            return create(repo, config_name, overrides, prepend_hydra, skip_missing)
        appended = [vars(default) for default in overrides.append_group_defaults]
        chosen = (config_name, prepend_hydra, skip_missing, overrides.override_choices, appended, overrides.deletions)
        if (key := repr(chosen)) not in known:
            files, tree = create(repo, config_name, overrides, prepend_hydra, skip_missing)
            seen = {name: part for name, part in vars(overrides).items() if name != "config_overrides"}
            known[key] = files, tree, copy.deepcopy(seen)
        files, tree, seen = known[key]
        vars(overrides).update(copy.deepcopy(seen))
        return files, tree

    return listed


def merged_once(merge):
    """A method as Hydra's, which remembers what the package's own files say together, of the same choices."""
    known = {}

    def merged(loader, defaults, repo):
        if not of_package_alone(repo):
            return merge(loader, defaults, repo)
        key = tuple((one.config_path, one.parent, one.package, one.is_self, one.primary) for one in defaults)
        if key not in known:
            known[key] = pickle.dumps(merge(loader, defaults, repo))
        return pickle.loads(known[key])  # A tenth of the time that a copy takes

    return merged


def loaded_once(load):
    """A method as Hydra's, which remembers what it made of each of the package's own files at each place."""
    known = {}

    def loaded(loader, default, repo):
        if not of_package_alone(repo):
            return load(loader, default, repo)
        key = (default.config_path, default.package, default.primary)
        if key not in known:
            known[key] = pickle.dumps(load(loader, default, repo))
        return pickle.loads(known[key])

    return loaded


def merged_together(merge):
    """A method as Hydra's, which merges all files by one call; one for each walks through what is there each time."""

    def merged(loader, defaults, repo):
        cfg = OmegaConf.create()
        try:
            with flag_override(cfg, "no_deepcopy_set_nodes", True):
                cfg.merge_with(*(loader._load_single_config(default, repo).config for default in defaults))
        except OmegaConfBaseException:
            return merge(loader, defaults, repo)  # Which names the file
        together = SimpleNamespace(_load_single_config=lambda default, repo: SimpleNamespace(config=cfg))
        return merge(together, defaults[:1], repo)

    return merged


def read_once(load):
    """A method as Hydra's, which remembers what each of the package's own files holds, its defaults beside it."""
    known = {}

    def read(repo, config_path):
        if not of_package_alone(repo):
            return load(repo, config_path)
        if config_path not in known:
            known[config_path] = pickle.dumps(load(repo, config_path))
        return pickle.loads(known[config_path])

    return read


def copied_whole(copied):
    """A method as OmegaConf's, which copies a configuration through its bytes, in less time."""

    def copy_of(cfg, memo):
        if memo:
            return copied(cfg, memo)
        # A copy keeps the configuration that the original lies in, which is not copied.
        parent, cfg.__dict__["_parent"] = cfg.__dict__["_parent"], None
        try:
            copy = pickle.loads(pickle.dumps(cfg))
        except (pickle.PicklingError, AttributeError, TypeError):  # Of objects in it
            copy = None
        finally:
            cfg.__dict__["_parent"] = parent
        if copy is None:
            return copied(cfg, memo)
        copy.__dict__["_parent"] = parent
        return copy

    return copy_of


def understood_once(parse):
    """A function as OmegaConf's, which remembers the trees of texts with interpolations; nothing changes a tree."""
    known = {}

    def understood(*text):
        if text not in known:
            known[text] = parse(*text)
        return known[text]

    return understood


def word_understood_once(parse):
    """A method as Hydra's, which remembers what it understood of each word of a command line."""
    known = {}

    def understood(parser, text, rule):
        if (text, rule) not in known:
            made = parse(parser, text, rule)
            try:
                known[text, rule] = pickle.dumps(made)
            except (pickle.PicklingError, AttributeError, TypeError):  # Of functions in it
                return made
        return pickle.loads(known[text, rule])

    return understood


def digested_once(digest):
    """A function as Hydra's, which remembers digests of the same lists."""
    known = {}

    def digested(policy):
        key = tuple(part for name, part in policy._asdict().items() if name != "protected_objects")
        if key not in known:
            known[key] = digest(policy)
        return known[key]

    return digested


def counted_once(count):
    """A function as `count_macs` of a denoiser, which remembers networks of one configuration, asked the same."""
    known = {}

    def counted(network, forward, attentions):
        denoiser = forward.__self__
        blank = denoiser.blank_condition(1, torch.device("meta"))
        told = {} if blank is None else {name: tuple(tensor.shape) for name, tensor in blank.tensors().items()}
        configuration = json.dumps(dict(network.config), sort_keys=True, default=str)
        key = (type(network), configuration, tuple(denoiser.shape), tuple(attentions), tuple(sorted(told.items())))
        if key not in known:
            known[key] = count(network, forward, attentions)
        return known[key]

    return counted


defaults_list._create_defaults_list = listed_once(defaults_list._create_defaults_list)
ConfigLoaderImpl._load_single_config = loaded_once(ConfigLoaderImpl._load_single_config)
ConfigLoaderImpl._compose_config_from_defaults_list = merged_once(
    merged_together(ConfigLoaderImpl._compose_config_from_defaults_list)
)
ConfigRepository.load_config = read_once(ConfigRepository.load_config)
ConfigRepository.__deepcopy__ = lambda repo, memo: copy.copy(repo)  # Of which Hydra replaces the list of sources whole
DictConfig.__deepcopy__ = copied_whole(DictConfig.__deepcopy__)
omegaconf.base.parse = understood_once(omegaconf.base.parse)
OverridesParser.parse_rule = word_understood_once(OverridesParser.parse_rule)
os.fsync = os.fstat  # Of a descriptor that is open; no test cuts off the power
target_policy._target_policy_digest = digested_once(target_policy._target_policy_digest)
diffusers_denoiser.count_macs = counted_once(count_macs)
Hydra.get_mode = mode_where_asked(Hydra.get_mode)
defaults_list._create_interpolation_map = made_where_used(defaults_list._create_interpolation_map)
OmegaConf.load = staticmethod(parsed_once(OmegaConf.load))


def blank():
    """A PNG of one pixel."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "png")
    return file.getvalue()


BLANK = blank()


@pytest.fixture
def counted_anew(monkeypatch):
    """Every denoiser counts the multiply-accumulates of its network, as the first of a process does."""
    monkeypatch.setattr(diffusers_denoiser, "count_macs", count_macs)


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Figures are set up, and blank files written in their place, unless a test is marked by `figures`."""
    if request.node.get_closest_marker("figures") is None:
        monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).write_bytes(BLANK))
