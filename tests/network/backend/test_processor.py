"""Tables of timings name the processor that they were taken on."""

import pytest

from experiments.backends.measure import processor, versions

NUMBERS = "cpu family\t: 25\nmodel\t\t: 17\nstepping\t: 1\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (f"model name\t: AMD EPYC 9B14\n{NUMBERS}", "AMD EPYC 9B14"),
        (
            f"vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n{NUMBERS}",
            "AuthenticAMD AMD EPYC family 25 model 17 stepping 1",
        ),
        (NUMBERS, "family 25 model 17 stepping 1"),
    ],
    ids=["a name that tells", "a name that does not", "no name"],
)
def test_a_processor_is_told_from_another(cpuinfo, expected):
    assert processor(cpuinfo) == expected


def test_versions_name_the_processor_of_this_machine(monkeypatch):
    monkeypatch.setattr("experiments.backends.measure.processor", lambda _: "a processor 42")
    assert "torch " in versions() and ", a processor 42, " in versions()
    monkeypatch.undo()
    assert processor("")
