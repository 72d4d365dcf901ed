"""Pictures for a report: what cannot be made of the data is said, what goes wrong in the code is not hidden."""

import pytest

from moco_jax import gallery
from moco_jax.config import ConfigError
from moco_jax.data.sources import ReadError


def test_data_that_is_gone_is_missing_and_a_failure_of_the_program_is_raised():
    """The rest is still made; out of memory, an error of XLA and the like end the command."""

    def fails(error):
        def task():
            raise error

        return task

    tasks = {"a": lambda: "picture", "b": fails(ReadError("record 3\nis gone")), "c": fails(ConfigError("no split"))}
    assert gallery.gather(tasks) == (["picture"], {"b": "record 3 is gone", "c": "no split"})
    with pytest.raises(RuntimeError, match="out of memory"):
        gallery.gather({"d": fails(RuntimeError("out of memory"))})
