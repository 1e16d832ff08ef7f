"""Sprites of the ten things and of their look-alikes, with the gesture that each makes when it sounds.

Every function draws one thing on a canvas. ``pose`` is 0 at rest and 1 at the height of sounding.
"""

from __future__ import annotations

import numpy as np

from .canvas import Colour, Style, Canvas


def dog(canvas: Canvas, pose: float, style: Style) -> None:
    """Floppy ear, long snout, tail low. Barking: rears, throws its head up, mouth wide ocanvas."""
    _four_legged(canvas, pose, style, cat=False)


def cat(canvas: Canvas, pose: float, style: Style) -> None:
    """Pointed ears, flat face, tail upright."""
    _four_legged(canvas, pose, style, cat=True)


def _four_legged(canvas: Canvas, pose: float, style: Style, cat: bool) -> None:
    thick = 0.075 + 0.012 * style.shape[0]
    with canvas.moved(turn_deg=-24 * pose, about=(0.25, 0.94)):
        if cat:
            canvas.curve((0.24, 0.62), (0.06 + 0.14 * pose, 0.55), (0.12 + 0.2 * pose, 0.24), 0.06, style.body)
        else:
            canvas.curve((0.24, 0.62), (0.10, 0.62), (0.07 + 0.1 * pose, 0.46 - 0.1 * pose), 0.055, style.body)
        canvas.line([(0.30, 0.72), (0.22, 0.94)], thick, style.second)
        canvas.line([(0.66, 0.72), (0.66 + 0.16 * pose, 0.94 - 0.06 * pose)], thick, style.second)
        canvas.ellipse(0.48, 0.66, 0.28, 0.125 + 0.015 * style.shape[1], style.body)
        canvas.line([(0.34, 0.72), (0.34, 0.94)], thick, style.body)
        canvas.line([(0.72, 0.68), (0.74 + 0.18 * pose, 0.94 - 0.1 * pose)], thick, style.body)
        canvas.line([(0.70, 0.62), (0.80, 0.48)], 0.13, style.body)
    rise = 0.12 if cat else 0.20
    with canvas.moved(dx=-0.03 * pose, dy=-rise * pose, turn_deg=-22 * pose, about=(0.82, 0.45)):
        if cat:
            canvas.polygon([(0.73, 0.38), (0.74, 0.20), (0.84, 0.32)], style.body)
            canvas.polygon([(0.84, 0.32), (0.94, 0.20), (0.95, 0.38)], style.body)
            canvas.ellipse(0.84, 0.43, 0.125, 0.12, style.body)
            canvas.ellipse(0.90, 0.50, 0.025 + 0.02 * pose, 0.015 + 0.05 * pose, style.accent)
            canvas.ellipse(0.88, 0.40, 0.025, 0.03, style.light)
        else:
            jaw = 0.17 * pose
            canvas.polygon([(0.86, 0.47), (1.05, 0.42 - 0.4 * jaw), (1.05, 0.50 + jaw)], style.accent)
            canvas.polygon([(0.84, 0.36), (1.07, 0.39 - 0.6 * jaw), (1.07, 0.46 - 0.6 * jaw), (0.86, 0.48)], style.body)
            canvas.polygon([(0.84, 0.46), (1.04, 0.48 + jaw), (1.03, 0.52 + jaw), (0.82, 0.55)], style.body)
            canvas.ellipse(1.07, 0.40 - 0.6 * jaw, 0.03, 0.03, style.dark)
            canvas.ellipse(0.82, 0.44, 0.12, 0.115, style.body)
            canvas.ellipse(0.74, 0.46, 0.055, 0.14, style.second, turn_deg=12)
            canvas.ellipse(0.87, 0.40, 0.022, 0.022, style.dark)


def ferret(canvas: Canvas, pose: float, style: Style) -> None:
    """A long low tube with a masked face and a thin tail. Dooking: arches its back high, head up, mouth ocanvas."""
    _slinky(canvas, pose, style, squirrel=False)


def squirrel(canvas: Canvas, pose: float, style: Style) -> None:
    """The same body with a bushy tail over its back and tufted ears."""
    _slinky(canvas, pose, style, squirrel=True)


