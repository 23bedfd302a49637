"""The beginning of a training: the weights of a saved model in place of random ones."""

from diffusers import ModelMixin
from omegaconf import DictConfig

from ptq_diffusion.model.loading import LoadedFolder, folder_checksum, load_folder


def initial_checksum(training: DictConfig) -> dict[str, str]:
    """The checksum of the model folder that a training begins from, by name; nothing of one that begins from none."""
    path = training.init_from.path
    return {} if path is None else {"init_from": folder_checksum(path)}


def take_weights(network: ModelMixin, path: str) -> LoadedFolder:
    """Give a network the weights of the one in a model folder, see `load_folder`; the folder's contents.

    Raises:
        ValueError: the folder's network is of another class or of other sizes.
    """
    folder = load_folder(path)
    weights = folder.network.state_dict()
    saved, own = ({(name, weight.shape) for name, weight in each.items()} for each in (weights, network.state_dict()))
    if odd := sorted({name for name, _ in saved ^ own}):
        raise ValueError(
            f"expected the network that training.network configures in {path}, got another: {odd[0]} and "
            f"{len(odd) - 1} more weights differ in name or shape; give another training.init_from.path or change "
            "training.network"
        )
    network.load_state_dict(weights)
    return folder
