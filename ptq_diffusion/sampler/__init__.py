"""Floor 1: samplers, which turn x_T into x_0."""

from ptq_diffusion.sampler.ddim import DDIM
from ptq_diffusion.sampler.ddpm import DDPM
from ptq_diffusion.sampler.dpm_solver import DPMSolver
from ptq_diffusion.sampler.euler import Euler, EulerAncestral
from ptq_diffusion.sampler.flow_euler import FlowEuler
from ptq_diffusion.sampler.lcm import LCM
from ptq_diffusion.sampler.loop import Visit, sample
from ptq_diffusion.sampler.process import Process
from ptq_diffusion.sampler.sampler import Sampler
from ptq_diffusion.sampler.step import State, Step
from ptq_diffusion.sampler.table import Table

__all__ = [
    "DDIM",
    "DDPM",
    "DPMSolver",
    "Euler",
    "EulerAncestral",
    "FlowEuler",
    "LCM",
    "Process",
    "Sampler",
    "State",
    "Step",
    "Table",
    "Visit",
    "sample",
]