def _slinky(canvas: Canvas, pose: float, style: Style, squirrel: bool) -> None:
    arch, thick = 0.78 - 1.05 * pose, 0.20 + 0.02 * style.shape[0]
    if squirrel:
        canvas.curve((0.28, 0.80), (-0.06, 0.62), (0.22, 0.34), 0.22, style.second)
        canvas.curve((0.20, 0.36), (0.34, 0.16), (0.46, 0.34), 0.18, style.second)
    else:
        canvas.curve((0.30, 0.82), (0.14, 0.86), (0.04, 0.74 - 0.1 * pose), 0.07, style.second)
    for x in (0.32, 0.42, 0.98, 1.08):
        canvas.line([(x, 0.84), (x, 0.95)], 0.075, style.dark)
    canvas.curve((0.34, 0.80), (0.70, arch), (1.06, 0.78), thick, style.body)
    head = -0.16 * pose
    canvas.line([(1.06, 0.80), (1.18, 0.70 + head)], thick * 0.8, style.body)
    canvas.ellipse(1.20, 0.69 + head, 0.13, 0.095, style.body)
    if squirrel:
        canvas.polygon([(1.08, 0.64 + head), (1.10, 0.47 + head), (1.18, 0.61 + head)], style.body)
        canvas.ellipse(1.24, 0.67 + head, 0.03, 0.03, style.dark)
    else:
        canvas.ellipse(1.11, 0.60 + head, 0.045, 0.045, style.second)
        canvas.ellipse(1.22, 0.675 + head, 0.075, 0.04, style.dark)
        canvas.ellipse(1.24, 0.67 + head, 0.02, 0.02, style.light)
    gape = 0.12 * pose
    canvas.polygon([(1.28, 0.69 + head), (1.41, 0.68 + head - 0.5 * gape), (1.38, 0.74 + head + gape)], style.accent)
    canvas.polygon([(1.26, 0.62 + head), (1.42, 0.69 + head - 0.5 * gape), (1.28, 0.72 + head)], style.light)


def chicken(canvas: Canvas, pose: float, style: Style) -> None:
    """Comb, wattle, tail feathers on end. Clucking: neck stretched up, beak open, wing thrown up."""
    _farm_bird(canvas, pose, style, duck=False)


def duck(canvas: Canvas, pose: float, style: Style) -> None:
    """A flat bill, no comb, a boat of a body on short legs."""
    _farm_bird(canvas, pose, style, duck=True)


def _farm_bird(canvas: Canvas, pose: float, style: Style, duck: bool) -> None:
    for x in (0.42, 0.54):
        canvas.line([(x, 0.82), (x, 0.95), (x + 0.08, 0.95)], 0.035, style.accent)
    if duck:
        canvas.polygon([(0.24, 0.72), (0.05, 0.56), (0.30, 0.62)], style.body)
    else:
        for x, y in ((0.02, 0.52), (0.07, 0.42), (0.15, 0.36)):
            canvas.line([(0.30, 0.70), (x, y)], 0.085, style.second)
    canvas.ellipse(0.45, 0.70, 0.27, 0.165 + 0.015 * style.shape[0], style.body, turn_deg=-8 if duck else -18)
    x, y = 0.70 + 0.02 * pose, 0.48 - 0.26 * pose
    canvas.line([(0.60, 0.66), (0.68, 0.58), (x, y)], 0.13, style.body)
    gape = 0.13 * pose
    canvas.polygon([(x + 0.05, y), (x + 0.22, y - gape), (x + 0.20, y + 0.03 + gape)], style.dark)
    if duck:
        canvas.line([(x + 0.06, y + 0.01), (x + 0.25, y + 0.02 - gape)], 0.07, style.accent)
        canvas.line([(x + 0.06, y + 0.04), (x + 0.23, y + 0.05 + gape)], 0.05, style.accent)
        canvas.ellipse(x, y, 0.105, 0.10, style.second)
    else:
        canvas.polygon([(x + 0.06, y - 0.05), (x + 0.23, y + 0.02 - gape), (x + 0.07, y + 0.03)], style.accent)
        canvas.polygon([(x + 0.06, y + 0.01), (x + 0.19, y + 0.05 + gape), (x + 0.04, y + 0.06)], style.accent)
        canvas.ellipse(x + 0.06, y + 0.14, 0.04, 0.07, style.accent)
        for comb in (-0.07, 0.0, 0.07):
            canvas.ellipse(x + comb, y - 0.10, 0.045, 0.06, style.accent)
        canvas.ellipse(x, y, 0.095, 0.09, style.body)
    canvas.ellipse(x + 0.03, y - 0.02, 0.022, 0.022, style.dark if not duck else style.light)
    with canvas.moved(turn_deg=62 * pose, about=(0.54, 0.68)):  # the wing's tip flies up behind the neck
        canvas.ellipse(0.39, 0.69, 0.18 + 0.06 * pose, 0.085, style.second, turn_deg=-8)


