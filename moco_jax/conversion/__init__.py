"""`moco-jax convert`: weights from one program's format to another's, compared before they are given a name."""
