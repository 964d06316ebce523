import gc
import os
import sys

import hypothesis
import pytest
from helpers import extras

if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: threads of torch would be in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("clbench", deadline=None)  # machines are busy, and a slow example is no fault
hypothesis.settings.load_profile("clbench")


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory):
    """Keep what the tests cache out of the user's cache, in one folder for all their processes, unless one is named."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        if "CLBENCH_DATA" not in os.environ:
            folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "clbench-data"
            folder.mkdir(exist_ok=True)
            patch.setenv("CLBENCH_DATA", str(folder))
        yield


def pytest_collection_finish():
    """Prepare the process for running tests.

    What was imported and collected stays out of later garbage collections, which took over 5% of the time. Modules
    that a test writes and edits are always compiled from their source: Python takes bytecode for current if the source
    has the same size and was written in the same second.
    """
    gc.collect()
    gc.freeze()
    sys.dont_write_bytecode = True


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true",
                     help="a test that needs an extra fails if it would be skipped (make test-extras)")
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow, too (make test-slow)")


def pytest_collection_modifyitems(config, items):
    """Leave out slow tests unless they are asked for. To skip each of them would take time."""
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip a test that needs an extra of clbench's that is not installed."""
    for marker in item.iter_markers("extra"):
        if names := extras.missing(*marker.args):
            pytest.skip(f"needs clbench[{marker.args[0]}]: {', '.join(names)} not installed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.skipped and item.config.getoption("--no-skips") and item.get_closest_marker("extra"):
        report.outcome, report.longrepr = "failed", f"{item.nodeid} was skipped: {report.longrepr[2]}"
    return report