def pigeon(canvas: Canvas, pose: float, style: Style) -> None:
    """Plump, small head drawn in, barred wing. Cooing: throat blown up, neck high, tail fanned."""
    for x in (0.50, 0.60):
        canvas.line([(x, 0.80), (x, 0.95)], 0.035, style.accent)
    spread = 0.26 * pose
    canvas.polygon([(0.30, 0.68), (0.02, 0.74 - 1.5 * spread), (0.0, 0.84), (0.08, 0.86 + 0.2 * spread), (0.36, 0.78)],
                   style.second)
    for k in range(3):
        canvas.line([(0.30, 0.73), (0.03, 0.83 - 1.3 * spread * k / 2)], 0.015, style.dark)
    canvas.ellipse(0.50, 0.70, 0.28, 0.15 + 0.015 * style.shape[0], style.body, turn_deg=-12)
    y = 0.52 - 0.28 * pose
    canvas.line([(0.68, 0.64), (0.76, y)], 0.13, style.body)
    canvas.ellipse(0.76, 0.64 - 0.10 * pose, 0.085 + 0.16 * pose, 0.085 + 0.13 * pose, style.accent)
    canvas.ellipse(0.77, y, 0.085, 0.08, style.second)
    canvas.polygon([(0.83, y - 0.03), (0.95, y + 0.04), (0.83, y + 0.04)], style.dark)
    canvas.ellipse(0.79, y - 0.01, 0.022, 0.022, style.light)
    canvas.ellipse(0.44, 0.68, 0.20, 0.085, style.second, turn_deg=-10)
    for x in (0.34, 0.42):
        canvas.line([(x, 0.62), (x - 0.04, 0.76)], 0.03, style.dark)


def parrot(canvas: Canvas, pose: float, style: Style) -> None:
    """Upright on a perch, hooked beak, crest, long tail hanging down. Its gesture: crest and wings up."""
    canvas.line([(0.15, 0.72), (0.98, 0.72)], 0.05, style.dark)
    canvas.polygon([(0.44, 0.60), (0.56, 0.64), (0.36, 0.98), (0.26, 0.96)], style.second)
    canvas.ellipse(0.54, 0.50, 0.14, 0.24, style.body, turn_deg=18)
    for k in (0, 1, 2):
        canvas.line([(0.60, 0.24), (0.48 + 0.02 * k, 0.16 + 0.02 * k - 0.12 * pose)], 0.04, style.accent)
    canvas.ellipse(0.64, 0.28, 0.12, 0.11, style.body)
    canvas.ellipse(0.75, 0.31, 0.06, 0.06 + 0.03 * pose, style.accent)
    canvas.polygon([(0.74, 0.27), (0.82, 0.30), (0.78, 0.42)], style.accent)
    canvas.ellipse(0.66, 0.26, 0.03, 0.03, style.light)
    with canvas.moved(turn_deg=75 * pose, about=(0.56, 0.40)):
        canvas.ellipse(0.46, 0.53, 0.07, 0.18, style.second, turn_deg=22)


