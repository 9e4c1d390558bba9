"""Placement groups that nobody will give back.

A controller of Ray Train makes the group of its workers, and tells a helper of it only once every
worker has started. A trial whose process dies in between (killed, out of memory) takes its
controller with it and leaves the group: Ray frees a group that an actor made when the *job* ends,
so its CPUs and GPUs were lost for the rest of the run, and the trial's own restart waited for them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

logger = logging.getLogger(__name__)

RELEASE_S = 5.0
"""Seconds between two looks. A look takes a millisecond."""


def release_orphans() -> int:
    """Remove the placement groups of this job whose creator was an actor that is dead.

    Returns their number; 0 where this version of Ray does not say who made a group. A look that
    fails, because Ray does not answer, costs nothing: there is another one later.
    """
    removed = 0
    try:
        for group in _orphans():
            logger.info("placement group %s: its actor is dead: removed", group.id.hex())
            remove_placement_group(group)
            removed += 1
    except (ray.exceptions.RayError, RuntimeError):
        logger.debug("placement groups could not be looked at", exc_info=True)
    return removed


def _orphans() -> Iterator[PlacementGroup]:
    job = ray.get_runtime_context().get_job_id()
    for group in _table():
        of_an_actor = not ray.ActorID(group.creator_actor_id).is_nil()
        ours = group.creator_job_id.hex() == job and not group.is_detached
        if ours and of_an_actor and group.creator_actor_dead and group.state != group.REMOVED:
            yield PlacementGroup(ray.PlacementGroupID(group.placement_group_id))


def _table() -> list[Any]:
    """Ray's own records of all groups: what is public of them does not name the creator."""
    try:
        from ray._private.state import state
        from ray.core.generated.gcs_pb2 import PlacementGroupTableData

        records = state._connect_and_get_accessor().get_placement_group_table()
        return [PlacementGroupTableData.FromString(record) for record in records]
    except (ImportError, AttributeError):
        return []
