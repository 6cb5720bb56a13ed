"""Builds `tables/wyckoff.npz`: `python -m symmbfn.wyckoff_build` (needs the dev tool pyxtal).

Everything but the normalizers is read off pyxtal's Wyckoff positions; the normalizers are found by
trying every rotation of the lattice's holohedry with every shift on a grid.
"""

from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from symmbfn.wyckoff import MAX_LETTERS, TABLES, TICKS, FloatArray, IntArray, lattice_family

GENERIC = np.array([0.1234, 0.3071, 0.4547])  # a point on no special position


def build() -> dict[str, NDArray[np.generic]]:
    """Tables of all groups, rows concatenated, with (231,) offsets per kind of row."""
    groups = [build_group(number) for number in range(1, 231)]
    tables: dict[str, NDArray[np.generic]] = {
        name: np.concatenate([group[name] for group in groups]) for name in groups[0]
    }
    for rows, offsets in (
        ("translations", "operation_offsets"),
        ("multiplicities", "position_offsets"),
        ("expansions", "expansion_offsets"),
        ("normalizer_shifts", "normalizer_offsets"),
    ):
        tables[offsets] = np.cumsum([0, *(len(group[rows]) for group in groups)]).astype(np.int32)
    return tables


def build_group(number: int) -> dict[str, NDArray[np.generic]]:
    """The rows of one space group."""
    from pyxtal.symmetry import Group

    group = Group(number)
    general = np.array([op.affine_matrix for op in group[0].ops])
    rotations, translations = general[:, :3, :3].round(), general[:, :3, 3] % 1
    is_centring = (rotations == np.eye(3)).all((1, 2))
    centring = translations[is_centring]
    positions = list(group)[::-1]  # a first

    projectors, offsets, expansions = [], [], []
    for position in positions:
        affine = np.array(position.ops[0].affine_matrix)
        plane, point = affine[:3, :3], affine[:3, 3]
        projector, offset = _projector(rotations, translations, plane, point)
        projectors.append(projector)
        offsets.append(offset)
        generic = projector @ GENERIC + offset
        expansions.append(_coset_representatives(rotations, translations, generic, centring))

    maps, shifts = _normalizer(number, rotations, translations, centring)
    letter_maps = np.zeros((len(maps), MAX_LETTERS), np.int8)
    multiplicities = np.array([position.multiplicity for position in positions])
    for q, (rotation, shift) in enumerate(zip(maps, shifts, strict=True)):
        for p in range(len(positions)):
            image = rotation @ (projectors[p] @ GENERIC + offsets[p]) + shift
            letter_maps[q, p] = next(
                other
                for other in range(len(positions))
                if multiplicities[other] == multiplicities[p]
                and _on_position(image, rotations, translations, projectors[other], offsets[other])
            )
    primitive = _primitive(centring)
    return {
        "rotations": rotations.astype(np.int8),
        "translations": _ticks(translations),
        "primitive": (primitive * 6).round().astype(np.int8)[None],
        "multiplicities": multiplicities.astype(np.int16),
        "degrees_of_freedom": np.array([w.get_dof() for w in positions], np.int8),
        "projectors": np.array(projectors).astype(np.float32),
        "offsets": np.array(offsets).astype(np.float32),
        "site_symmetries": np.array(
            [w.get_site_symmetry_object().to_one_hot().argmax(1) for w in positions], np.int8
        ),
        "expansion_sizes": np.array([len(e) for e in expansions], np.int16),
        "expansions": np.concatenate(expansions).astype(np.int16),
        "normalizer": maps.astype(np.int8),
        "normalizer_shifts": _ticks(shifts),
        "letter_maps": letter_maps,
        "polar": _polar(rotations)[None],
    }


def _ticks(fractions: FloatArray) -> NDArray[np.int8]:
    ticks = (fractions * TICKS).round()
    if not np.allclose(ticks, fractions * TICKS, atol=1e-3):
        raise ValueError(f"translations that are not multiples of 1/{TICKS}")
    return (ticks % TICKS).astype(np.int8)


