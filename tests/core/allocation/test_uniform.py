import pytest

from lowdim.core.allocation import LayerInfo, Uniform


def no_scan():
    raise AssertionError("nothing to scan")


LAYERS = [LayerInfo(str(i), i // 2, (8, 8 * (i + 1))) for i in range(6)]


def test_every_layer_gets_the_target_without_reading_a_weight():
    found = Uniform().allocate(LAYERS, 0.7, no_scan)
    assert found.sparsities == dict.fromkeys("012345", 0.7)
    assert found.values == {}


@pytest.mark.parametrize(("keep", "group"), [(1, 8), (2, 4), (8, 8)])
def test_nm_stays_the_pattern_itself(keep, group):
    assert Uniform().allocate_nm(LAYERS, keep, group, no_scan).sparsities == dict.fromkeys("012345", 1 - keep / group)
