"""Pages of the site that are made of the repository: its READMEs, a card for every configuration, the reference."""

import importlib
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CARDS = (
    "correction",
    "bitwidth",
    "quantizer",
    "range_search",
    "step_groups",
    "equalisation",
    "shift",
    "gain",
    "layer_order",
    "gain_steps",
    "low_rank",
    "embedding",
    "calibration_set",
    "recipe",
    "rounding",
    "activation_scales",
    "backend",
    "sampler",
    "metric",
    "model",
    "logger",
)
"""Groups of conf/ whose files have cards."""
FOLDERS = ("correction", "quantizer", "bitwidth", "network", "model", "sampler", "metric", "engine")
"""Folders of the package that the reference describes, module by module."""
SHOWN = (".md", ".png", ".csv", ".json", ".yaml", ".py")
"""Endings of the files of experiments that the site shows or links to."""


def generated() -> dict[str, str]:
    """Pages that are no file of the repository, by their places: cards and the reference."""
    pages = {f"cards/{group}.md": cards(group) for group in CARDS}
    pages |= {f"api/{folder}.md": reference(folder) for folder in FOLDERS}
    pages["api/python.md"] = "# In Python\n\n::: ptq_diffusion.command.python\n"
    return pages


def taken_over() -> dict[str, Path]:
    """Files of the repository that are pages or are linked to, by their places on the site, which mirrors it."""
    files = {"README.md": ROOT / "README.md"}
    for folder in ("experiments", "ptq_diffusion"):
        endings = SHOWN if folder == "experiments" else (".md",)
        for path in sorted((ROOT / folder).rglob("*")):
            hidden = any(part.startswith((".", "__pycache__")) for part in path.parts)
            if path.is_file() and path.suffix in endings and not hidden:
                files[path.relative_to(ROOT).as_posix()] = path
    return files


def cards(group: str) -> str:
    """The page of a group: for each file what it is, its reference, the words that choose it, its options."""
    lines = [f"# {group}", "", f"`ptq-diffusion options {group}` prints the first lines of these cards.", ""]
    for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
        lines += card(path)
    return "\n".join(lines)


def card(path: Path) -> Iterator[str]:
    """The card of one file, made of its comments, its class and its options."""
    text = path.read_text()
    head = re.search(r"^# (?P<what>[^@\n].*):  (?P<command>.+)$", text, re.MULTILINE)
    if head is None:
        raise ValueError(f"expected a line '# WHAT IT IS:  HOW TO CHOOSE IT' in {path}, got none; add it")
    yield from (f"## {path.stem}", "", f"{head['what']}.", "", f"    {head['command']}", "")
    if target := re.search(r"^_target_: (\S+)$", text, re.MULTILINE):
        yield from (f"[`{target[1]}`][{definition(target[1])}]", "")
    yield from ("```yaml", text.strip(), "```", "")


def definition(target: str) -> str:
    """The full name of what a target names, which a folder may only pass on from one of its modules."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    name, rest = target, []
    while True:
        module, _, last = name.rpartition(".")
        rest.insert(0, last)
        try:
            found = getattr(importlib.import_module(module), rest[0])
        except ModuleNotFoundError:
            name = module
            continue
        return ".".join([found.__module__, found.__qualname__, *rest[1:]])


def reference(folder: str) -> str:
    """The page of a folder of the package: every module that defines something, with its docstrings."""
    lines = [f"# {folder}", ""]
    for path in sorted((ROOT / "ptq_diffusion" / folder).rglob("*.py")):
        if path.name != "__init__.py":
            module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            lines += [f"## {path.relative_to(ROOT / 'ptq_diffusion' / folder).with_suffix('')}", ""]
            lines += [
                f"::: {module}",
                "    options:",
                "      show_root_heading: false",
                "      show_root_toc_entry: false",
                "",
            ]
    return "\n".join(lines)


def on_files(files: Any, config: Any) -> Any:  # noqa: ANN401
    """Called by mkdocs: its files with ours."""
    from mkdocs.structure.files import File

    for place, text in generated().items():
        files.append(File.generated(config, place, content=text))
    for place, path in taken_over().items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:  # noqa: ANN401
    """Called by mkdocs for each page."""
    return site_link(markdown, page.file.src_uri)


def site_link(markdown: str, page: str) -> str:
    """The text of a page, whose links work in the repository, with links to the same places on the site.

    The top of the site is docs/, beside which it has the repository's other folders; a group of conf/ is its cards.
    """
    place = posixpath.dirname(page)
    top = "" if not place else "../" * (place.count("/") + 1)
    if not (ROOT / "docs" / page).is_file():
        return re.sub(rf"\]\({re.escape(top)}docs/", f"]({top}", markdown)
    outside = re.escape(f"../{top}")
    markdown = re.sub(rf"\]\({outside}conf/(\w+)\)", rf"]({top}cards/\1.md)", markdown)
    markdown = re.sub(rf"\]\({outside}ptq_diffusion/command/python\.py\)", f"]({top}api/python.md)", markdown)
    return re.sub(rf"\]\({outside}(?!\.\./)", f"]({top}", markdown)
