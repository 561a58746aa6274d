import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.data.images.crops import Box, centred_square, shrink_for, shrunk, whole

SIDE = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("height", "width", "shrink"),
    [
        (224, 224, 1),
        (447, 2000, 1),
        (448, 448, 2),
        (448, 447, 1),
        (895, 900, 2),
        (896, 896, 4),
        (1792, 1792, 8),
        (9000, 9000, 8),
        (10, 10, 1),
    ],
)
def test_a_box_shrinks_by_powers_of_two_while_it_covers_the_target(height: int, width: int, shrink: int) -> None:
    assert shrink_for(Box(top=3, left=5, height=height, width=width), size=224) == shrink


@given(top=SIDE, left=SIDE, height=SIDE, width=SIDE, below=SIDE, right=SIDE, size=st.integers(1, 600))
def test_a_shrunk_box_lies_in_the_shrunk_image_and_covers_the_target(
    top: int, left: int, height: int, width: int, below: int, right: int, size: int
) -> None:
    box = Box(top=top, left=left, height=height, width=width)
    shrink = shrink_for(box, size=size)
    small = shrunk(box, shrink=shrink)
    assert small.top + small.height <= -(-(top + height + below) // shrink)
    assert small.left + small.width <= -(-(left + width + right) // shrink)
    if shrink > 1:
        assert min(small.height, small.width) >= size
    assert abs(small.top - top / shrink) <= 0.5
    assert abs(small.top + small.height - (top + height) / shrink) <= 0.5
    assert abs(small.left - left / shrink) <= 0.5
    assert abs(small.left + small.width - (left + width) / shrink) <= 0.5


def test_a_box_that_does_not_shrink_stays_as_it_is() -> None:
    box = Box(top=3, left=5, height=7, width=11)
    assert shrunk(box, shrink=1) == box


def test_whole_and_centre() -> None:
    assert whole(height=5, width=9) == Box(top=0, left=0, height=5, width=9)
    assert centred_square(height=5, width=9) == Box(top=0, left=2, height=5, width=5)
    assert centred_square(height=10, width=5) == Box(top=2, left=0, height=5, width=5)
