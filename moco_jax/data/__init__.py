"""Data on the host: where images come from, in which order, how they are cut and how they reach the device.

`sources` opens data sets (TFDS without TensorFlow, scikit-learn's digits, a user's object), `order` says which record
stands at which position of which step, `crops` cuts with Pillow, `loader` makes batches. TFDS and Grain are here alone.
"""
