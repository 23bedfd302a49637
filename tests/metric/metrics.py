"""Every metric of conf/metric, in the order of the default configuration, and images that they can tell apart."""

import torch
from hydra import compose, initialize_config_dir
from torch.nn import functional as F

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.main import CONF
from ptq_diffusion.metric import Gathering, RealStatistics, Reference, judge

with initialize_config_dir(str(CONF), version_base="1.3"):
    METRICS = [construct(node) for node in compose("config").metric.values()]


def textures(count, seed):
    """Coarse colours under fine grain, as bytes."""
    draw = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(count, 3, 4, 4, generator=draw), 32, mode="bilinear")
    fine = torch.rand(count, 1, 16, 16, generator=draw).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return ((0.6 * coarse + 0.4 * fine) * 255).round().to(torch.uint8)


def blurred(images, size):
    small = F.avg_pool2d(images.float(), size)
    return F.interpolate(small, 32, mode="bilinear").round().clamp(0, 255).to(torch.uint8)


class Textures(Reference):
    def statistics(self, extractor):
        return RealStatistics.of_images(textures(300, seed=1), extractor)

    def check(self, extractor, neighbours):
        return

    def checksum(self, extractor):  # noqa: ARG002
        return "textures"


def judged(images, extractor, reference, metrics, settings):
    """The judgement of images that come in one batch."""
    gathering = Gathering(extractor, metrics)
    gathering.add(images)
    return judge(gathering, reference.statistics(extractor), reference.checksum(extractor), settings)
