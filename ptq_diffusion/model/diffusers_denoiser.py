"""Networks of diffusers with the scheduler that they were trained with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from ptq_diffusion.artefact.digest import tensors_digest
from ptq_diffusion.model.class_embedder import class_table_shape
from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.denoiser import Denoiser, Output, Timestep
from ptq_diffusion.model.family import Family
from ptq_diffusion.model.folder import find_configurations
from ptq_diffusion.model.loading import (
    component_outline,
    load_folder,
    network_config,
    require_latents,
    scheduler_config,
)
from ptq_diffusion.model.macs import Macs, count_macs, layers_of
from ptq_diffusion.model.site import Kind, Role, Site, product_sites
from ptq_diffusion.model.weights import known_dtype


@dataclass(frozen=True)
class Classes:
    """The classes of a model folder, where it says more of them than the network's configuration.

    Args:
        count: how many it names in model_index.json; the network may have more.
        table: the embeddings that labels stand for, (count + 1, D), of which the last is "no class"; None where the
            network reads labels itself.
    """

    count: int
    table: Tensor | None = None


class DiffusersDenoiser(Denoiser):
    """A network of a diffusers class and its scheduler's configuration. m is the first C channels of its output.

    Where there are C more, they are the variance.

    Args:
        network: of the family's class, or a quantized copy of one; it is not changed.
        family: how networks of its class are called.
        config: the configuration of the network, of which the sites are told.
        scheduler_config: the scheduler's configuration, which is completed by what its pipeline tells a scheduler.
        classes: of the folder, or None.
        dtype: that the network computes in; states, m and everything between networks are float32 in any case.

    Raises:
        ValueError: the family cannot ask such a network, or its classes are of another.
    """

    table: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        family: Family,
        config: Mapping[str, Any],
        scheduler_config: Mapping[str, Any],
        classes: Classes | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self._network, self.family = network, family
        # Private entries say where a configuration came from.
        self.config = {name: value for name, value in config.items() if not name.startswith("_")}
        self.shape = family.shape(config)
        self.scheduler_config = dict(scheduler_config) | dict(family.pipeline_facts(config))
        self._class_count = None if classes is None else classes.count
        self.register_buffer("table", None if classes is None else classes.table)
        self._require_classes()

    @classmethod
    def from_folder(cls, path: str, dtype: str = "float32", mapped: bool = False) -> "DiffusersDenoiser":
        """Load what a diffusers pipeline saved: a network (safetensors only) and a scheduler.

        They are in `unet/` or `transformer/` and in `scheduler/`, or both at the top; `class_embedder/` is read too.

        Args:
            path: the folder, `bundled:NAME`, or the name of a model in the hub's local cache, `org/name`.
            dtype: that the network is computed in, whatever the files': float32, bfloat16 or float16.
            mapped: whether weights of this dtype stay in their files, see `load_component`.

        Raises:
            FileNotFoundError: there is no such folder, or it lacks one of its files.
            ValueError: the pipeline or its network is of no known kind or quantized already, its files are broken or
                do not belong together, or no model of this name is bundled.
        """
        precision = known_dtype(dtype)
        loaded = load_folder(path, precision, mapped)
        count = loaded.classes if loaded.class_table is None else len(loaded.class_table) - 1
        classes = None if count is None else Classes(count, loaded.class_table)
        network = loaded.network.eval().requires_grad_(False)
        return cls(network, loaded.family, dict(network.config), loaded.scheduler_config, classes, precision)

    @classmethod
    def outline(cls, path: str, dtype: str = "float32") -> "DiffusersDenoiser":
        """The denoiser that `from_folder` would load, on the meta device: its shapes, without weights or memory.

        Args:
            path: see `from_folder`; the folder needs no weights.
            dtype: see `from_folder`.

        Raises:
            FileNotFoundError: there is no such folder, or it lacks a configuration.
            ValueError: the pipeline or its network is of no known kind, or configurations are broken or do not belong
                together.
        """
        files = find_configurations(path)
        require_latents(files)
        config, family = network_config(files)
        precision = known_dtype(dtype)
        network = component_outline(files.network, config, family.network_class, family).eval().requires_grad_(False)
        nn.Module.to(network, precision)
        count, table = files.index.classes, None
        if files.class_embedder is not None:
            table = torch.empty(class_table_shape(files.class_embedder), device="meta")
            count = len(table) - 1
        classes = None if count is None else Classes(count, table)
        return cls(network, family, dict(network.config), scheduler_config(files), classes, precision)

    @property
    def network(self) -> nn.Module:
        return self._network

    @property
    def predicts_variance(self) -> bool:
        return self.family.predicts_variance(self.config)

    @property
    def accepts_time_zero(self) -> bool:
        return self.family.accepts_time_zero(self.config)

    @property
    def needs(self) -> Sequence[str]:
        return tuple(self.family.needs(self.config)) if self.table is None else ("labels",)

    @property
    def classes(self) -> int | None:
        return self.family.classes(self.config) if self._class_count is None else self._class_count

    @property
    def null(self) -> Condition | None:
        if self.table is not None:
            return Condition(labels=torch.tensor([len(self.table) - 1]))
        null, rows = self.family.null(self.config), self.family.classes(self.config)
        if null is None and rows is not None and self._class_count == rows - 1:
            # The folder names all classes but the last, which is left for "no class".
            return Condition(labels=torch.tensor([rows - 1]))
        return null

    @property
    def folder_classes(self) -> Classes | None:
        """The classes of the folder that the network came from, or None."""
        return None if self._class_count is None else Classes(self._class_count, self.table)

    @property
    def patch_size(self) -> int:
        return self.family.patch_size(self.config)

    def feature_map(self, inputs: Tensor, size: tuple[int, int]) -> Tensor:
        return self.family.features(inputs, size, self.config)

    def unpatched(self, patches: Tensor) -> Tensor:
        return self.family.unpatched(patches, self.config)[:, : self.shape[0]]

    def predict(self, x_t: Tensor, step: Timestep, condition: Condition | None = None) -> Output:
        condition = self._looked_up(condition)
        if condition is not None:
            condition = condition.as_dtype(self.dtype)
        m = self.family.call(self._network, (step.input_scale * x_t).to(self.dtype), step.t, condition).float()
        channels = self.shape[0]
        return Output(m[:, :channels], variance=m[:, channels:] if self.predicts_variance else None)

    def fingerprint(self) -> str:
        """Sixteen hex digits over all parameters of the network, and over the embeddings of its labels."""
        table = {} if self.table is None else {"class_embedder": self.table}
        return tensors_digest(self.network.state_dict() | table)

    def with_network(self, network: nn.Module) -> "DiffusersDenoiser":
        folder = self.scheduler_config, self.folder_classes
        return DiffusersDenoiser(network, self.family, self.config, *folder, self.dtype)

    def row_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of one row of a condition as the network is given it, by name, a prompt being of usual length."""
        needs = dict(self.family.needs(self.config))
        return needs if self.table is None else needs | {"embeddings": (1, self.table.shape[1])}

    def blank_condition(self, rows: int, device: torch.device) -> Condition | None:
        """A condition of zeros: of labels, or of prompts of the usual length; None where the network reads none."""
        kinds = {"labels": torch.int64, "mask": torch.int64}
        shapes = self.row_shapes()
        tensors = {name: torch.zeros(rows, *row, device=device, dtype=kinds.get(name)) for name, row in shapes.items()}
        return Condition(**tensors) if tensors else None

    def _looked_up(self, condition: Condition | None) -> Condition | None:
        """The condition with one token in place of a label, where labels stand for embeddings.

        Embeddings themselves are taken as they are: stock pipelines, which know of no labels, are given them.

        Raises:
            ValueError: there is no label, or one of no class.
        """
        if self.table is None or (condition is not None and condition.embeddings is not None):
            return condition
        labels = None if condition is None else condition.labels
        if labels is None:
            raise ValueError("expected a condition of labels for this class-conditional model; set condition=labels")
        last = len(self.table) - 1
        # Labels have no numbers yet on the meta device and while a graph is traced.
        known = not labels.is_meta and not torch.compiler.is_exporting()
        if known and not 0 <= int(labels.min()) <= int(labels.max()) <= last:
            raise ValueError(
                f'expected labels from 0 to {last}, of which the last is "no class", got labels from '
                f"{int(labels.min())} to {int(labels.max())}; choose labels of classes that the model knows"
            )
        return Condition(embeddings=self.table[labels][:, None])

    def _require_classes(self) -> None:
        """Refuse classes that the network cannot have."""
        needs, known = self.family.needs(self.config), self.family.classes(self.config)
        name = self.family.network_class.__name__
        if self.table is None:
            # A folder may name classes that are told by something else, such as a prompt.
            if self._class_count is not None and known is not None and self._class_count > known:
                raise ValueError(
                    f"expected names of at most the {known} classes of this {name} in id2label of model_index.json, "
                    f"got {self._class_count}; mend it there"
                )
        elif list(needs) != ["embeddings"] or needs["embeddings"][-1] != self.table.shape[1]:
            read = ", ".join(f"{need} of {list(row)}" for need, row in needs.items()) or "no condition"
            raise ValueError(
                f"expected a class_embedder whose vectors a network reads in place of a prompt, got one of dim "
                f"{self.table.shape[1]} beside a {name} that reads {read}; save the folder again"
            )

    def sites(self) -> Sequence[Site]:
        return self._sites

    def attention_macs(self) -> int:
        return self._macs.attention

    def blocks(self) -> Sequence[str]:
        return self.family.blocks(self._float_network)

    @cached_property
    def _float_network(self) -> ModelMixin:
        """A network of the configuration on the meta device: layers and shapes without weights."""
        with torch.device("meta"):
            return self.family.build(self.config).eval()

    @cached_property
    def _macs(self) -> Macs:
        try:
            attentions = self.family.attentions(self._float_network)
            return count_macs(self._float_network, self._ask, attentions)
        except (OSError, MemoryError):
            raise  # The machine's, and no fault of the network.
        # Options that fit each other when a network is made may still give blocks of sizes that do not.
        except Exception as error:
            raise ValueError(
                f"expected a network that can be asked about {self.shape}, got one that fails on it "
                f"({' '.join(str(error).split())[:300]}); mend the sizes and blocks in its config.json"
            ) from error

    def _ask(self, network: nn.Module) -> None:
        state, time = torch.zeros(1, *self.shape, device="meta"), torch.zeros((), device="meta")
        shape = self.family.call(network, state, time, self.blank_condition(1, torch.device("meta"))).shape
        if shape[2:] != state.shape[2:]:
            raise ValueError(f"its output is of {shape[2]}x{shape[3]}")

    @cached_property
    def _sites(self) -> Sequence[Site]:
        roles = {self.family.first: Role.FIRST, self.family.last: Role.LAST}
        layers, sites = layers_of(self._float_network), list[Site]()
        skips = self.family.skips(self._float_network)
        for name, _ in self._float_network.named_modules():
            if name in self._macs.products:
                sites += product_sites(name, self._macs.products[name])
            elif layer := layers.get(name):
                kind = Kind.CONV2D if isinstance(layer, nn.Conv2d) else Kind.LINEAR
                role, macs, size = roles.get(name, Role.INNER), self._macs.layers[name], self._macs.input_size[name]
                sites.append(Site(name, kind, role, macs, tuple(layer.weight.shape), skips.get(name), size))
        return sites
