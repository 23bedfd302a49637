"""Budgets that count what a correction, equalised layers, parts of low rank and tables of embeddings add or spare."""

import json

import pytest

from ptq_diffusion.bitwidth.cost import CostOutsidePlan, plan_cost
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.network.embedding import embeddings
from ptq_diffusion.network.saving import equalised_layers, ranks_of_layers
from ptq_diffusion.stage.plan import PLAN

COUNTED = ["bitwidth=random", "bitwidth.saving=20", "bitwidth.count_correction=true"]


def test_a_report_states_the_operations_of_the_plan_and_the_correction_that_the_budget_counted(report):
    found, folder = report(*COUNTED, "correction=ptqd")
    store = folder.parents[1] / "store"
    plan = BitwidthPlan.from_json((store / "plan" / found["signatures"]["plan"] / PLAN).read_text())
    _, quantized, corrected = found["rows"]
    assert quantized["bops_per_image"] == plan.notes["bops"]
    assert corrected["bops_per_image"] == plan.notes["bops_with_correction"] > plan.notes["bops"]
    assert quantized["bops_saving"] > corrected["bops_saving"] >= 20


OUTSIDE_PLAN = {
    "equalised": ["equalisation@quantizer.equalisation=smoothquant"],
    "low rank": ["quantizer.low_rank.rank=1"],
    "both": ["equalisation@quantizer.equalisation=power_of_two", "quantizer.low_rank.rank=1"],
}


@pytest.fixture
def model(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


@pytest.mark.parametrize("words", OUTSIDE_PLAN.values(), ids=OUTSIDE_PLAN)
def test_the_saving_that_is_reported_of_layers_that_compute_more_is_the_one_that_was_asked_for(make, model, words):
    saving = ["bitwidth=random", "bitwidth.saving=14", "correction=none"]
    plain, path = make("goal=plan", *saving), make("goal=plan", *saving, *words)
    plan = BitwidthPlan.from_json((path / PLAN).read_text())
    assert plan.activation != BitwidthPlan.from_json((plain / PLAN).read_text()).activation
    folder = make("goal=quantize", *saving, *words)
    extra = CostOutsidePlan(equalised_layers(folder), ranks_of_layers(folder))
    assert extra.equalised or extra.ranks
    cost = plan_cost(model.architecture(), plan, plan.steps, extra)
    assert cost.saving >= 14 and cost.bops == plan.notes["bops"]


def test_a_budget_of_bytes_leaves_what_tables_of_embeddings_spare_to_weights(make, tiny_model_folder):
    words = ["goal=plan", "bitwidth=random", "bitwidth.saving=null", "bitwidth.weights=[2,3,4,8]"]
    words += ["condition=labels", f"model.path={tiny_model_folder(classes=4)}"]
    model = DiffusersDenoiser.from_folder(str(tiny_model_folder(classes=4)))
    uniform = BitwidthPlan.from_json((make("goal=plan") / PLAN).read_text())
    some = plan_cost(model.architecture(), uniform, uniform.steps).stored_bits // 8
    spared = sum(table.weight.numel() for table in embeddings(model.network).values()) * (32 - 4) // 8

    def weights(size, *more):
        return json.loads((make(*words, f"bitwidth.bytes={size}", *more) / PLAN).read_text())["weight"]

    tables = ["embedding@quantizer.embedding=integers"]
    assert weights(some, *tables) == weights(some + spared) != weights(some)


def test_a_plan_is_of_the_correction_only_where_its_budget_counts_it(make):
    plans = {
        (count, correction): make(
            "goal=plan", *COUNTED[:2], f"bitwidth.count_correction={count}", f"correction={correction}"
        )
        for count in ("false", "true")
        for correction in ("none", "ptqd", "auto")
        if (count, correction) != ("true", "auto")
    }
    assert len({path for (count, _), path in plans.items() if count == "false"}) == 1
    counted = [json.loads((plans["true", correction] / PLAN).read_text()) for correction in ("none", "ptqd")]
    assert counted[0]["activation"] != counted[1]["activation"]
    assert counted[0]["activation"] == json.loads((plans["false", "none"] / PLAN).read_text())["activation"]


def test_a_budget_does_not_count_a_correction_that_is_yet_to_be_chosen(make):
    with pytest.raises(ValueError, match=r"operations are known before .*, got Auto; .*count_correction=false"):
        make("goal=plan", *COUNTED, "correction=auto")