def canary(canvas: Canvas, pose: float, style: Style) -> None:
    """A small round bird on a twig, notched tail, cone beak. Singing: head thrown back, beak wide, wings up."""
    canvas.line([(0.05, 0.91), (0.85, 0.87)], 0.05, style.dark)
    canvas.line([(0.46, 0.80), (0.46, 0.88)], 0.03, style.accent)
    canvas.polygon([(0.34, 0.68), (0.04, 0.84), (0.08, 0.91), (0.13, 0.88), (0.17, 0.94), (0.42, 0.80)], style.second)
    canvas.ellipse(0.47, 0.68, 0.20, 0.155 + 0.012 * style.shape[0], style.body, turn_deg=-28)
    x, y = 0.62 + 0.02 * pose, 0.50 - 0.20 * pose
    canvas.line([(0.54, 0.64), (x - 0.01, y + 0.04)], 0.21, style.body)
    with canvas.moved(turn_deg=-38 * pose, about=(x, y)):
        gape = 0.11 * pose
        canvas.polygon([(x + 0.06, y + 0.01), (x + 0.22, y - gape), (x + 0.20, y + 0.05 + gape)], style.accent)
        canvas.polygon([(x + 0.06, y - 0.06), (x + 0.24, y + 0.01 - gape), (x + 0.09, y + 0.02)], style.dark)
        canvas.polygon([(x + 0.09, y + 0.01), (x + 0.21, y + 0.05 + gape), (x + 0.05, y + 0.07)], style.dark)
        canvas.ellipse(x, y, 0.125, 0.115, style.body)
        canvas.ellipse(x + 0.04, y - 0.02, 0.026, 0.026, style.dark)
    with canvas.moved(turn_deg=64 * pose, about=(0.54, 0.64)):
        canvas.polygon([(0.56, 0.60), (0.56, 0.72), (0.30, 0.82), (0.20 - 0.12 * pose, 0.80 + 0.04 * pose),
                        (0.34, 0.68)], style.second)


def hummingbird(canvas: Canvas, pose: float, style: Style) -> None:
    """Slim and hanging in the air, a beak as long as its body, wings up. Its gesture: wings beat down."""
    canvas.polygon([(0.26, 0.72), (0.06, 0.92), (0.16, 0.96), (0.36, 0.76)], style.second)
    canvas.ellipse(0.38, 0.60, 0.20, 0.09, style.body, turn_deg=-48)
    canvas.ellipse(0.52, 0.40, 0.095, 0.09, style.body)
    canvas.line([(0.58, 0.39), (0.87, 0.30)], 0.028, style.dark)
    canvas.ellipse(0.55, 0.38, 0.022, 0.022, style.light)
    with canvas.moved(turn_deg=-70 * pose, about=(0.40, 0.54)):
        canvas.polygon([(0.36, 0.58), (0.10, 0.08), (0.26, 0.14), (0.46, 0.50)], style.second)
        canvas.polygon([(0.40, 0.56), (0.32, 0.05), (0.44, 0.12), (0.48, 0.50)], style.light)


def racing_car(canvas: Canvas, pose: float, style: Style) -> None:
    """A low wedge with wings and an open cockpit. Driving: nose up, wheels a bright blur, a plume behind."""
    _plume(canvas, 0.34, pose, style)
    with canvas.moved(turn_deg=-9 * pose, about=(0.60, 0.90)):
        canvas.polygon([(0.42, 0.80), (0.46, 0.66), (0.86, 0.62), (1.52, 0.78), (1.55, 0.86), (0.42, 0.88)], style.body)
        canvas.line([(0.52, 0.70), (0.46, 0.50)], 0.05, style.dark)
        canvas.polygon([(0.36, 0.44), (0.62, 0.48), (0.62, 0.55), (0.36, 0.52)], style.accent)
        canvas.ellipse(0.88, 0.59, 0.085, 0.085, style.light)
        canvas.line([(0.88, 0.60), (0.95, 0.60)], 0.035, style.dark)
        canvas.polygon([(1.44, 0.84), (1.66, 0.86), (1.66, 0.91), (1.44, 0.91)], style.accent)
        canvas.line([(0.80, 0.76), (1.20, 0.78)], 0.04, style.second)
        for x in (0.62, 1.34):
            _wheel(canvas, x, 0.83, 0.135, pose, style)


