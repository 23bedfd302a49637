"""Feature distance to float: how far each image lies from the float image of the same noise."""

from ptq_diffusion.metric.inference.bootstrap import Paired, paired_mean
from ptq_diffusion.metric.metric import FLOAT, Evidence, Metric


class FeatureDistanceToFloat(Metric):
    """The Euclidean distance of each image's features to those of its float image, on average; less is better."""

    name = "feature_distance_to_fp"
    needs = ("vectors",)
    to_float = True

    def paired(self, evidence: Evidence) -> Paired:
        vectors = evidence.rows("vectors")
        distances = {variant: (rows - vectors[FLOAT]).norm(dim=1) for variant, rows in vectors.items()}
        return paired_mean(distances, **evidence.settings.resampling)
