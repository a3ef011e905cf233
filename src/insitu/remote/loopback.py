"""This very machine, by its names and addresses.

is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("::1")
"""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own, which nobody else can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
