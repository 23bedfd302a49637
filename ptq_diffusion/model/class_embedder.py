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
    config, weights = read_json(component.config), read_weights(component)
    expected = (config.get("classes"), config.get("dim"))
    if config.get("_class_name") != "ClassEmbedder" or not all(type(number) is int for number in expected):
        raise ValueError(
            f"expected _class_name ClassEmbedder and numbers of classes and dim in {component.config}, got "
            f"{config.get('_class_name')!r} of {expected[0]!r} and {expected[1]!r}; save the folder again"
        )
    shape = (expected[0] + 1, expected[1])
    if set(weights) != {"weight"} or tuple(weights["weight"].shape) != shape or not weights["weight"].isfinite().all():
        names = ", ".join(f"{name} {tuple(weight.shape)}" for name, weight in weights.items())
        raise ValueError(
            f"expected finite weight of {shape} in {component.config.parent}, a row for every class and one for none, "
            f"got {names}; save the folder again"
        )
    return weights["weight"].float()
