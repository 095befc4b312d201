"""Layer names in all their physical forms (layer-files.md 2)."""

from pathlib import Path

import pytest

from pageserver.lsn import Lsn
from pageserver.remote import LayerName, LayerNameError
from pageserver.remote.layer_name import LayerKind

IMAGE = "000000000000000000000000000000000000-000000067F00000001000004DF0000000006__00000000014FED58"
DELTA = "000000000000000000000000000000000000-FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF__00000000014FED58-000000000154C481"
REAL_NAMES = Path(__file__).parents[4] / "shared" / "vectors" / "layer-maps" / "odd-brook-layernames.txt"


@pytest.mark.parametrize("suffix", ["", "-00000001", "-v1-00000001"])
def test_all_physical_forms_parse_to_the_same_layer(suffix: str) -> None:
    assert str(LayerName.parse(IMAGE + suffix)) == IMAGE
    assert str(LayerName.parse(DELTA + suffix)) == DELTA
    assert LayerName.parse(IMAGE + suffix).kind is LayerKind.IMAGE


@pytest.mark.parametrize("text", ["", "metadata", IMAGE[1:], IMAGE + "-12", DELTA[:-1] + "G", "config-v1"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(LayerNameError):
        LayerName.parse(text)


def test_names_of_a_real_timeline_survive() -> None:
    names = REAL_NAMES.read_text().split()
    assert len(names) > 1000
    assert [str(LayerName.parse(name)) for name in names] == names


def test_layers_of_a_lost_future_are_known() -> None:
    delta, image = LayerName.parse(DELTA), LayerName.parse(IMAGE)
    assert not delta.is_from_the_future(Lsn(0x154C480))
    assert delta.is_from_the_future(Lsn(0x154C478))
    assert not image.is_from_the_future(Lsn(0x14FED58))
    assert image.is_from_the_future(Lsn(0x14FED50))
