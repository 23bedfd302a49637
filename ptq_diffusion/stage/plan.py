"""Stage: the bitwidth plan, bits of every site at every step."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.artefact.files import write_text
from ptq_diffusion.bitwidth.evidence import Evidence
from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.bitwidth.sensitivity import Sensitivity
from ptq_diffusion.bitwidth.step_signal import StepSignal
from ptq_diffusion.bitwidth.under_budget import UnderBudget
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage, Need
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.stage.planning.additions import CorrectionAdditions, OutsidePlan, read_additions, read_outside_plan
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.sensitivity import MeasureSensitivity
from ptq_diffusion.stage.step_signal import MeasureStepSignal

PLAN = "plan.json"
"""The file of the artefact."""


class Plan(ModelStage):
    """`plan.json`: the `BitwidthPlan` that the policy makes of the network, the table and its evidence."""

    name = "plan"
    version = 1
    needs = (MeasureStepSignal, MeasureSensitivity, CorrectionAdditions, OutsidePlan, EncodePrompts)
    uses = ("model", "condition", "sampler", "bitwidth")

    def inputs(self, cfg: DictConfig) -> Mapping[str, Need]:
        """The artefact of the measurement that the policy reads, if any, and what guidance and its budget need."""
        reads = construct(cfg.bitwidth).reads
        optional = (EncodePrompts, CorrectionAdditions, OutsidePlan)
        needs = {stage.name: Need(stage, cfg) for stage in optional if stage.serves(cfg)}
        if reads is Evidence.STEP_SNR:
            return needs | {MeasureStepSignal.name: Need(MeasureStepSignal, cfg)}
        if reads is Evidence.SENSITIVITY:
            return needs | {MeasureSensitivity.name: Need(MeasureSensitivity, cfg)}
        return needs

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        model, policy = shop.guided(cfg, inputs), construct(cfg.bitwidth)
        assert isinstance(policy, BitwidthPolicy)
        if isinstance(policy, UnderBudget) and OutsidePlan.name in inputs:
            policy = policy.counting_outside_plan(read_outside_plan(inputs[OutsidePlan.name]))
        if isinstance(policy, UnderBudget) and CorrectionAdditions.name in inputs:
            policy = policy.behind(read_additions(inputs[CorrectionAdditions.name]))
        table = shop.table(cfg, model)
        architecture = model.architecture(table)
        policy.check(architecture, table)
        evidence = read_evidence(policy, inputs)
        if evidence is not None:
            evidence.require(model.fingerprint(), table.fingerprint())
        write_text(out / PLAN, policy.plan(architecture, table, evidence).to_json())


def read_evidence(policy: BitwidthPolicy, inputs: Mapping[str, Path]) -> StepSignal | Sensitivity | None:
    """The measurement that a policy reads, from the artefact of its stage; None where it reads nothing."""
    if policy.reads is Evidence.STEP_SNR:
        return StepSignal.load(inputs[MeasureStepSignal.name] / MeasureStepSignal.file)
    if policy.reads is Evidence.SENSITIVITY:
        return Sensitivity.load(inputs[MeasureSensitivity.name] / MeasureSensitivity.file)
    return None


def read_plan(folder: Path) -> BitwidthPlan:
    """The plan of an artefact."""
    return BitwidthPlan.from_json((folder / PLAN).read_text())
