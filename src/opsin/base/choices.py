"""Choices and limits of settings that several packages check."""

from typing import Literal

Optimiser = Literal["adam", "lbfgs", "gradient"]
Move = Optimiser | Literal["sign", "unit", "whole"]  # what `opsin.optimise.recipe.Recipe` knows besides

LARGEST_INT = 2**63 - 1  # the largest integer that torch accepts
MOST_PIXELS = 2**15  # most pixels along a side of a generated picture, and in settings of its transforms
MOST_EXPONENT = 20  # of a prior: this power of a picture and its gradient are still finite
DEFAULT_NETWORK = "googlenet"  # its weights come with the install
