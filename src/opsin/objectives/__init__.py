"""Objectives on a network's activations and on the image, and their text form (`parsing`)."""

from opsin.objectives.features import content_match as content_match
from opsin.objectives.features import diversity as diversity
from opsin.objectives.features import dream_match as dream_match
from opsin.objectives.features import gram as gram
from opsin.objectives.features import gram_match as gram_match
from opsin.objectives.features import match as match
from opsin.objectives.features import summed as summed
from opsin.objectives.objective import Combine as Combine
from opsin.objectives.objective import Objective as Objective
from opsin.objectives.objective import Place as Place
from opsin.objectives.objective import Term as Term
from opsin.objectives.priors import norm as norm
from opsin.objectives.priors import total_variation as total_variation
from opsin.objectives.units import channel as channel
from opsin.objectives.units import direction as direction
from opsin.objectives.units import each as each
from opsin.objectives.units import energy as energy
from opsin.objectives.units import logit as logit
from opsin.objectives.units import neuron as neuron
from opsin.objectives.units import pinned as pinned
from opsin.objectives.units import predicted as predicted
from opsin.objectives.units import separated as separated
from opsin.objectives.units import strongest as strongest
from opsin.objectives.units import unit as unit
