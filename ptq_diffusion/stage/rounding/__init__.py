"""Stages that choose the integers of weights."""
