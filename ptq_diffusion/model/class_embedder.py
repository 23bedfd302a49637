"""Embeddings of classes that a network reads in place of a prompt: `class_embedder/` of a model folder."""

from torch import Tensor

from ptq_diffusion.model.components import Component, read_json
from ptq_diffusion.model.weights import read_weights


def load_class_table(component: Component) -> Tensor:
    """The embeddings of K classes and, in the last row, of "no class", (K + 1, D) float32.

    The configuration is `{"_class_name": "ClassEmbedder", "classes": K, "dim": D}`, the file holds `weight`.

    Raises:
        ValueError: the files are others or do not belong together.
    """
    shape, weights = class_table_shape(component), read_weights(component)
    if set(weights) != {"weight"} or tuple(weights["weight"].shape) != shape or not weights["weight"].isfinite().all():
        names = ", ".join(f"{name} {tuple(weight.shape)}" for name, weight in weights.items())
        raise ValueError(
            f"expected finite weight of {shape} in {component.config.parent}, a row for every class and one for none, "
            f"got {names}; save the folder again"
        )
    return weights["weight"].float()


def class_table_shape(component: Component) -> tuple[int, int]:
    """The shape (K + 1, D) of the embeddings, by the configuration alone.

    Raises:
        ValueError: it is of something else.
    """
    config = read_json(component.config)
    kind, classes, dim = (config.get(name) for name in ("_class_name", "classes", "dim"))
    if kind != "ClassEmbedder" or not isinstance(classes, int) or not isinstance(dim, int):
        raise ValueError(
            f"expected _class_name ClassEmbedder and numbers of classes and dim in {component.config}, got {kind!r} of "
            f"{classes!r} and {dim!r}; save the folder again"
        )
    return classes + 1, dim