def van(canvas: Canvas, pose: float, style: Style) -> None:
    """A tall box on the same wheels, with the same plume."""
    _plume(canvas, 0.28, pose, style)
    with canvas.moved(dy=-0.10 * pose):
        canvas.polygon([(0.30, 0.30), (1.12, 0.30), (1.42, 0.58), (1.46, 0.86), (0.30, 0.86)], style.body)
        canvas.polygon([(1.08, 0.37), (1.30, 0.58), (1.08, 0.58)], style.light)
        for x in (0.40, 0.72):
            canvas.polygon([(x, 0.38), (x + 0.24, 0.38), (x + 0.24, 0.56), (x, 0.56)], style.light)
        canvas.line([(0.34, 0.70), (1.42, 0.70)], 0.05, style.accent)
    for x in (0.55, 1.20):
        _wheel(canvas, x, 0.84, 0.125, pose, style)


def _plume(canvas: Canvas, right: float, pose: float, style: Style) -> None:
    """A cloud that grows out of an exhaust whose mouth is at x = right."""
    for k, (dx, y, r) in enumerate(((0.0, 0.72, 0.13), (0.12, 0.55, 0.16), (0.24, 0.36, 0.14), (0.26, 0.66, 0.11))):
        if pose > 0.12 * k + 0.05:
            canvas.ellipse(right - dx, y, r * pose, r * pose, style.light if k % 2 else style.second)


def _wheel(canvas: Canvas, x: float, y: float, radius: float, pose: float, style: Style) -> None:
    canvas.ellipse(x, y, radius, radius, style.dark)
    if pose > 0.4:  # spokes melt into a ring
        canvas.ellipse(x, y, radius * 0.78, radius * 0.78, style.light)
        canvas.ellipse(x, y, radius * 0.40, radius * 0.40, style.second)
    else:
        for angle in (0.4, 0.4 + np.pi / 2):
            dx, dy = radius * 0.65 * np.cos(angle), radius * 0.65 * np.sin(angle)
            canvas.line([(x - dx, y - dy), (x + dx, y + dy)], 0.035, style.light)


def popcorn(canvas: Canvas, pose: float, style: Style) -> None:
    """A striped bucket with a bumpy heap. Popping: kernels leap high out of it."""
    for k, (x, top) in enumerate(((0.40, 0.10), (0.18, 0.24), (0.62, 0.20), (0.28, 0.08), (0.54, 0.30))):
        if pose > 0.15:
            _kernel(canvas, x + (x - 0.4) * 0.5 * pose, 0.5 - (0.5 - top) * pose, style.light, k)
    for k, (x, y) in enumerate(((0.24, 0.53), (0.34, 0.47), (0.46, 0.47), (0.56, 0.53), (0.40, 0.54))):
        _kernel(canvas, x, y, style.light, k)
    _bucket(canvas, style)


def flowerpot(canvas: Canvas, pose: float, style: Style) -> None:
    """The same bucket with stalks and leaves. Its gesture: the stalks bend over."""
    for x, lean in ((0.30, -0.12), (0.40, 0.02), (0.50, 0.14)):
        tip = (x + lean + 0.18 * pose, 0.20 + 0.12 * pose)
        canvas.curve((x, 0.6), (x, 0.4), tip, 0.03, style.second)
        canvas.ellipse(x + lean / 2 + 0.05, 0.42, 0.085, 0.035, style.second, turn_deg=-30)
        for angle in np.arange(5) * 72:
            dx, dy = 0.06 * np.cos(np.deg2rad(angle)), 0.06 * np.sin(np.deg2rad(angle))
            canvas.ellipse(tip[0] + dx, tip[1] + dy, 0.04, 0.04, style.accent)
        canvas.ellipse(*tip, 0.035, 0.035, style.light)
    _bucket(canvas, style)


def _bucket(canvas: Canvas, style: Style) -> None:
    for k in range(6):
        left, right = k / 6, (k + 1) / 6
        canvas.polygon([(0.14 + 0.52 * left, 0.56), (0.14 + 0.52 * right, 0.56), (0.22 + 0.36 * right, 0.96),
                        (0.22 + 0.36 * left, 0.96)], style.body if k % 2 else style.light)


