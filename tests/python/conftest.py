"""What the tests of the Python client share. ctest says by PARAMD and PARAMD_LIBRARY what to test."""

import contextlib
import threading

import paramd
import pytest


@pytest.fixture
def start():
    """Start daemons that end with the test: start(config, ranks=1)."""
    with contextlib.ExitStack() as stack:
        yield lambda config=None, ranks=1: stack.enter_context(paramd.Daemon(config, ranks))


@pytest.fixture
def together():
    """Run functions at once, each in a thread, and return what they returned; a failure is raised here."""

    def run(*functions):
        results = [None] * len(functions)
        failures = []

        def call(index):
            try:
                results[index] = functions[index]()
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=call, args=(index,)) for index in range(len(functions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return results

    return run
