"""The full-size networks on one GPU, in one command: see check.py."""
