"""CLIP score: the likeness of images to their prompts in the space of a CLIP network from a local folder."""

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptq_diffusion.artefact.digest import files_digest
from ptq_diffusion.metric.metric import PromptMetric

LIBRARY = "transformers"
ENDINGS = (".json", ".txt", ".safetensors")
"""The files of a folder that are read; nothing pickled is."""
AT_ONCE = 16
"""Images or prompts that the network is asked about together."""
SAVE = "save one with CLIPModel.save_pretrained and CLIPProcessor.save_pretrained, and set the metric's path"


class CLIPScore(PromptMetric):
    """The mean of 100 cos(E_image, E_prompt), the cosine of CLIP's embeddings of each image and its prompt.

    More is better (Hessel et al., EMNLP 2021, arXiv 2104.08718, without the factor 2.5 and the clamp of each image at
    0). A prompt of more tokens than the network has places for is cut as CLIP's tokenizer cuts it.

    Args:
        path: a folder that `CLIPModel.save_pretrained` and `CLIPProcessor.save_pretrained` wrote.
    """

    name = "clip_score"
    higher_is_better = True

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def check(self, prompts: Sequence[str] | None) -> None:
        """Refuse a model without prompts and a folder that cannot score.

        Raises:
            ValueError: there are no prompts, or the folder holds another network or broken files.
            FileNotFoundError: there is no such folder, or it lacks files.
            ModuleNotFoundError: transformers is not installed.
        """
        if prompts is None:
            raise ValueError(
                "expected prompts that images are scored by, got a model without; leave the metric out, or set "
                "condition=prompts with a model of prompts"
            )
        _ = self._clip

    def checksum(self) -> str:
        """Sixteen hex digits over the files of the folder and the version of transformers."""
        _require_library()
        text = f"{files_digest(_files(self.path))} {version(LIBRARY)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def of_prompts(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return 100 * (self._clip.images(images) * self._clip.texts(prompts)).sum(1)

    @cached_property
    def _clip(self) -> "_Clip":
        return _Clip(self.path)


class _Clip:
    """The two encoders of a folder, in float32 on the CPU; embeddings have length 1."""

    def __init__(self, folder: Path) -> None:
        _require_library()
        _files(folder)
        import transformers
        from transformers.utils import logging

        library: Any = transformers
        drawing, local = logging.is_progress_bar_enabled(), {"local_files_only": True}
        logging.disable_progress_bar()
        try:
            network, unread = library.CLIPModel.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **local
            )
            self.network, self.processor = network.eval(), library.CLIPProcessor.from_pretrained(folder, **local)
        # transformers raises nearly every type of error at files that it cannot read.
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise ValueError(f"expected a CLIPModel and its CLIPProcessor in {folder}, got {text}; {SAVE}") from error
        finally:
            if drawing:
                logging.enable_progress_bar()
        if missing := sorted(unread["missing_keys"]):
            raise ValueError(f"expected the weights of a CLIPModel in {folder}, it lacks {missing[0]}; {SAVE}")

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Embeddings (N, D) of images (N, 1 or 3, H, W) uint8; a grey image is repeated over three channels."""
        rows = []
        for part in images.cpu().expand(-1, 3, -1, -1).split(AT_ONCE):
            pixels = self.processor(images=list(part), return_tensors="pt")["pixel_values"]
            rows.append(_unit(self.network.get_image_features(pixels)))
        return torch.cat(rows)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, D) of texts."""
        rows, longest = [], self.network.config.text_config.max_position_embeddings
        for first in range(0, len(texts), AT_ONCE):
            part = list(texts[first : first + AT_ONCE])
            tokens = self.processor(text=part, return_tensors="pt", padding=True, truncation=True, max_length=longest)
            rows.append(_unit(self.network.get_text_features(tokens["input_ids"], tokens["attention_mask"])))
        return torch.cat(rows)


def _unit(features: Any) -> Tensor:  # noqa: ANN401
    """Embeddings of length 1; from version 5 of transformers on they are a field of what its networks return."""
    rows: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return rows / rows.norm(dim=-1, keepdim=True)


def _require_library() -> None:
    if importlib.util.find_spec(LIBRARY) is None:
        raise ModuleNotFoundError(
            f"expected {LIBRARY} to score images by their prompts, it is not installed; in the folder of this project: "
            "pip install -e '.[text]'"
        )


def _files(folder: Path) -> list[Path]:
    """The files of a folder that are read, sorted."""
    files = sorted(file for file in folder.glob("*") if file.suffix in ENDINGS)
    names = {file.name for file in files}
    lacking = [name for name in ("config.json", "tokenizer_config.json") if name not in names]
    lacking += ["safetensors weights"] * (not any(name.endswith(".safetensors") for name in names))
    lacking += ["preprocessor_config.json"] * (not names & {"preprocessor_config.json", "processor_config.json"})
    if lacking:
        raise FileNotFoundError(f"expected a folder with a CLIP network, {folder} lacks {', '.join(lacking)}; {SAVE}")
    return files
