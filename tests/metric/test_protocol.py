"""Reports of one protocol are compared, others are refused with the fields that differ."""

import pytest

from ptq_diffusion.metric import protocol_id, require_one_protocol

PROTOCOL = {"metric": "fid_x", "images": 5, "seeds": [0, 1], "bootstrap": {"replicates": 5, "seed": 0}}


def test_id_depends_on_every_field_and_not_on_their_order():
    assert protocol_id(PROTOCOL) == protocol_id(dict(reversed(PROTOCOL.items())))
    changed = [PROTOCOL | {field: "other"} for field in PROTOCOL] + [PROTOCOL | {"more": 1}]
    assert len({protocol_id(one) for one in [PROTOCOL, *changed]}) == len(changed) + 1


def test_equal_protocols_pass():
    require_one_protocol({"a": PROTOCOL, "b": dict(PROTOCOL)})
    require_one_protocol({})


def test_the_refusal_names_the_fields_that_differ_and_no_other():
    other = {key: value for key, value in PROTOCOL.items() if key != "metric"} | {"images": 6}
    with pytest.raises(ValueError, match="of one protocol") as refusal:
        require_one_protocol({"a": PROTOCOL, "b": PROTOCOL, "c": other})
    said = str(refusal.value)
    assert "images: 5 (a and 1 more), 6 (c)" in said
    assert 'metric: "fid_x" (a and 1 more), absent (c)' in said
    assert "seeds" not in said and "bootstrap" not in said
