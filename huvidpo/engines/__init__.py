"""Backends that stand in for a network: one table of networks, one file per backend."""
