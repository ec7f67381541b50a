"""One Ctrl-C is enough, wherever it comes."""

import gc
import os
import signal
import sys
import time
import weakref

import pytest

from aromni_jax import store
from aromni_jax.signals import NotedSignals, heard_everywhere


def press():
    """Ctrl-C, handled before this returns."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)


class Finaliser:
    def __del__(self):
        press()


def in_finaliser():
    Finaliser()


def in_weakref_callback():
    thing = set()
    reference = weakref.ref(thing, lambda _: press())
    del thing
    assert reference() is None


def in_garbage_collection():
    def callback(phase, info):
        if phase == "start":
            gc.callbacks.remove(callback)
            press()

    gc.callbacks.append(callback)
    gc.collect()


def in_checkpoint_reading():
    """Where what is dropped is not printed either."""
    store.attempt(in_finaliser)


@pytest.mark.parametrize("come", [in_finaliser, in_weakref_callback, in_garbage_collection, in_checkpoint_reading])
def test_a_dropped_interrupt_comes_again(come, capsys):
    before = sys.unraisablehook, signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), heard_everywhere():
        come()
        time.sleep(5)
        pytest.fail("not heard")
    assert (sys.unraisablehook, signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGINT)) == before
    assert capsys.readouterr().err == ""


def test_work_that_ends_first_is_left_alone():
    with heard_everywhere():
        in_finaliser()
    time.sleep(0.1)


def test_noted_signals_stay_noted():
    """The first one is noted as ever; the second, dropped, comes again."""
    with pytest.raises(KeyboardInterrupt), heard_everywhere(), NotedSignals() as noted:
        in_finaliser()
        time.sleep(0.1)
        assert noted.name == "SIGINT"
        in_finaliser()
        time.sleep(5)
        pytest.fail("not heard")


def test_at_once_they_are_raised_too_and_stay_noted():
    with NotedSignals() as noted:
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"), noted.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        assert noted.name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"), noted.at_once():
            pytest.fail("it came before")
    with NotedSignals() as noted:
        with noted.at_once():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
        assert noted.name == "SIGTERM"


def test_other_dropped_errors_are_still_said(monkeypatch):
    class Broken:
        def __del__(self):
            raise ValueError("broken")

    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: said.append(str(lost.exc_value)))
    with heard_everywhere():
        Broken()
    assert said == ["broken"]


def test_a_hook_set_meanwhile_stays(monkeypatch):
    """As that of an abandoned task, whose last words come when the command is over; a late Ctrl-C repeats nothing."""
    said, passed = [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: said.append(lost.exc_type))

    def around(inner):
        return lambda lost: (passed.append(lost.exc_type), inner(lost))

    with heard_everywhere():
        monkeypatch.setattr(sys, "unraisablehook", around(sys.unraisablehook))
    in_finaliser()
    time.sleep(0.1)
    assert said == passed == [KeyboardInterrupt]
