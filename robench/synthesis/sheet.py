"""A contact sheet: all textures of a dictionary in one picture, a row for each class.

Not here: pictures of results (`robench.figures`).
"""

import torch
from PIL import Image, ImageDraw

from robench.data.textures import TextureDictionary

TILE = 96
"""Side of a texture on the sheet in pixels; larger ones are made smaller."""
GAP = 4
MARGIN = 40
"""Pixels on the left, for the class number."""


def contact_sheet(dictionary: TextureDictionary) -> Image.Image:
    """Draw a dictionary; the same dictionary gives the same picture."""
    classes, count = dictionary.textures.shape[:2]
    side = min(dictionary.size, TILE)
    sheet = Image.new("RGB", (MARGIN + count * (side + GAP), classes * (side + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (label, textures) in enumerate(zip(dictionary.classes, dictionary.textures, strict=True)):
        top = GAP + row * (side + GAP)
        pen.text((GAP, top), str(label), fill="black")
        pixels = (textures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for column, tile in enumerate(pixels):
            picture = Image.fromarray(tile).resize((side, side), Image.Resampling.BOX)
            sheet.paste(picture, (MARGIN + column * (side + GAP), top))
    return sheet
