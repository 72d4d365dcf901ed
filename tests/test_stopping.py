"""Signals of a process: noted between steps, acted upon within what may be left, and given back."""

import contextlib
import io
import os
import signal
import threading

import pytest

from moco_jax import parallel, stopping

NUMBERS = (signal.SIGINT, signal.SIGTERM)
pytestmark = pytest.mark.usefixtures("interruptible")


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_noted_and_said_and_nothing_is_broken_off(number, capfd):
    """Asked after the next step, and from then on."""
    with stopping.Signals() as signals:
        assert signals.asked() is None
        os.kill(os.getpid(), number)
        assert signals.asked() == number and signals.asked() == number
    assert f"{signal.Signals(number).name}: stopping after this step, with a checkpoint" in capfd.readouterr().err


def test_a_signal_is_noted_where_nobody_hears_of_it(monkeypatch):
    """stderr is a pipe whose reader has gone, or no file at all, as in a notebook."""
    end, begin = os.pipe()
    os.close(end)
    with os.fdopen(begin, "w") as console:
        for stderr in (console, io.StringIO()):
            monkeypatch.setattr("sys.stderr", stderr)
            with stopping.Signals() as signals:
                os.kill(os.getpid(), signal.SIGTERM)
                assert signals.asked() == signal.SIGTERM


def test_a_second_interrupt_stops_at_once_a_second_term_does_not():
    """Whoever presses Ctrl-C twice does not want to wait; schedulers repeat themselves."""
    with stopping.Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with stopping.Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # the first one of its kind
        assert signals.asked() == signal.SIGINT


def test_work_that_may_be_left_is_left():
    """During it, and before it where the signal came first; other work is not."""
    with stopping.Signals() as signals:
        with signals.leaving():
            pass
        with pytest.raises(stopping.Stopped) as stop, signals.leaving():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.value.number == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)  # outside of it again
        reached = []
        with pytest.raises(stopping.Stopped), signals.leaving():
            reached.append("it began")
        assert not reached


def test_signals_are_given_back():
    """Also after an error; those that are ignored, as of a job in the background, stay so."""
    mine = lambda *_: None  # noqa: E731
    before = [signal.signal(signal.SIGINT, mine), signal.signal(signal.SIGTERM, signal.SIG_IGN)]
    try:
        with contextlib.suppress(ValueError), stopping.Signals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.asked() is None and signal.getsignal(signal.SIGINT) is not mine
            raise ValueError
        assert signal.getsignal(signal.SIGINT) is mine and signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        for number, handler in zip(NUMBERS, before, strict=True):
            signal.signal(number, handler)


def test_a_thread_takes_no_signals():
    """Python lets the main thread alone have them; a run in another goes on without."""
    found = []

    def work():
        with stopping.Signals() as signals:
            found.append((signals.asked(), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, before)]


def test_several_processes_stop_at_the_call_they_agree_on(monkeypatch):
    """JAX says which; a signal of one's own goes to JAX, and names what the process ends with."""
    calls, told = [], []
    monkeypatch.setattr(parallel, "process_count", lambda: 2)
    monkeypatch.setattr(parallel, "preempted", lambda call: calls.append(call) or call == 3)
    assert stopping.Signals().asked() is None and not calls  # not entered: nobody agrees on anything
    with stopping.Signals() as signals:
        assert [signals.asked() for _ in range(3)] == [None, None, signal.SIGTERM] and calls == [1, 2, 3]
    assert signals.asked() is None and calls == [1, 2, 3]  # not entered any more
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))  # where JAX has its own
    try:
        with stopping.Signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert told == [signal.SIGTERM]
            with signals.leaving():  # the other process would wait for this one
                os.kill(os.getpid(), signal.SIGTERM)
            assert [signals.asked() for _ in range(3)] == [None, None, signal.SIGINT]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("number", "kind", "status"), [(2, KeyboardInterrupt, None), (15, SystemExit, 143)])
def test_a_program_ends_as_its_signal_would_end_it(number, kind, status):
    """130 is what flags.run makes of KeyboardInterrupt."""
    with pytest.raises(kind) as stop, stopping.ending():
        raise stopping.Stopped(number)
    assert status is None or stop.value.code == status
