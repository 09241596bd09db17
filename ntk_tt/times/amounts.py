"""Spans of time and sums of money as people write them."""

import math
import re

_UNITS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(r"([\d.]+(?:e[+-]?\d+)?)\s*(s|sec|min|m|h|d)", re.IGNORECASE)
_MONEY = re.compile(r"(?:([€$£])\s*)?([\d.]+)\s*([a-z]{3}|[€$£])?", re.IGNORECASE)


def read_seconds(text: str, name: str) -> float:
    """`90`, `90s`, `15min`, `2h`, `1h30min` or `1.5d` in seconds.

    Raises:
        ValueError: it is none, or not positive; `name` is the flag's.
    """
    given = text.strip()
    parts = _TIME.findall(given)
    try:
        if parts and not _TIME.sub("", given).strip():
            found = sum(float(number) * _UNITS[unit.lower()] for number, unit in parts)
        else:
            found = float(given)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise ValueError(f"{name}: give a time such as 90s, 15min, 2h or 1.5d, got {text!r}")
    return found


def read_budget(text: str, price_per_hour: float | int | None) -> tuple[float, str]:
    """A budget in time, or in money at the price of an hour, in seconds; and its currency, empty
    for a time.

    Raises:
        ValueError: it is neither, or it is money and no price is known.
    """
    given = text.strip()
    money = _MONEY.fullmatch(given)
    currency = "" if money is None else (money[1] or money[3] or "")
    if money is None or not currency or currency.lower() in _UNITS:
        return read_seconds(given, "budget"), ""
    if not price_per_hour:
        raise ValueError(
            f"budget: {text!r} is money, so it needs the price of an hour; give price-per-hour"
        )
    amount = float(money[2])
    if not 0 < amount < math.inf:
        raise ValueError(f"budget: must be more than nothing, got {text!r}")
    return amount / price_per_hour * 3600.0, currency
