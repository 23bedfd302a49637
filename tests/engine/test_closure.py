"""The closure of a stage is what it runs."""

import ast
import gc
import inspect
import sys
from collections import defaultdict
from pathlib import Path
from types import CodeType

import pytest
from omegaconf import OmegaConf

from ptq_diffusion.command.experiment import STAGES
from ptq_diffusion.engine.code.source import NEUTRAL, NUMERIC, OURS, Definition
from ptq_diffusion.engine.signature import closure
from ptq_diffusion.engine.stage import upstream
from ptq_diffusion.engine.workshop import Workshop

LEFT_OUT = "ptqd_gated readout_matched rescaled_matched rescaled_guided_matched rescaled_readout_matched".split()
GUIDED = ["condition=labels", "condition.guidance.scale=2"]
RUNS = {
    "moments": ["correction=ptqd"],
    "path": ["correction=rescaled_readout_matched"],
    "choice": [
        *("goal=fit", "correction=auto", "trial.images=5", "correction.judge.replicates=5"),
        *(f"~correction.candidates.{left_out}" for left_out in LEFT_OUT),
    ],
    "export": ["goal=export", "noise.steps=6"],
    "integers": ["goal=samples_corrected", "backend=integer", "correction=rescaled"],
    "layers": ["goal=layers", "layers.images=2", "correction=rescaled_readout_matched"],
    "labels and guidance": ["correction=ptqd", *GUIDED],
    "pairs": [*"goal=fit correction=rescaled +range_search@correction.differences=mse".split(), *GUIDED],
    "bits by step": ["goal=plan", "bitwidth=step_snr"],
    "rounding": [
        *("goal=quantize", "rounding=gptq", "rounding.inputs.positions=2", "calibration.images=1", "sampler.steps=2"),
        *("activation_scales=lsq", "activation_scales.iterations=1", "activation_scales.calls=1"),
        *("calibration_set=density", "rounding.inputs.weights._target_=ptq_diffusion.rounding.EffectOnImage"),
    ],
    "bits by layer": [
        *("goal=plan", "bitwidth=budget", "bitwidth.saving=12", "sensitivity.images=4"),
        *("bitwidth.count_correction=true", "quantizer.low_rank.rank=1"),
    ],
    "bits of rounded weights": [
        *("goal=plan", "bitwidth=budget", "bitwidth.saving=12", "bitwidth.weights=[3,4]", "sensitivity.images=2"),
        *("rounding=gptq", "rounding.inputs.positions=2", "calibration.images=1", "sampler.steps=2"),
    ],
}

