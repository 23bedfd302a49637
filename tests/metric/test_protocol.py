"""A protocol has an identity."""

from ptq_diffusion.metric import protocol_id

PROTOCOL = {"metric": "fid_x", "images": 5, "seeds": [0, 1], "bootstrap": {"replicates": 5, "seed": 0}}


def test_id_depends_on_every_field_and_not_on_their_order():
    assert protocol_id(PROTOCOL) == protocol_id(dict(reversed(PROTOCOL.items())))
    changed = [PROTOCOL | {field: "other"} for field in PROTOCOL] + [PROTOCOL | {"more": 1}]
    assert len({protocol_id(one) for one in [PROTOCOL, *changed]}) == len(changed) + 1
