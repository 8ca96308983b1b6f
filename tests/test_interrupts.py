import faulthandler
import signal
import threading

import pytest

from ratjax.interrupts import interrupts_held


@pytest.fixture
def came():
    """The signals whose handlers ran; that of SIGINT raises."""
    numbers = []

    def fail(number, _):
        numbers.append(number)
        raise InterruptedError

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, _: numbers.append(number)),
        signal.SIGINT: signal.signal(signal.SIGINT, fail),
    }
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_acts_when_the_block_ends(came, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    at_the_end = None
    try:
        with interrupts_held():
            signal.raise_signal(number)
            signal.raise_signal(number)
            at_the_end = list(came)
    except InterruptedError:
        assert number == signal.SIGINT
    else:
        assert number == signal.SIGTERM
    assert at_the_end == [] and came == [number]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_an_error_of_the_block_comes_through(came):
    with pytest.raises(KeyError), interrupts_held():
        raise KeyError
    assert came == []


def test_an_interrupt_goes_before_the_blocks_error(came):
    with pytest.raises(InterruptedError), interrupts_held():
        signal.raise_signal(signal.SIGINT)
        raise KeyError


def test_in_another_thread_nothing_is_held(came):
    def held():
        with interrupts_held():
            seen.append(signal.getsignal(signal.SIGINT))

    seen, before = [], signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=held)
    thread.start()
    thread.join()
    assert seen == [before]


def test_handlers_that_python_does_not_know_stay(tmp_path):
    """Such as JAX's of SIGTERM, which tells of a preemption; here one of faulthandler's."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open(tmp_path / "said", "w+") as said:
        faulthandler.register(signal.SIGTERM, said, all_threads=False)
        try:
            with interrupts_held():
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        finally:
            faulthandler.unregister(signal.SIGTERM)
            signal.signal(signal.SIGTERM, before)
        said.seek(0)
        assert said.read().count("most recent call first") == 2
