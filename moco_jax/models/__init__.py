"""Encoders: backbones, batch norm over groups of the global batch, projection heads, and the functions made of them."""