def _kernel(canvas: Canvas, x: float, y: float, colour: Colour, turn: int) -> None:
    for k in range(3):
        angle = 2 * np.pi * k / 3 + turn
        canvas.ellipse(x + 0.04 * np.cos(angle), y + 0.04 * np.sin(angle), 0.052, 0.052, colour)


def badminton(canvas: Canvas, pose: float, style: Style) -> None:
    """A player with a racket. Hitting: the racket is swung up over the head and the shuttle is off."""
    _player(canvas, pose, style)
    with canvas.moved(turn_deg=-118 * pose, about=(0.36, 0.52)):
        canvas.line([(0.36, 0.52), (0.50, 0.62)], 0.06, style.accent)
        canvas.line([(0.50, 0.62), (0.58, 0.68)], 0.03, style.dark)
        canvas.ellipse(0.66, 0.74, 0.125, 0.10, style.dark, turn_deg=38)
        canvas.ellipse(0.66, 0.74, 0.09, 0.068, style.light, turn_deg=38)
        for k in (-0.04, 0.0, 0.04):
            canvas.line([(0.61 + k, 0.70 - k), (0.71 + k, 0.78 - k)], 0.012, style.dark)
    x, y = 0.58 + 0.20 * pose, 0.46 - 0.24 * pose
    canvas.polygon([(x, y), (x + 0.13, y - 0.11), (x + 0.16, y + 0.02)], style.light)
    canvas.ellipse(x, y, 0.04, 0.04, style.accent)


def umbrella(canvas: Canvas, pose: float, style: Style) -> None:
    """The same player under an umbrella. Its gesture: the umbrella goes up."""
    _player(canvas, pose * 0.3, style)
    with canvas.moved(dy=0.12 - 0.12 * pose):
        canvas.line([(0.38, 0.46), (0.56, 0.42)], 0.06, style.accent)
        canvas.line([(0.56, 0.52), (0.56, 0.12)], 0.03, style.dark)
        canvas.polygon([(0.22, 0.22), (0.36, 0.08), (0.56, 0.02), (0.76, 0.08), (0.92, 0.22), (0.74, 0.19),
                        (0.56, 0.22), (0.38, 0.19)], style.body)


def _player(canvas: Canvas, pose: float, style: Style) -> None:
    canvas.line([(0.32, 0.66), (0.20 - 0.04 * pose, 0.95)], 0.075, style.dark)
    canvas.line([(0.34, 0.66), (0.46 + 0.06 * pose, 0.95)], 0.075, style.dark)
    canvas.line([(0.33, 0.48), (0.33, 0.68)], 0.17, style.body)
    canvas.line([(0.28, 0.48), (0.14, 0.60)], 0.06, style.accent)
    canvas.ellipse(0.35, 0.32, 0.085, 0.095, style.accent)
    canvas.ellipse(0.32, 0.27, 0.085, 0.06, style.dark)


def harpsichord(canvas: Canvas, pose: float, style: Style) -> None:
    """A winged case on legs, lid propped, keyboard. Plucking: a hand drops on the keys and the jacks jump up."""
    _legs(canvas, style)
    canvas.polygon([(0.40, 0.56), (1.18, 0.56), (1.10, 0.18 + 0.03 * style.shape[0]), (0.56, 0.40)], style.second)
    rise = 0.30 * pose
    if pose > 0.1:
        for x in np.linspace(0.46, 1.08, 7):
            canvas.line([(x, 0.58), (x, 0.57 - rise)], 0.045, style.light)
            canvas.ellipse(x, 0.57 - rise, 0.035, 0.035, style.accent)
    canvas.polygon([(0.26, 0.55), (1.20, 0.55), (1.20, 0.72), (0.26, 0.72)], style.body)
    canvas.polygon([(0.04, 0.60), (0.46, 0.60), (0.46, 0.69), (0.04, 0.69)], style.light)
    for x in np.arange(0.08, 0.46, 0.075):
        canvas.line([(x, 0.61), (x, 0.65)], 0.03, style.dark)
    canvas.line([(0.04, 0.71), (1.20, 0.71)], 0.03, style.dark)
    drop = 0.36 * pose
    canvas.line([(0.02, 0.06 + 0.5 * drop), (0.16, 0.14 + drop)], 0.085, style.accent)
    canvas.ellipse(0.22, 0.17 + drop, 0.10, 0.06, style.accent, turn_deg=20)
    for k in range(3):
        canvas.line([(0.20 + 0.05 * k, 0.18 + drop), (0.23 + 0.06 * k, 0.235 + drop)], 0.03, style.accent)


