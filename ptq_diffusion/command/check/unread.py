"""Options of the command line that an experiment would not read, and that are refused in place of being ignored."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

GROUP = "autoencoder"


def require_read(cfg: DictConfig, words: Sequence[str]) -> None:
    """Refuse options of an autoencoder beside a saved model that a training begins from, whose autoencoder it takes.

    A file that chooses an autoencoder, as the experiment train_latent_denoiser does for trainings from nothing, is
    none of the user's words; what Python code sets in a composed configuration is not seen.

    Args:
        cfg: as composed, nothing of it resolved yet.
        words: the overrides.

    Raises:
        ValueError: an override sets one of them.
    """
    plain = OmegaConf.to_container(cfg, resolve=False)
    beginning = plain.get("training") if isinstance(plain, dict) else None
    for key in ("init_from", "path"):
        beginning = beginning.get(key) if isinstance(beginning, dict) else None
    typed = [word for word in words if _sets_autoencoder(word)]
    if beginning is not None and typed:
        raise ValueError(
            f"expected no options of an autoencoder beside training.init_from.path={beginning}, whose own autoencoder "
            f"makes the latents, got {typed[0]}; leave it out, or set training.init_from.path=null to train both"
        )


def _sets_autoencoder(word: str) -> bool:
    key = word.lstrip("+~").partition("=")[0]
    return key.startswith(f"{GROUP}.") or key.partition("@")[2] == GROUP or key == GROUP
