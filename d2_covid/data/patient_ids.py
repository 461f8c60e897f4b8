"""Patient ids as tables and jsons give them."""

import math
import re

_UNKNOWN = frozenset({"", "nan", "na", "<na>", "n/a", "none", "null"})


def stated_id(value: object) -> str:
    """The id that a table or json states; "" where it states none.

    Tables write whole numbers as ``12.0`` where some are missing, and the missing as NaN, NA or null: nobody's id.

    >>> stated_id("12.0"), stated_id(12.0), stated_id(" p7 "), stated_id("NA"), stated_id(None)
    ('12', '12', 'p7', '', '')
    """
    if isinstance(value, float):
        value = (int(value) if value.is_integer() else value) if math.isfinite(value) else None
    text = str(value).strip()
    if text.casefold() in _UNKNOWN:
        return ""
    whole = re.fullmatch(r"(\d+)\.0+", text)
    return whole[1] if whole else text
