"""Per-device maths: pure functions that know one axis name and no device."""