LOADED = "values of a fitted correction, which this stage loads or saves and does not compute with"
ASKED = "the policy is asked for what it offers here, and for its plan in the stage `plan`"
NAMESAKE = "weights are quantized by a method that has the name of one that this stage calls"
LATER = "a method of the exported network, for those who load it"
NAMED = "the configuration names the float model, of whose folder this stage reads the decoder alone"
DYNAMIC = "ranges that are taken at run time, which these runs do not choose"
ROUNDING = "other roundings than these runs choose"
OTHER = "another network or backend than these runs choose"
OF_NETWORK = "a method of a whole network has the name of a value of a layer, which this stage reads"
BRANCHES: dict[str, dict[str, str]] = {
    "plan": {},
    "calibration_set": {},
    "step_signal": {"network/step_settings.py": OF_NETWORK},
    "additions": {
        "bitwidth/additions.py": "sums over the links of a chain, which these runs spare",
        "correction/contract.py": "the refusal of a correction that declares none",
    },
    "calibrate": {
        "network/layer.py": "the axis of the channels, a constant of each kind of layer",
        "quantizer/form.py": "forms of arithmetic, which are read of a quantizer here and computed with in a network",
    },
    "quantize": {},
    "reconstruct": {
        "network/saving.py": "the workshop loads a quantized network by the name that this stage's has",
        "network/denoiser_description.py": OTHER,
        "network/rescaling.py": ROUNDING,
        "rounding/block_errors.py": ROUNDING,
        "rounding/blocks.py": ROUNDING,
        "rounding/calls.py": ROUNDING,
        "rounding/soft.py": ROUNDING,
        "network/step_settings.py": OF_NETWORK,
    },
    "offers": {
        "bitwidth/budget.py": ASKED,
        "bitwidth/choices.py": ASKED,
        "bitwidth/cost.py": ASKED,
        "bitwidth/additions.py": ASKED,
        "bitwidth/evidence.py": ASKED,
        "bitwidth/sensitivity.py": ASKED,
        "model/architecture.py": ASKED,
        "network/saving.py": "the workshop loads a quantized network by the name that this stage's has",
        "network/denoiser_description.py": OTHER,
        "network/step_settings.py": OF_NETWORK,
    },
    "activation_scales": {
        "network/saving.py": "the workshop loads a quantized network by the name that this stage's has",
        "network/denoiser_description.py": OTHER,
    },
    "samples_quantized": {
        "numeric/histograms.py": NAMESAKE,
        "quantizer/affine.py": NAMESAKE,
        "quantizer/range_search.py": DYNAMIC,
        "model/configuration.py": NAMED,
        "model/loading.py": NAMED,
        "numeric/histogram.py": NAMESAKE,
        "quantizer/quantizer.py": NAMESAKE,
    },
    "changes": {
        **{f"bitwidth/{name}.py": ASKED for name in "additions budget choices cost evidence sensitivity".split()},
        "model/architecture.py": ASKED,
        "network/step_settings.py": OF_NETWORK,
    },
    "sensitivity": {"bitwidth/additions.py": ASKED},
    "noise": {
        "numeric/histogram.py": NAMESAKE,
        "quantizer/quantizer.py": NAMESAKE,
        "numeric/histograms.py": NAMESAKE,
        "quantizer/affine.py": NAMESAKE,
        "quantizer/range_search.py": DYNAMIC,
    },
    "fit": {"correction/repair/affine.py": LOADED},
    "samples_corrected": {
        "numeric/histograms.py": NAMESAKE,
        "quantizer/affine.py": NAMESAKE,
        "correction/noise/residual.py": LOADED,
        "model/configuration.py": NAMED,
        "model/loading.py": NAMED,
        "numeric/histogram.py": NAMESAKE,
        "quantizer/quantizer.py": NAMESAKE,
        "quantizer/range_search.py": NAMESAKE,
    },
    "drift": {
        "numeric/histograms.py": NAMESAKE,
        "quantizer/affine.py": NAMESAKE,
        "correction/noise/residual.py": LOADED,
        "numeric/histogram.py": NAMESAKE,
        "quantizer/quantizer.py": NAMESAKE,
        "quantizer/range_search.py": NAMESAKE,
    },
    "layers": {
        "correction/noise/residual.py": LOADED,
        "correction/repair/affine.py": LOADED,
        "numeric/histogram.py": NAMESAKE,
        "numeric/histograms.py": NAMESAKE,
        "quantizer/affine.py": NAMESAKE,
        "quantizer/quantizer.py": NAMESAKE,
        "quantizer/range_search.py": NAMESAKE,
    },
    "evaluate": {
        "correction/noise/residual.py": LOADED,
        "correction/repair/repair.py": LOADED,
        "numeric/grid.py": NAMESAKE,
        "numeric/histogram.py": NAMESAKE,
        "numeric/histograms.py": NAMESAKE,
        "quantizer/affine.py": NAMESAKE,
        "quantizer/form.py": NAMESAKE,
        "quantizer/granularity.py": NAMESAKE,
        "quantizer/quantizer.py": NAMESAKE,
        "quantizer/range_search.py": NAMESAKE,
        "metric/distance/classifier_score.py": "of a feature extractor that is a classifier, which these runs spare",
    },
    "export": {
        "network/backend/input_codes.py": OTHER,
        "quantizer/range_search.py": DYNAMIC,
        "correction/noise/residual.py": LOADED,
        "correction/repair/affine.py": LOADED,
        "correction/repair/filter.py": LOADED,
        "correction/repair/spectral.py": LOADED,
        "numeric/spectrum.py": LOADED,
        "sampler/step.py": LOADED,
        "correction/pipeline/flow_networks.py": "networks of other pipelines than these runs export",
        "correction/pipeline/folding.py": LATER,
        "network/backend/cache.py": LATER,
        "network/backend/devices.py": LATER,
        "network/backend/integer.py": LATER,
        "network/backend/integer_layer.py": LATER,
        "network/backend/on_cpu.py": LATER,
        "network/backend/onednn.py": LATER,
        "model/configuration.py": NAMED,
        "model/loading.py": NAMED,
    },
}
"""Stages in which a configuration or an artefact decides what runs, with files of closures that run in no run here."""

