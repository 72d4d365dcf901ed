"""Parity with the original: what Facebook's code and an independent PyTorch step compute, against ours."""
