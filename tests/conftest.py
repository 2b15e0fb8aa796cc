import pytest
from hypothesis import HealthCheck, settings

from vggkit.data import fashion_mnist

# How fast examples are drawn says how busy the machine is; the first one imports what it needs.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(autouse=True, scope="session")
def short_turns():
    """What is timed in a test's own process is timed for 20 ms at a time: no test asks how fast the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vggkit.lab.bench.TURN_SECONDS", 0.02)
        yield


@pytest.fixture(scope="session")
def full_place():
    """The folder of the whole, verified Fashion-MNIST; CI fetches it first."""
    try:
        place = fashion_mnist.find()
        fashion_mnist.verify("fashion-mnist", place)
    except fashion_mnist.DataError as error:
        pytest.skip(f"needs the whole Fashion-MNIST: {error}")
    return place


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A machine without Fashion-MNIST: an empty cache, no Debian place, no VGGKIT_DATA."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("VGGKIT_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_PLACE", tmp_path / "debian")
    return tmp_path / "cache" / "vggkit" / "fashion-mnist"
