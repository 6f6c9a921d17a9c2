"""Where the page may be served, and by which names it is called."""

from pathlib import Path

import pytest

from schemas.errors import SettingsError
from streaming.page.service import check_address, list_addresses, list_hosts
from streaming.settings import PageSettings


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_this_machine_alone_wants_nothing(host: str) -> None:
    check_address(PageSettings(host=host))


EVERYWHERE = "0.0.0.0"  # noqa: S104 - nothing listens there


@pytest.mark.parametrize("host", [EVERYWHERE, "::", "10.1.2.3", "page.hospital.example"])
def test_other_machines_want_tls_and_people(host: str) -> None:
    with pytest.raises(SettingsError, match="TLS_CERTIFICATE"):
        check_address(PageSettings(host=host))
    page = PageSettings(host=host, tls_certificate=Path("page.pem"), tls_key=Path("page.key"))
    with pytest.raises(SettingsError, match="XRAY_PAGE__PEOPLE"):
        check_address(page)
    check_address(page.model_copy(update={"people": Path("people.toml")}))
    check_address(PageSettings(host=host, plain_http=True))


def test_half_of_a_key_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="both or neither"):
        PageSettings(tls_certificate=Path("page.pem"))


def test_names_are_those_of_this_machine_and_those_that_are_given() -> None:
    assert list_hosts(PageSettings(), 8050) == {"127.0.0.1:8050", "localhost:8050", "[::1]:8050"}
    given = list_hosts(PageSettings(host="10.1.2.3", hosts="Page.Hospital.Example"), 443)
    assert given == {"10.1.2.3:443", "page.hospital.example:443", "page.hospital.example"}
    assert "127.0.0.1:8050" in list_hosts(PageSettings(host=EVERYWHERE), 8050)


def test_parts_elsewhere_are_asked_there() -> None:
    assert list_addresses(PageSettings(gateway_url="http://gateway:9466")) == {"gateway": "http://gateway:9466"}
