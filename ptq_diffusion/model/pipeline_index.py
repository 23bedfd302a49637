"""The components of a model folder by name, as its model_index.json and its folders tell them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptq_diffusion.model.components import read_json

PIPELINE = "model_index.json"
NETWORKS, DECODERS = ("unet", "transformer"), ("vae", "vqvae", "movq")
SCHEDULER, CLASS_EMBEDDER = "scheduler", "class_embedder"
TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
COMPONENTS = (*NETWORKS, *DECODERS, SCHEDULER, CLASS_EMBEDDER, *TEXT)
NOT_USED = ("safety_checker", "feature_extractor", "image_encoder", "watermarker")
"""Components that images do not depend on, or only where an image is given to begin with."""


@dataclass(frozen=True)
class PipelineIndex:
    """The components of a pipeline.

    Args:
        folder: the model folder.
        file: model_index.json, or None where there is none.
        pipeline: the class of the pipeline, as the file names it.
        components: the class of every component that is not null, by the component's name; those that only a folder
            shows have no class.
        classes: how many classes the file names in `id2label`; None where it names none.
    """

    folder: Path
    file: Path | None
    pipeline: str
    components: Mapping[str, str]
    classes: int | None

    @classmethod
    def of(cls, folder: Path) -> "PipelineIndex":
        """The components of a model folder.

        Raises:
            ValueError: model_index.json is broken, or the pipeline has components that are not supported.
        """
        file = folder / PIPELINE if (folder / PIPELINE).is_file() else None
        content = {} if file is None else read_json(file)
        _require_entries(content, file)
        listed = {
            name: str(entry[-1])
            for name, entry in content.items()
            if isinstance(entry, list) and entry and entry[-1] is not None and not name.startswith("_")
        }
        shown = {name: "" for name in (*NETWORKS, *DECODERS, CLASS_EMBEDDER) if (folder / name).is_dir()}
        kind = str(content.get("_class_name", "a pipeline"))
        index = cls(folder, file, kind, shown | listed, _class_count(content, file))
        index._require_supported()
        return index

    @property
    def unused(self) -> list[str]:
        """The names of components that are there and not read."""
        return [name for name in self.components if name in NOT_USED]

    def one_of(self, names: tuple[str, ...]) -> str | None:
        """The one component of these names, or None.

        Raises:
            ValueError: there are several.
        """
        present = [name for name in names if name in self.components]
        if len(present) > 1:
            raise ValueError(
                f"expected one of {', '.join(names)} in {self.folder}, got {' and '.join(present)}; give a folder with "
                "one of them"
            )
        return present[0] if present else None

    def _require_supported(self) -> None:
        known = (*COMPONENTS, *NOT_USED)
        if odd := [f"{name} ({kind})" for name, kind in self.components.items() if name not in known]:
            raise ValueError(
                f"expected a pipeline of a network, a scheduler, a decoder and text encoders, got {self.pipeline} in "
                f"{self.folder} with {', '.join(odd)}, not supported; give the folder of a pipeline without"
            )


def _require_entries(content: Mapping[str, Any], file: Path | None) -> None:
    """Refuse names of classes that are no names: of the pipeline, and of components as [LIBRARY, CLASS]."""
    kind = content.get("_class_name", "")
    if not isinstance(kind, str):
        raise ValueError(f"expected the name of a pipeline as _class_name of {file}, got {kind!r:.60}; mend it there")
    for name in set(content) & {*COMPONENTS, *NOT_USED}:
        entry = content[name]
        pair = isinstance(entry, list) and len(entry) == 2 and len({type(one) for one in entry}) == 1
        if entry is not None and not (pair and isinstance(entry[1], str | None)):
            raise ValueError(
                f"expected {name} of {file} to be a library and a class, such as [diffusers, UNet2DModel], or "
                f"[null, null], got {entry!r:.60}; mend it there"
            )


def _class_count(content: Mapping[str, Any], file: Path | None) -> int | None:
    names = content.get("id2label")
    if names is None:
        return None
    if not isinstance(names, dict) or set(names) != {str(label) for label in range(len(names))} or not names:
        raise ValueError(
            f"expected id2label of {file} to name classes 0, 1, 2 and so on, got other keys; mend it there"
        )
    return len(names)
