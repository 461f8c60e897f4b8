"""What the HTML pages share: their templates, and pictures and colours as a page holds them."""

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment() -> Environment:
    """The templates of the pages; values are escaped, and a missing one raises."""
    return Environment(
        loader=PackageLoader("d2_covid.visualization"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def data_uri(kind: str, data: bytes) -> str:
    """A file of a kind such as ``image/png`` inside the page, which then needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def css(colour: tuple[int, int, int]) -> str:
    """An RGB colour, 0 to 255 each, as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
