import numpy as np

from vision.serving.heat_map import GRID, cover_patches, heat_map


def test_each_copy_has_one_patch_of_the_mean_color() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    copies = cover_patches(pixels)
    changed = np.array([(copy != pixels).any(2) for copy in copies])
    assert changed.shape == (GRID**2, 32, 48)
    assert changed.any((1, 2)).all()
    assert changed.any(0).mean() > 0.99  # every pixel is covered by some patch, unless it has the mean color
    mean = pixels.mean((0, 1)).round()
    for copy, where in zip(copies, changed, strict=True):
        assert (copy[where] == mean).all()
        rows, columns = np.nonzero(where.any(1))[0], np.nonzero(where.any(0))[0]
        assert np.ptp(rows) < 8
        assert np.ptp(columns) < 12
    assert changed[0][:4, :6].mean() > 0.9  # the first is at the top left
    assert changed[GRID - 1][:4, -6:].mean() > 0.9
    assert changed[-1][-4:, -6:].mean() > 0.9


def test_the_map_is_one_where_the_class_loses_most_and_zero_where_it_gains() -> None:
    covered = np.full(GRID**2, 0.9)
    covered[10], covered[11], covered[12] = 0.2, 0.7, 0.99
    heat = heat_map(0.9, covered).ravel()
    assert heat[10] == 1
    assert 0 < heat[11] < 1
    assert heat[12] == 0
    assert heat[0] == 0


def test_a_sure_network_has_a_map_too() -> None:
    covered = np.full(GRID**2, 0.9999)
    covered[0] = 0.999
    heat = heat_map(1.0, covered).ravel()
    assert heat[0] == 1
    assert 0 < heat[1] < 1


def test_an_image_of_one_color_has_no_heat() -> None:
    pixels = np.full((32, 32, 3), 77, np.uint8)
    assert all((copy == pixels).all() for copy in cover_patches(pixels))
    assert (heat_map(0.5, np.full(GRID**2, 0.5)) == 0).all()
