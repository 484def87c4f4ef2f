"""The words and limits of settings that several rooms check."""

from typing import Literal

Optimiser = Literal["adam", "lbfgs", "gradient"]

LARGEST_INT = 2**63 - 1  # whole number that torch takes
MOST_PIXELS = 2**15  # along a side of a picture that is made, and of what is done to one
MOST_EXPONENT = 20  # of a prior: such a power of a picture is still a number, and so is its gradient
