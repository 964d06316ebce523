import pytest

from clbench.results.provenance import machine


@pytest.fixture(autouse=True)
def forgotten():
    machine.cache_clear()
    yield
    machine.cache_clear()


def test_a_machine_without_preloaded_libraries(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert "preloaded" not in machine()


@pytest.mark.parametrize("value", ["/opt/lib/libtcmalloc.so.4:/opt/lib/libiomp5.so", " libtcmalloc.so.4  libiomp5.so"])
def test_preloaded_libraries_are_named(monkeypatch, value):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    bare = machine()
    machine.cache_clear()
    monkeypatch.setenv("LD_PRELOAD", value)
    assert machine() == f"{bare}, libtcmalloc.so.4, libiomp5.so preloaded"
