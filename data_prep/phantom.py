"""A schematic abdomen in HU with labelled organs, painted from a seed.

Organs are ellipsoids and tubes in a common frame in mm, bent by a smooth random field, painted one
over the other. Size, position, body fat, contrast phase, noise and slice thickness are drawn.
"""

import numpy as np

FIELD_OF_VIEW = 370.0  # mm, as on an abdominal scan
# Typical HU by contrast phase (native, arterial, portal venous, late); each patient varies.
PHASES = {
    "liver": (58, 68, 108, 96),
    "spleen": (48, 112, 118, 100),
    "kidney": (34, 150, 165, 140),
    "aorta": (42, 290, 155, 118),
    "cava": (40, 60, 140, 118),
    "muscle": (54, 56, 62, 60),
    "bowel": (30, 60, 70, 62),
}
# The k-th is label value k.
ORGANS = (
    *("spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "aorta"),
    "inferior_vena_cava",
)


class Canvas:
    """A patient being painted: HU and organ labels over coordinates in mm.

    `x` grows to the patient's left, `y` to the back, `z` to the head; all are bent by a smooth
    random field, so that whatever is painted as an ellipsoid comes out as an organ.
    """

    def __init__(self, rng: np.random.Generator, size: int, thickness: float):
        self.rng = rng
        low, high = -rng.uniform(125, 165), rng.uniform(95, 130)
        self.spacing = (FIELD_OF_VIEW / size, FIELD_OF_VIEW / size, thickness)
        across = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * self.spacing[0]
        along = np.arange(low, high, thickness, dtype=np.float32)
        # Stored as RAS+: the first axis to the right, the second to the front.
        self.flat = np.meshgrid(-across, -across, along, indexing="ij")
        self.x, self.y, self.z = (axis + self._bend() for axis in self.flat)
        self.hu = np.full(self.x.shape, -1000, np.float32)
        self.labels = np.zeros(self.x.shape, np.uint8)

    def _bend(self) -> np.ndarray:
        """A smooth displacement in mm: three plane waves of 110 to 300 mm."""
        total = np.zeros(self.flat[0].shape, np.float32)
        for _ in range(3):
            direction = self.rng.normal(size=3)
            wave = 2 * np.pi / self.rng.uniform(110, 300) * direction / np.linalg.norm(direction)
            phase = sum(np.float32(w) * axis for w, axis in zip(wave, self.flat, strict=True))
            total += np.float32(self.rng.uniform(1, 3.5)) * np.sin(phase + self.rng.uniform(0, 6.3))
        return total

    def ellipsoid(self, centre, radii, turn: float = 0.0) -> np.ndarray:
        """Mask of an ellipsoid, turned by `turn` radians in the axial plane."""
        dx, dy, dz = self.x - centre[0], self.y - centre[1], self.z - centre[2]
        c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        dx, dy = c * dx + s * dy, c * dy - s * dx
        return (dx / radii[0]) ** 2 + (dy / radii[1]) ** 2 + (dz / radii[2]) ** 2 < 1

    def tube(self, centre, radii) -> np.ndarray:
        """Mask of a vertical elliptic cylinder."""
        dx, dy = (self.x - centre[0]) / radii[0], (self.y - centre[1]) / radii[1]
        return dx**2 + dy**2 < 1

    def paint(self, mask: np.ndarray, hu: float, organ: str = "") -> None:
        """Set the HU of a mask, and its organ; later painting hides earlier."""
        self.hu[mask] = hu
        self.labels[mask] = ORGANS.index(organ) + 1 if organ else 0


def phase_values(rng: np.random.Generator) -> dict[str, float]:
    """HU of each tissue for one patient: a phase between two neighbours, then a spread."""
    phase = rng.choice([0, 1, 2, 2, 2, 3])  # portal venous scans are the most common
    jitter = {name: rng.normal(0, 7) for name in PHASES}
    values = {name: row[phase] + jitter[name] for name, row in PHASES.items()}
    if rng.random() < 0.2:
        values["liver"] -= rng.uniform(10, 35)  # fatty liver
    return values


def radius(canvas: Canvas, half: tuple[float, float], power: float = 2.3) -> np.ndarray:
    """Distance from the body's axis, 1 on a superellipse with these half axes in mm."""
    x, y = np.abs(canvas.x / half[0]), np.abs(canvas.y / half[1])
    return (x**power + y**power) ** np.float32(1 / power)


def paint_trunk(canvas: Canvas, values: dict) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Table, skin, fat, muscle, lungs, heart, spine, ribs.

    Returns the abdominal cavity's mask, the mask of what lies under the diaphragm, and the
    cavity's half axes in mm.
    """
    rng = canvas.rng
    body = (rng.uniform(145, 178), rng.uniform(100, 128))
    fat = rng.uniform(8, 30)
    wall = (body[0] - fat, body[1] - 0.8 * fat)
    inner = (wall[0] - 11, wall[1] - 12)
    x, y = canvas.flat[0], canvas.flat[1]
    table = np.abs(y - (body[1] + 14) + (x / 60) ** 2 * 3) < 3.5
    canvas.paint(table & (np.abs(x) < 175), rng.uniform(-350, -80))
    rim = radius(canvas, body)
    canvas.paint(rim < 1, rng.uniform(20, 50))
    canvas.paint(rim < 1 - 2.5 / body[0], rng.normal(-103, 4))
    around = radius(canvas, wall)
    canvas.paint(around < 1, values["muscle"])
    inside = radius(canvas, inner)
    cavity = inside < 1
    canvas.paint(cavity, rng.normal(-98, 5))
    top = rng.uniform(68, 88)
    dome = top - rng.uniform(80, 105) * inside**2.4 - np.where(canvas.x > 0, 8.0, 0.0)
    under = canvas.z < dome
    canvas.paint(cavity & (canvas.z < dome + 3), values["muscle"])
    canvas.paint(cavity & under, rng.normal(-98, 5))
    canvas.paint(cavity & (canvas.z >= dome + 3), rng.normal(-850, 25))
    heart = canvas.ellipsoid((18, -0.35 * inner[1], top + 42), (62, 48, 50), turn=0.5)
    canvas.paint(heart & cavity & ~under, 0.5 * (values["aorta"] + values["muscle"]))
    paint_skeleton(canvas, values, wall, inner, around)
    return cavity, under, inner


def paint_skeleton(canvas: Canvas, values: dict, wall, inner, around: np.ndarray) -> None:
    """Back and psoas muscles, vertebrae with their canal and processes, ribs."""
    rng = canvas.rng
    back = 0.60 * inner[1]
    for side in (-1, 1):
        canvas.paint(canvas.tube((side * 36, back + 30), (31, 21)), values["muscle"])
        psoas = canvas.tube((side * 38, back + 2), (15, 18)) & (canvas.z < -20)
        canvas.paint(psoas, values["muscle"])
    spongy = rng.uniform(120, 220)
    period = rng.uniform(30, 36)
    disc = np.mod(canvas.z, period) < 6
    canvas.paint(canvas.tube((0, back), (25, 20)), 380)
    canvas.paint(canvas.tube((0, back), (22.5, 17.5)), spongy)
    canvas.paint(disc & canvas.tube((0, back), (25, 20)), 75)
    canvas.paint(canvas.ellipsoid((0, back + 40, 0), (5, 24, 1e4)) & ~disc, spongy + 90)
    for side in (-1, 1):
        process = canvas.ellipsoid((side * 26, back + 20, 0), (24, 5, 1e4), turn=side * 0.35)
        canvas.paint(process & ~disc, spongy + 70)
    canvas.paint(canvas.tube((0, back + 25), (13, 11)), 330)
    canvas.paint(canvas.tube((0, back + 25), (10, 8)), 25)
    # Ribs run down from the spine to the front: at each angle one crosses every `gap` mm.
    angle = np.arctan2(np.abs(canvas.x), canvas.y)  # 0 at the back
    gap = rng.uniform(24, 29)
    height = np.mod(canvas.z + 38 * angle + rng.uniform(0, gap), gap)
    depth = np.abs(around - (1 - 6.0 / wall[0])) * wall[0]
    rib = ((height - gap / 2) / 6.0) ** 2 + (depth / 4.5) ** 2
    low = -55 + 30 * np.cos(angle)  # the costal arch: none below it
    present = (canvas.z > low) & (angle > 0.25) & (angle < 2.5)
    canvas.paint(present & (rib < 1), 420)
    canvas.paint(present & (rib < 0.4), spongy)


def paint_organs(canvas: Canvas, values: dict, cavity, under, inner) -> np.ndarray:
    """Bowel, stomach, liver, kidneys, spleen, vessels. Returns the spleen's mask."""
    rng = canvas.rng
    a, b = inner
    room = cavity & under & (radius(canvas, (a - 2.5, b - 2.5)) < 1)
    for _ in range(rng.integers(16, 24)):  # bowel loops fill the front and the bottom
        x, y, z = rng.uniform(-0.75, 0.75) * a, rng.uniform(-0.75, 0.2) * b, rng.uniform(-170, -25)
        size = rng.uniform(13, 24)
        loop = room & canvas.ellipsoid((x, y, z), (size, 0.8 * size, 1.5 * size), rng.uniform(0, 3))
        canvas.paint(loop, values["bowel"])
        core = room & canvas.ellipsoid((x, y, z), (size - 3, 0.8 * size - 3, 1.5 * size - 3))
        canvas.paint(core, rng.choice([-850, 15, 40, 200], p=[0.25, 0.35, 0.3, 0.1]))
    lift = rng.normal(0, 7)
    centre = (rng.uniform(0.36, 0.46) * a, -rng.uniform(0.30, 0.42) * b, 22 + lift)
    shape = (rng.uniform(0.30, 0.42) * a, rng.uniform(0.36, 0.5) * b, rng.uniform(45, 60))
    turn = rng.uniform(-0.5, 0.3)
    stomach = room & canvas.ellipsoid(centre, shape, turn)
    canvas.paint(stomach, values["bowel"], "stomach")
    lumen = room & canvas.ellipsoid(centre, tuple(s - 4.5 for s in shape), turn)
    content = rng.choice([15, 35, values["spleen"] - 8], p=[0.4, 0.3, 0.3])
    canvas.paint(lumen, content, "stomach")
    air = lumen & (canvas.y < centre[1] - rng.uniform(-0.1, 0.6) * shape[1])
    canvas.paint(air, -900, "stomach")
    liver = canvas.ellipsoid(
        (-0.50 * a, 0.02 * b, -8 + lift),
        (rng.uniform(0.60, 0.70) * a, rng.uniform(0.82, 0.95) * b, rng.uniform(80, 100)),
        turn=0.15,
    ) | canvas.ellipsoid(
        (0.0, -0.52 * b, 12 + lift), (rng.uniform(0.38, 0.6) * a, 0.36 * b, 45), turn=-0.1
    )
    liver &= room & ~stomach
    canvas.paint(liver, values["liver"], "liver")
    paint_vessels(canvas, liver, values["liver"] + 0.4 * abs(values["cava"] - values["liver"]))
    gall = (-0.30 * a, -0.42 * b, -42 + lift)
    bile = room & canvas.ellipsoid(gall, (15, 20, 24))
    canvas.paint(bile, rng.uniform(2, 18), "gallbladder")
    kidneys = np.zeros_like(room)
    for side in (-1, 1):
        middle = (side * rng.uniform(0.42, 0.5) * a, 0.52 * b, -62 + 6 * side + rng.normal(0, 6))
        turn = -side * rng.uniform(0.3, 0.7)
        bed = room & canvas.ellipsoid(middle, (40, 44, 66), turn)
        canvas.paint(bed, -100)
        kidney = room & canvas.ellipsoid(middle, (25, 31, 54), turn)
        kidneys |= kidney
        canvas.paint(kidney, values["kidney"], "kidney_left" if side > 0 else "kidney_right")
        hilum = (middle[0] - side * 12, middle[1] - 6, middle[2])
        canvas.paint(kidney & canvas.ellipsoid(hilum, (13, 11, 26)), rng.uniform(-60, 10))
    spleen = make_spleen(canvas, room, inner, lift) & ~kidneys
    canvas.paint(spleen, values["spleen"], "spleen")
    if values["aorta"] > 250:  # arterial phase: the spleen enhances in waves
        wave = np.sin(canvas.x / 5) * np.sin(canvas.y / 6 + canvas.z / 9)
        canvas.hu[spleen] += (22 * wave)[spleen]
    back = 0.60 * b
    canvas.paint(canvas.tube((9, back - 31), (11, 11)), values["aorta"], "aorta")
    cava = canvas.tube((-19, back - 29), (12, 9)) & under
    canvas.paint(cava, values["cava"], "inferior_vena_cava")
    return spleen


def make_spleen(canvas: Canvas, room: np.ndarray, inner, lift: float) -> np.ndarray:
    """A crescent at the left back wall: an ellipsoid less the bed of stomach and kidney."""
    rng = canvas.rng
    a, b = inner
    size = float(np.clip(rng.lognormal(0, 0.16), 0.7, 1.5))
    centre = (
        rng.uniform(0.66, 0.74) * a,
        rng.uniform(0.28, 0.38) * b,
        18 + lift + rng.normal(0, 6),
    )
    radii = (0.36 * a * size, 0.56 * b * size, rng.uniform(50, 62) * size)
    whole = canvas.ellipsoid(centre, radii, turn=rng.uniform(0.15, 0.5))
    bed = (centre[0] - 0.46 * a, centre[1] - rng.uniform(0.05, 0.3) * b, centre[2] - 8)
    dent = canvas.ellipsoid(bed, (rng.uniform(0.28, 0.36) * a, 0.5 * b, 70))
    return whole & room & ~dent


def paint_vessels(canvas: Canvas, liver: np.ndarray, hu: float) -> None:
    """Branches in the liver: tubes from the porta towards random points."""
    rng = canvas.rng
    where = np.nonzero(liver)
    if not len(where[0]):
        return
    points = np.stack([canvas.x[liver], canvas.y[liver], canvas.z[liver]], axis=1)
    porta = points.mean(0) + (18, 10, -15)
    inside = np.zeros(len(points), bool)
    for _ in range(9):
        way = points[rng.integers(len(points))] - porta
        share = np.clip((points - porta) @ way / (way @ way), 0, 0.8)
        distance = np.linalg.norm(points - porta - share[:, None] * way, axis=1)
        inside |= distance < 6.5 - 5 * share
    canvas.hu[tuple(axis[inside] for axis in where)] = hu


def smooth(volume: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Binomial blur (1 2 1)/4 along axes: the scanner's point spread, partial volume."""
    for axis in axes:
        volume = 0.5 * volume + 0.25 * (np.roll(volume, 1, axis) + np.roll(volume, -1, axis))
    return volume


def make_patient(seed: int, number: int, size: int, thickness: float, every_organ: bool = False):
    """One patient: `(HU int16, label uint8, affine)`, both `(x, y, z)` in RAS+, affine in mm.

    `size` voxels across in plane, `thickness` in mm (0: drawn). The label is the spleen, 1, or
    every one of ORGANS. A function of its arguments.
    """
    rng = np.random.default_rng([seed, number])
    canvas = Canvas(rng, size, thickness or float(rng.choice([3.0, 4.0, 5.0, 6.0])))
    values = phase_values(rng)
    cavity, under, inner = paint_trunk(canvas, values)
    spleen = paint_organs(canvas, values, cavity, under, inner)
    hu = smooth(canvas.hu, (0, 1))
    grain = smooth(rng.standard_normal(hu.shape, dtype=np.float32), (0, 1))
    hu += np.float32(rng.uniform(14, 38)) * grain
    affine = np.diag([*canvas.spacing, 1.0])
    affine[:3, 3] = [-FIELD_OF_VIEW / 2, -FIELD_OF_VIEW / 2 + rng.uniform(-30, 30), -600]
    label = canvas.labels if every_organ else spleen.astype(np.uint8)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16), label, affine
