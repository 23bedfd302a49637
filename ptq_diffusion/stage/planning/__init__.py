"""The part of planning bits that other things than the network decide."""
