"""Data on the host: where images come from, in which order, how they are cut and how they reach the device.

`opening` opens what a config names: `files` lists folders and manifests, `pixels` decodes an image, `tfds` and `digits`
read data sets without TensorFlow; `sources` says what all of them offer. `order` says which record stands at which
position of which step, `crops` cuts with Pillow, `loader` makes batches. TFDS and Grain are here alone.
"""
