"""What people read after a run, or during it: made from a run's files alone, without JAX."""
