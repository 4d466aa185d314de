"""The sequence of a picture cut into tiles, each behind a marker that names its row and column."""

from __future__ import annotations

from edgevlm.bundle.host import ImageSpec, LayoutItem


def marked_tiles(
    image: ImageSpec, tokens: int, marker: str, line: str = ""
) -> list[str | LayoutItem]:
    """Tiles row by row.

    Args:
        image: The views, tiles first.
        tokens: Visual tokens of a view.
        marker: With `{row}` and `{column}`, which count from 1.
        line: What ends a row.
    """
    items: list[str | LayoutItem] = []
    for tile in range(image.rows * image.columns):
        row, column = divmod(tile, image.columns)
        items += [marker.format(row=row + 1, column=column + 1), view_item(tile, tokens)]
        if line and column == image.columns - 1:
            items.append(line)
    return items


def view_item(view: int, tokens: int) -> LayoutItem:
    """The visual tokens of a view, of so many."""
    return LayoutItem("visual", start=view * tokens, stop=(view + 1) * tokens)
