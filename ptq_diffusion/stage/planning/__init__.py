"""Inputs of bit planning beside the network: the bits that a policy offers, and costs outside of its plan."""
