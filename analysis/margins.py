"""Margins of this room. The plan's own thresholds stand in `search_spaces.rules`."""

from __future__ import annotations

CONTROL_MARGIN = 0.02
"""Token accuracy must exceed the best demonstration control by more than this share for a result to
count as "the demonstrations are read", or grid accuracy by `GRID_MARGIN`."""

GRID_MARGIN = 0.06
"""As `CONTROL_MARGIN`, for whole grids: two of the laptop's 36 are 5.6 points, and chance."""

GENERALISES = 0.05
"""Held-out pass@1 from which a trial "does generalise": the plan's lower success bound (5 %)."""
