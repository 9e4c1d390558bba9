"""What to try: the plan as typed data. Imports neither torch nor ray.

>>> import search_spaces
>>> search_spaces.experiment("overfit/E2b").title
'LPN variational encoder'
>>> [arm.id for arm in search_spaces.phase("phase1").experiments]
['E1a', 'E2a', 'E2b', 'E2c']
>>> search_spaces.space("halting").known
('overfit/E1a', 'overfit/E3a', 'overfit/E3b')
"""

from search_spaces.experiment import Experiment, Phase, Series, trial_id
from search_spaces.profiles import PROFILES, apply_profile, profile_requirements
from search_spaces.reference import DEFAULT_REVISION, REFERENCE, REVISIONS
from search_spaces.registry import (
    SERIES,
    experiment,
    experiments,
    phase,
    phases,
    resolve_target,
    series,
    targets,
)
from search_spaces.resolve import Resolved, resolve, resolve_all, resolve_decoder
from search_spaces.spaces import SPACES, space

__all__ = [
    "DEFAULT_REVISION",
    "PROFILES",
    "REFERENCE",
    "REVISIONS",
    "SERIES",
    "SPACES",
    "Experiment",
    "Phase",
    "Resolved",
    "Series",
    "apply_profile",
    "experiment",
    "experiments",
    "phase",
    "phases",
    "profile_requirements",
    "resolve",
    "resolve_all",
    "resolve_decoder",
    "resolve_target",
    "series",
    "space",
    "targets",
    "trial_id",
]
