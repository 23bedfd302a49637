"""`ptq-diffusion convert CKPT --config FILE --out FOLDER`: an original latent-diffusion checkpoint for diffusers."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console


def convert_checkpoint(words: Sequence[str]) -> None:
    """Convert a checkpoint and print the folder last.

    Args:
        words: the checkpoint and its options.

    Raises:
        FileNotFoundError: there is no such checkpoint or configuration.
        FileExistsError: the folder has files.
        ValueError: the checkpoint is broken, or is not what the configuration describes.
    """
    parser = ArgumentParser(
        "ptq-diffusion convert",
        description="Turn a checkpoint of the original latent-diffusion code into a diffusers folder.",
    )
    parser.add_argument("checkpoint", type=Path, help="model.ckpt; nothing but its tensors is read, no code is run")
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="its YAML, or the same settings as JSON"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder, for model.path=FOLDER")
    arguments = parser.parse_args(words)
    # Imports torch, which other commands and this one's help do without.
    from ptq_diffusion.model.original import convert

    conversion = convert(arguments.checkpoint, arguments.config, arguments.out)
    console = Console(soft_wrap=True)
    console.print(f"{conversion.parameters:,} parameters", highlight=False)
    if conversion.remark:
        console.print(conversion.remark, markup=False, highlight=False)
    console.print(str(conversion.folder), markup=False, highlight=False)
