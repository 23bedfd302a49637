"""The products of 8-bit integers of every type of device that has them."""

import torch

from ptq_diffusion.network.backend.on_cpu import OnCpu
from ptq_diffusion.network.backend.on_cuda import OnCuda
from ptq_diffusion.network.backend.products import Products

PRODUCTS: dict[str, Products] = {"cpu": OnCpu(), "cuda": OnCuda()}
"""The products by type of device."""


def products_on(device: torch.device) -> Products:
    """The products of a device, which were tried there.

    Raises:
        RuntimeError: devices of its type have none, or torch's operators do not compute them there.
    """
    if device.type not in PRODUCTS:
        raise RuntimeError(
            f"expected a device of {', '.join(PRODUCTS)}, whose 8-bit products backend=integer takes, got "
            f"{device.type}; set runtime.accelerator=cpu or backend=simulated"
        )
    products = PRODUCTS[device.type]
    products.require(device)
    return products
