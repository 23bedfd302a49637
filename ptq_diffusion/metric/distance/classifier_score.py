"""Classifier score: the Inception Score's formula with the feature extractor's own classifier."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ptq_diffusion.metric.inference.bootstrap import Paired, count_of, require_pairs, resample
from ptq_diffusion.metric.metric import Evidence, Metric


class ClassifierScore(Metric):
    """The certainty of each image's class and the variety of the classes that are drawn; more is better."""

    name = "classifier_score"
    higher_is_better = True
    needs = ("probabilities",)

    def paired(self, evidence: Evidence) -> Paired:
        return paired_classifier_score(evidence.rows("probabilities"), **evidence.settings.resampling)


def paired_classifier_score(probabilities: Mapping[str, Tensor], replicates: int, seed: int, strata: int = 1) -> Paired:
    """exp mean_i KL(p(y | s_i) || mean_j p(y | s_j)) of every variant, between 1 and the number of classes K.

    It is high where every image is surely of one class and all classes are drawn. Salimans et al. (NeurIPS 2016, arXiv
    1606.03498) take the Inception network's p; this is the extractor's own, so the number is no Inception Score and
    compares variants only. All images are one split.

    Args:
        probabilities: by variant, (N, K) that add up to 1; row i of every variant comes from the same noise.
        replicates: the number of resampled sets, R.
        seed: of the resampling.
        strata: the number of seeds.

    Raises:
        ValueError: the variants differ in shape, N < 2 or R < 2.
    """
    require_pairs(probabilities, 2)
    columns = {name: rows.double() for name, rows in probabilities.items()}
    certainty = {name: torch.xlogy(rows, rows).sum(1) for name, rows in columns.items()}

    def statistic(weights: Tensor) -> Mapping[str, Tensor]:
        shares = weights / weights.sum(1, keepdim=True)
        means = {name: shares @ rows for name, rows in columns.items()}
        return {name: (shares @ certainty[name] - torch.xlogy(mean, mean).sum(1)).exp() for name, mean in means.items()}

    count = count_of(columns)
    values = {name: value.item() for name, value in statistic(torch.ones(1, count, dtype=torch.float64)).items()}
    return resample(values, statistic, count, replicates, seed, strata)
