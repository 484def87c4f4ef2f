"""Choices and limits of settings that several packages check."""

from typing import Literal

Optimiser = Literal["adam", "lbfgs", "gradient"]
Move = Optimiser | Literal["sign", "unit", "whole"]  # what `opsin.optimise.recipe.Recipe` knows besides

LARGEST_INT = 2**63 - 1  # the largest integer that torch accepts
MOST_PIXELS = 2**15  # most pixels along a side of a generated picture, and in settings of its transforms
MOST_TEXTURE = 2048  # pixels along a side of a texture that is made without a network
MOST_EXPONENT = 20  # of a prior: this power of a picture and its gradient are still finite
DEFAULT_NETWORK = "googlenet"  # its weights come with the install

# the features of a grey-level co-occurrence matrix: IBSI's 25, then Haralick's last
Feature = Literal[
    "joint_maximum",
    "joint_average",
    "joint_variance",
    "joint_entropy",
    "difference_average",
    "difference_variance",
    "difference_entropy",
    "sum_average",
    "sum_variance",
    "sum_entropy",
    "angular_second_moment",
    "contrast",
    "dissimilarity",
    "inverse_difference",
    "normalised_inverse_difference",
    "inverse_difference_moment",
    "normalised_inverse_difference_moment",
    "inverse_variance",
    "correlation",
    "autocorrelation",
    "cluster_tendency",
    "cluster_shade",
    "cluster_prominence",
    "information_correlation_1",
    "information_correlation_2",
    "maximal_correlation",
]
Cut = Literal["width", "range", "share"]
Convention = Literal["ibsi", "haralick", "scikit-image"]
Over = Literal["merged", "average"]
MOST_LEVELS = 256  # grey levels of a co-occurrence matrix
