"""The cipher of private networks: XSalsa20, as the specification of private networks asks for."""

from __future__ import annotations

from converge_p2p.net.private_network import hsalsa20, xsalsa20


def test_the_cipher_is_that_of_the_nacl_paper() -> None:
    # Bernstein, "Cryptography in NaCl", sections 8 and 9: first key, second key, and the first bytes of the stream
    first = bytes.fromhex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
    nonce = bytes.fromhex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37")
    assert hsalsa20(first, nonce[:16]).hex() == "dc908dda0b9344a953629b733820778880f3ceb421bb61b91cbd4c3e66256ce4"
    stream = xsalsa20(first, nonce).encrypt(bytes(64))
    assert stream[:32].hex() == "eea6a7251c1e72916d11c2cb214d3c252539121d8e234e652d651fa4c8cff880"


def test_the_cipher_goes_on_where_it_stopped() -> None:
    whole = xsalsa20(bytes(32), bytes(24)).encrypt(bytes(1000))
    parts = xsalsa20(bytes(32), bytes(24))
    assert b"".join(parts.encrypt(bytes(size)) for size in (1, 63, 64, 65, 807)) == whole
