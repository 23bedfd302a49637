"""The site: the navigation leads to files, every configuration has a card, every column of a report is explained."""

import dataclasses
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

import ptq_diffusion as pd
from ptq_diffusion.correction.step_report import StepReport
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.metric.cost import VariantCost
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer.range_search import Distribution
from ptq_diffusion.stage.drawing.side_by_side import COMPARED
from tests.experiments import composed

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def places(node):
    """Every page of a navigation."""
    if isinstance(node, str):
        yield node
    else:
        for part in node.values() if isinstance(node, dict) else node:
            yield from places(part)


def test_the_navigation_leads_to_pages_and_to_all_of_ours(hooks):
    nav = set(places(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    ours = {page.relative_to(DOCS).as_posix() for page in PAGES}
    assert nav <= ours | hooks.generated().keys() | hooks.taken_over().keys()
    assert ours | hooks.generated().keys() <= nav


def test_every_file_of_a_group_has_a_card_with_its_class(hooks):
    pages = hooks.generated()
    for group in hooks.CARDS:
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            card = pages[f"cards/{group}.md"].partition(f"## {path.stem}\n")[2].partition("\n## ")[0]
            assert path.read_text().strip() in card
            for target, full in re.findall(r"\[`([\w.]+)`\]\[([\w.]+)\]", card):
                assert full.rpartition(".")[2] == target.rpartition(".")[2]
    assert "[ptq_diffusion.correction.method.ptqd.PTQD]" in pages["cards/correction.md"]
    with pytest.raises(ValueError, match="WHAT IT IS"):
        list(hooks.card(ROOT / "conf" / "config.yaml"))


def test_links_between_pages_lead_to_pages(hooks):
    known = {page.relative_to(DOCS).as_posix() for page in PAGES} | hooks.generated().keys() | hooks.taken_over().keys()
    for page in PAGES:
        text, link = page.read_text(), r"\]\((?!https?:)([^)#]+)"
        for target in re.findall(link, text):
            assert (page.parent / target).exists(), f"{page} links to {target} in the repository"
        for target in re.findall(link, hooks.site_link(text, page.relative_to(DOCS).as_posix())):
            place = (page.parent / target).resolve().relative_to(DOCS).as_posix()
            assert place in known, f"{page} links to {target} on the site"


def test_every_column_of_a_report_is_explained():
    text = (DOCS / "how_to" / "reading_a_report.md").read_text()
    explained = {
        name for row in re.findall(r"^\| (`.+?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    costs, steps = ({field.name for field in dataclasses.fields(kind)} for kind in (VariantCost, StepReport))
    metrics = {construct(node).name for node in pd.compose().metric.values()}
    pairs = {"difference", "low", "high", "standard_error", "detectable", "seed_spread"}
    drift = {f"{number}_{variant}" for number in ("mse", "psnr") for variant in COMPARED}
    assert costs | steps | drift | metrics | pairs | {"variant", "correction", "images", "seeds"} <= explained


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_page_compose(page):
    for command in re.findall(r"^    ptq-diffusion (?:-m )?(.+)$", page.read_text(), re.MULTILINE):
        words = shlex.split(command.partition("  #")[0])
        if words[0] in ("collect", "options", "convert", "doctor"):
            continue
        chosen = [
            word for word in words if not word.startswith("hydra") and "NAME" not in word and "deviations" not in word
        ]
        parsed = OverridesParser.create().parse_overrides(chosen)
        first = [
            f"{one.key_or_group}={next(iter(one.sweep_string_iterator()))}"
            if one.is_sweep_override()
            else one.input_line
            for one in parsed
        ]
        assert composed(*first).goal


def test_the_range_search_of_the_page_covers_its_deviations():
    code = re.search(r"```python\n(.*?)```", (DOCS / "how_to" / "own_quantizer.md").read_text(), re.DOTALL)[1]
    names: dict[str, object] = {}
    exec(code, names)
    import torch

    x = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [3.0]])
    low, high = names["Deviations"](2.0)(Distribution.of_groups(x), Grid(8, False))
    torch.testing.assert_close(high - low, 4 * x.std(1, correction=0), rtol=1e-3, atol=0)
