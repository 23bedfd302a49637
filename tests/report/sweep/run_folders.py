"""Run folders made of the demonstration's, and the table that is collected of them."""

import csv
import json
from collections import Counter
from pathlib import Path

from ptq_diffusion.report.sweep.collect import collect

EXAMPLE = Path(__file__).parents[3] / "experiments" / "demo"


def run_like(folder, correction="ptqd", eta=1.0, bits=4, noise=128, **report):
    """A finished run below `folder`, made of the demonstration's; what is made of the same has one signature."""
    name = f"{correction}-{eta}-{bits}-{noise}"
    place = folder / name
    place.mkdir(parents=True)
    text = (EXAMPLE / "config.yaml").read_text()
    text = text.replace("eta: 1.0", f"eta: {eta}").replace("correction: auto", f"correction: {correction}")
    text = text.replace("noise:\n  images: 128\n", f"noise:\n  images: {noise}\n")
    text = text.replace("weight: 4\n", f"weight: {bits}\n")
    assert f"weight: {bits}\n" in text and f"eta: {eta}" in text and f"images: {noise}" in text
    (place / "config.yaml").write_text(text)
    found = json.loads((EXAMPLE / "report.json").read_text()) | report
    made_of = {"samples_full_precision": f"{eta}", "samples_quantized": f"{eta}{bits}", "samples_corrected": name}
    found["rows"][0]["fid"] = 1 + eta
    (place / "report.json").write_text(json.dumps(found | {"signatures": made_of}))
    return place


def table(folder):
    collect([folder])
    with (folder / "collected" / "table.csv").open() as file:
        return list(csv.DictReader(file))


def kinds(rows):
    return Counter(row["correction"] for row in rows)


def other_protocol(run):
    """Judge a run's images by other ones."""
    path = run / "report.json"
    content = json.loads(path.read_text())
    content["protocol"] |= {"reference_checksum": "another"}
    path.write_text(json.dumps(content | {"protocol_id": "another"}))


def of_seeds(run, seeds, fid):
    """Give a run seeds, and a corrected FID."""
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(
        text.replace("seeds:\n- 0\n", "seeds:\n" + "".join(f"- {seed}\n" for seed in seeds))
    )
    content = json.loads((run / "report.json").read_text())
    for row in content["rows"]:
        row["seeds"] = list(seeds)
    content["rows"][2] |= {"fid": fid, "fid_se": 0.3}
    content["protocol"]["seeds"] = list(seeds)
    signatures = {stage: f"{signature}{seeds}" for stage, signature in content["signatures"].items()}
    (run / "report.json").write_text(json.dumps(content | {"signatures": signatures}))
