"""Texts of a stranger's file in a message of ours."""

from moco_jax.checkpoints.messages import listed, one_line


def test_names_in_messages_are_short_and_printable():
    """Three of them and a count; a stranger's text on one line, without what moves a cursor, cut where it is long."""
    assert listed(["a", "b", "c"]) == "a, b, c" and listed([1, 2, 3, 4, 5]) == "1, 2, 3 and 2 more"
    assert one_line("a\n\x1b[31m  b\u202e", 20) == "a [31m b"
    assert one_line("x" * 1000, 10) == "x" * 7 + "..." and one_line("x" * 10, 10) == "x" * 10