def _projector(
    rotations: FloatArray, translations: FloatArray, plane: FloatArray, point: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Mean of the operations that fix every point of the position {plane u + point}."""
    moved = rotations @ point + translations - point
    fixes = (np.abs(rotations @ plane - plane) < 1e-6).all((1, 2))
    fixes &= (np.abs(moved - moved.round()) < 1e-6).all(1)
    shifted = translations[fixes] - moved[fixes].round()
    return rotations[fixes].mean(0), shifted.mean(0)


def _coset_representatives(
    rotations: FloatArray, translations: FloatArray, point: FloatArray, centring: FloatArray
) -> IntArray:
    """First operation for each image of `point` that no lattice translation equates."""
    chosen: list[int] = []
    images: list[FloatArray] = []
    for index, image in enumerate(rotations @ point + translations):
        seen = np.array(images)[:, None] + centring - image if images else np.zeros((0, 1, 3))
        if not (np.abs(seen - seen.round()) < 1e-4).all(-1).any():
            chosen.append(index)
            images.append(image)
    return np.array(chosen)


def _on_position(
    point: FloatArray,
    rotations: FloatArray,
    translations: FloatArray,
    projector: FloatArray,
    offset: FloatArray,
) -> bool:
    """Whether an image of `point` lies on the position, up to a lattice translation."""
    cells = np.array(list(product((-1.0, 0.0, 1.0), repeat=3)))
    images = ((rotations @ point + translations) % 1)[:, None] + cells
    return bool((np.abs(images @ projector.T + offset - images) < 1e-4).all(-1).any())


def _primitive(centring: FloatArray) -> FloatArray:
    """(3, 3), rows: the usual primitive vectors for the centring translations, det > 0."""
    half = {tuple((2 * c).round().astype(int)) for c in centring}
    if len(centring) == 1:
        return np.eye(3)
    if len(centring) == 4:
        return np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    if len(centring) == 3:
        return np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3
    if (1, 1, 1) in half:
        return np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2
    if (1, 1, 0) in half:
        return np.array([[1, 1, 0], [-1, 1, 0], [0, 0, 2]]) / 2
    if (0, 1, 1) in half:
        return np.array([[2, 0, 0], [0, 1, -1], [0, 1, 1]]) / 2
    raise ValueError(f"unknown centring {centring.tolist()}")


def _polar(rotations: FloatArray) -> NDArray[np.bool_]:
    """(3,), axes along which every operation keeps the direction."""
    fixed = rotations.mean(0)  # projector on the invariant directions
    return np.abs(np.diag(fixed)) > 1e-6


def _holohedry(number: int) -> FloatArray:
    """Rotations that keep every lattice of the group's family, in its conventional basis."""
    family = lattice_family(number)
    signs = [np.diag(s) for s in product((1.0, -1.0), repeat=3)]
    if family == 0:
        return np.array([np.eye(3), -np.eye(3)])
    if family == 1:
        return np.array([s for s in signs if s[0, 0] == s[2, 2]])
    if family == 2:
        return np.array(signs)
    if family == 4:
        six = np.array([[1.0, -1, 0], [1, 0, 0], [0, 0, 1]])
        mirror = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
        turns = [np.linalg.matrix_power(six, n) for n in range(6)]
        half = [*turns, *(t @ mirror for t in turns)]
        return np.array([*half, *(-h for h in half)]).round()
    swaps = [np.eye(3)[list(order)] for order in permutations(range(3))]
    full = [s @ sign for s in swaps for sign in signs]
    return np.array([f for f in full if family == 5 or abs(f[2, 2]) == 1])


def _normalizer(
    number: int, rotations: FloatArray, translations: FloatArray, centring: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Coset representatives (W, w) with (W, w) G (W, w)⁻¹ = G, identity first."""
    step = (6, 6, 12) if lattice_family(number) == 4 else (8, 8, 8)
    axes = [
        np.array([0.0]) if polar else np.arange(n) / n
        for n, polar in zip(step, _polar(rotations), strict=True)
    ]
    grid = np.array(list(product(*axes)))
    lookup = {r.tobytes(): i for i, r in enumerate(rotations.astype(np.int8))}
    found: list[tuple[FloatArray, FloatArray]] = []
    for turn in _holohedry(number):
        turned = (turn @ rotations @ np.linalg.inv(turn)).round()
        partner = [lookup.get(r.astype(np.int8).tobytes()) for r in turned]
        if any(index is None for index in partner):
            continue
        # W t + w - R' w = t' (mod lattice) for every operation
        wanted = translations[np.array(partner, int)] - translations @ turn.T
        moved = grid[:, None] - np.einsum("mij,gj->gmi", turned, grid) - wanted
        gap = moved[:, :, None] - centring
        good = (np.abs(gap - gap.round()) < 1e-6).all(-1).any(-1).all(-1)
        for shift in grid[good]:
            if not _same_coset(turn, shift, found, rotations, translations):
                found.append((turn, shift))
    return np.array([f[0] for f in found]), np.array([f[1] for f in found])


def _same_coset(
    turn: FloatArray,
    shift: FloatArray,
    found: list[tuple[FloatArray, FloatArray]],
    rotations: FloatArray,
    translations: FloatArray,
) -> bool:
    """Whether g (W, w) equals an operation already found, for some g in the group."""
    images = rotations @ (turn @ GENERIC + shift) + translations
    others = np.array([other @ GENERIC + move for other, move in found]).reshape(-1, 1, 3)
    gap = images - others
    return bool((np.abs(gap - gap.round()) < 1e-6).all(-1).any())


if __name__ == "__main__":
    TABLES.parent.mkdir(exist_ok=True)
    np.savez_compressed(TABLES, allow_pickle=False, **build())
