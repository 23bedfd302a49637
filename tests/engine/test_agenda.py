"""The count of a run's artefacts, and the time that is left."""

import pytest

from ptq_diffusion.engine.agenda import Agenda


def counted(efforts):
    agenda = Agenda()
    agenda.add(efforts)
    return agenda


def test_what_comes_behind_is_counted_on():
    agenda = counted({("a", "1"): 2.0, ("b", "2"): 2.0})
    agenda.done("a", "1", 10.0)
    agenda.add({("a", "1"): 0.0, ("c", "3"): 4.0})
    assert [agenda.place(*key) for key in (("b", "2"), ("c", "3"))] == [
        "2 of 3 (about 30 s left)",
        "3 of 3 (about 20 s left)",
    ]


def test_the_time_left_is_the_work_left_at_the_speed_so_far():
    agenda = counted({("a", "1"): 2.0, ("b", "2"): 0.0, ("c", "3"): 6.0, ("d", "4"): 2.0})
    assert agenda.place("a", "1") == "1 of 4", "nothing tells yet"
    agenda.done("a", "1", 10.0)
    assert agenda.place("b", "2") == "2 of 4 (about 40 s left)"
    assert agenda.place("c", "3") == "3 of 4 (about 40 s left)"
    agenda.done("c", "3", 110.0)
    assert agenda.place("d", "4") == "4 of 4 (about 30 s left)", "the mean speed"
    assert agenda.holds("d", "4") and not agenda.holds("d", "5")


@pytest.mark.parametrize(("seconds", "words"), [(0.1, "1 s"), (240, "4 min"), (7200, "2.0 h")])
def test_durations_are_said_in_their_unit(seconds, words):
    agenda = counted({("a", "1"): 1.0, ("b", "2"): 1.0})
    agenda.done("a", "1", seconds)
    assert agenda.place("b", "2") == f"2 of 2 (about {words} left)"


def test_a_first_small_artefact_tells_nothing_of_the_rest():
    """Loading took its 4 seconds, not its work."""
    agenda = counted({("a", "1"): 1.0, ("b", "2"): 9.0, ("c", "3"): 990.0})
    agenda.done("a", "1", 4.0)
    assert agenda.place("b", "2") == "2 of 3"
    agenda.done("b", "2", 1.0)
    assert agenda.place("c", "3") == "3 of 3 (about 8 min left)"