SPARED = {
    "data/labels.py": "labels, which an unconditional model has not",
    **dict.fromkeys(("data/prompts.py", "data/file_source.py"), "prompts, which an unconditional model has not"),
    "quantizer/input_granularity.py": "granularities of inputs that these runs do not choose",
    "quantizer/step_groups.py": "groups of steps, which these runs do not choose",
    "quantizer/equalisation.py": "equalisation, which these runs do not choose",
    "network/equalising.py": "equalisation, which these runs do not choose",
    "network/differences.py": "differences between the rows of guidance, which a single run chooses",
    "quantizer/shift.py": "shifts of inputs, which these runs do not choose",
    **{f"{floor}/low_rank.py": "parts that these runs do not choose" for floor in ("quantizer", "network")},
    **{f"{floor}/embedding.py": "tables, which these networks have not" for floor in ("quantizer", "network")},
    "engine/conditions.py": "conditions, which an unconditional model has not",
    "model/condition.py": "conditions, which an unconditional model has not",
    "model/guided.py": "guidance, which an unconditional model has not",
    **{
        f"model/family/{family}.py": "other families than the model's"
        for family in ("dit", "flux", "patched", "pixart", "sana", "sd3", "unet_2d_condition")
    },
    "model/class_embedder.py": "embeddings of classes, which a model of pixels has not",
    "model/decoder.py": "latents, which a model of pixels has not",
    "model/own/with_decoder.py": "a decoder of a network of the user's own, which a pipeline's folder is not",
    "model/denoiser.py": "defaults of a contract, which what runs overrides",
    "model/family/family.py": "defaults of a contract, which what runs overrides",
    "network/backend/backend.py": "the refusal of half precision by a backend that these runs do not choose",
    "network/backend/on_cuda.py": "products of a GPU, which these runs do not have",
    "network/backend/simulated.py": "layers in place of another backend's, of which a network that is made has none",
    "sampler/dynamic_shift.py": "shifts by the size of an image, which models of flow matching have",
    "numeric/rounding.py": "gradients through quantizers, which are taken where scales are learned alone",
}
"""Files that any stage may have in its closure and not run."""


def name(file):
    return file.relative_to(OURS.root).as_posix()


def neutral(file):
    return name(file).startswith(NEUTRAL) and name(file) not in NUMERIC


def could_be_entered(definition):
    """Whether it is a function with a body, and no constant, value or contract."""
    nodes = OURS.syntax(definition.file).definitions[definition.name]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    return any("abstractmethod" not in map(ast.unparse, node.decorator_list) and node.body for node in functions)


@pytest.fixture
def traced(make, monkeypatch, tiny_model_folder, counted_anew):
    """From overrides to what ran in the stages of that experiment.

    By stage and configuration: the latter, and every function of this package that `make` entered, as the
    interpreter's own tracing tells. Each `make` has a workshop of its own, so that it builds what it asks for. What
    an import runs, modules and bodies of classes, is not counted.
    """

    def run(*overrides):
        classes = "condition=labels" in overrides
        model = [f"model.path={tiny_model_folder(classes=4)}", "condition.source.no_class=3"] if classes else []
        entered = {}
        with monkeypatch.context() as patch:
            for stage in STAGES.values():
                patch.setattr(stage, "make", watched(stage.make, stage, entered))
            few = "images=3 seeds=[0] sampler.steps=2 micro_batch=8 noise.images=16 feature=pixels judging.neighbours=1"
            make(*few.split(), *overrides, *model)
        return entered

    return run


def watched(function, stage, entered):
    def run(self, cfg, inputs, out, shop):
        definitions = entered.setdefault((stage, OmegaConf.to_yaml(cfg)), (cfg, set()))[1]
        codes: set[CodeType] = set()  # Every call of every library comes here, so that no more is done than this
        before = sys.gettrace()
        gc.disable()  # A suspended generator, of a check or an earlier test, is entered when it is collected
        sys.settrace(lambda frame, *_: codes.add(frame.f_code))
        try:
            return function(self, cfg, inputs, out, Workshop(shop.runtime))
        finally:
            sys.settrace(before)
            gc.enable()
            definitions |= {
                Definition(Path(code.co_filename), code.co_qualname.partition(".<locals>")[0])
                for code in codes
                if code.co_filename.startswith(f"{OURS.root}/") and code.co_flags & inspect.CO_OPTIMIZED
            }

    return run


def test_the_closure_of_a_stage_is_what_it_runs(traced):
    """File by file, and nothing runs that is not in it.

    A file runs when a function of it is entered, or when the closure has no function of it that could be: then it is
    reached for constants, values, or a contract that what runs inherits. Where a configuration or an artefact decides
    what runs, in `BRANCHES`, each file of a closure runs in this stage in one of the experiments, or is listed.
    """
    experiments = [traced(*overrides) for overrides in RUNS.values()]
    needed, entered = defaultdict(set), defaultdict(set)
    for (stage, _), (cfg, definitions) in (pair for experiment in experiments for pair in experiment.items()):
        expected = closure(stage, cfg)
        ran = {definition for definition in definitions if not neutral(definition.file)}
        # A lambda of a signature or of a constant has no name.
        missing = {definition for definition in ran - expected if "<lambda>" not in definition.name}
        assert not missing, f"{stage.name} runs what its closure lacks"
        files = {name(definition.file) for definition in expected if could_be_entered(definition)}
        if stage.name not in BRANCHES:
            assert files - SPARED.keys() <= {name(definition.file) for definition in ran}, stage.name
        needed[stage.name] |= files
        entered[stage.name] |= {name(definition.file) for definition in ran}
    assert needed.keys() >= (upstream(STAGES["evaluate"]) | {"export"}) - {"prompts"}  # Of models with text
    idle = {stage: needed[stage] - entered[stage] - SPARED.keys() for stage in BRANCHES}
    assert idle == {stage: set(spared) for stage, spared in BRANCHES.items()}