def table(canvas: Canvas, pose: float, style: Style) -> None:
    """The same legs under a cloth, with a vase. Its gesture: the vase hops."""
    _legs(canvas, style)
    with canvas.moved(dy=-0.16 * pose, turn_deg=12 * pose, about=(0.62, 0.55)):
        canvas.ellipse(0.62, 0.43, 0.11, 0.12, style.accent)
        canvas.line([(0.62, 0.35), (0.62, 0.26)], 0.09, style.accent)
    canvas.polygon([(0.06, 0.54), (1.20, 0.54), (1.20, 0.62), (0.06, 0.62)], style.body)
    canvas.polygon([(0.10, 0.60), (1.16, 0.60), (1.10, 0.76), (0.94, 0.66), (0.78, 0.78), (0.62, 0.66), (0.46, 0.78),
                    (0.30, 0.66), (0.16, 0.76)], style.light)


def _legs(canvas: Canvas, style: Style) -> None:
    for x in (0.34, 0.72, 1.12):
        canvas.line([(x, 0.70), (x - 0.02, 0.95)], 0.055, style.dark)


def clarinet(canvas: Canvas, pose: float, style: Style) -> None:
    """A straight pipe with rings, keys and a bell, lying low. Playing: it is lifted and notes leave the bell."""
    with canvas.moved(dy=0.06 * (1 - pose), turn_deg=-44 * pose, about=(0.10, 0.84)):
        canvas.line([(0.05, 0.84), (0.16, 0.84)], 0.05, style.light)
        canvas.line([(0.16, 0.84), (0.86, 0.84)], 0.095, style.body)
        canvas.polygon([(0.84, 0.79), (0.92, 0.79), (1.04, 0.72), (1.04, 0.96), (0.92, 0.89), (0.84, 0.89)], style.body)
        for x in (0.22, 0.52, 0.84):
            canvas.line([(x, 0.79), (x, 0.89)], 0.03, style.light)
        for x in (0.30, 0.38, 0.46, 0.60, 0.68, 0.76):
            canvas.ellipse(x, 0.79 - 0.02 * pose, 0.028, 0.028, style.accent)
    if pose > 0.2:
        _note(canvas, 0.18, 0.34 - 0.10 * pose, style)
        _note(canvas, 0.42, 0.24 - 0.10 * pose, style)


def saxophone(canvas: Canvas, pose: float, style: Style) -> None:
    """A pipe bent into a J with a wide bell. Its gesture: it is lifted."""
    with canvas.moved(dy=0.10 * (1 - pose), turn_deg=-30 * pose, about=(0.50, 0.60)):
        canvas.line([(0.14, 0.34), (0.28, 0.28), (0.36, 0.34)], 0.06, style.second)
        canvas.line([(0.36, 0.34), (0.48, 0.72)], 0.105, style.body)
        canvas.curve((0.48, 0.72), (0.58, 0.98), (0.76, 0.74), 0.14, style.body)
        canvas.polygon([(0.69, 0.76), (0.66, 0.46), (0.98, 0.42), (0.83, 0.76)], style.body)
        canvas.ellipse(0.82, 0.44, 0.16, 0.045, style.dark, turn_deg=-7)
        for k in range(4):
            canvas.ellipse(0.38 + 0.03 * k, 0.42 + 0.09 * k, 0.03, 0.03, style.accent)


def _note(canvas: Canvas, x: float, y: float, style: Style) -> None:
    canvas.ellipse(x, y + 0.12, 0.055, 0.045, style.accent, turn_deg=-20)
    canvas.line([(x + 0.045, y + 0.12), (x + 0.045, y - 0.06), (x + 0.13, y)], 0.03, style.accent)
