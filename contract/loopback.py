"""Which names and addresses mean this machine."""

import ipaddress
from functools import lru_cache


def is_loopback_host(host: str) -> bool:
    """Whether a host name without port means this machine: localhost, 127.0.0.0/8, ::1, ::ffff:127.0.0.0/104."""
    return host.lower() == "localhost" or is_loopback_address(host)


@lru_cache(maxsize=256)
def is_loopback_address(text: str) -> bool:
    """Whether an IP address in text form is a loopback one, also an IPv4 one inside IPv6. False for other text."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
