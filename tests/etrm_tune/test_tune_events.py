"""What a user is told when Ray Tune raises."""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.error import TuneError
from ray.tune.trainable.metadata import _TrainingRunMetadata

from etrm_tune import reservations
from etrm_tune.run_folder import RunFolderError
from etrm_tune.tune_events import Follower, what_to_tell

PLACE = Path("/runs/run/tune")


def wrapped(error: Exception) -> TuneError:
    """As Ray Tune does with whatever a callback raised."""
    try:
        try:
            raise error
        except Exception:
            raise TuneError(traceback.format_exc())  # noqa: B904 - so does Ray
    except TuneError as outer:
        return outer


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_found_behind_ray_tunes_own_error(number: int) -> None:
    full = OSError(number, os.strerror(number))
    as_text = TuneError(str(wrapped(full)))  # the chain is lost between two processes
    for error in (full, wrapped(full), as_text):
        told = what_to_tell(error, PLACE)
        assert isinstance(told, RunFolderError)
        assert str(PLACE) in str(told) and "\n" not in str(told) and "Traceback" not in str(told)


def test_a_line_for_the_user_comes_through_ray_tune_as_it_was() -> None:
    line = RunFolderError("cannot write here: free some space")
    assert what_to_tell(wrapped(line), PLACE) is line


def test_other_errors_keep_their_traceback() -> None:
    for error in (wrapped(RuntimeError("a defect")), OSError(errno.EIO, "broken"), KeyError("x")):
        assert what_to_tell(error, PLACE) is None


def test_an_error_of_ours_in_an_event_ends_the_run_not_the_trial() -> None:
    def finish(*ended: Any) -> None:
        raise RunFolderError("cannot write here: free some space")

    quiet: Any = SimpleNamespace(refresh=lambda: None, check=lambda: None)
    conductor: Any = SimpleNamespace(finish=finish, table=quiet, signals=quiet)
    scheduler: Any = SimpleNamespace(reasons={})
    follower = Follower(conductor, {"a": None}, scheduler)  # type: ignore[dict-item]
    trial: Any = SimpleNamespace(config={"trial_id": "a"}, run_metadata=None)
    follower.on_step_end(1, [])
    follower.on_trial_complete(1, [], trial)  # raised here, Ray Tune would run the trial again
    with pytest.raises(RunFolderError, match="free some space"):
        follower.on_step_end(1, [])


@pytest.mark.parametrize("event", ["on_trial_complete", "on_trial_error"])
def test_tunes_statistics_of_a_trial_go_with_its_end(event: str) -> None:
    kept: Any = _TrainingRunMetadata(n_steps=(5, 10))
    for name in ("loss", "accuracy"):
        kept.update_metric(name, 0.5)
    full = len(kept.get_json_state())
    conductor: Any = SimpleNamespace(finish=lambda *ended: None)
    scheduler: Any = SimpleNamespace(reasons={})
    follower = Follower(conductor, {"a": None}, scheduler)  # type: ignore[dict-item]
    trial: Any = SimpleNamespace(config={"trial_id": "a"}, run_metadata=kept, error_file=None)
    getattr(follower, event)(1, [], trial)
    assert follower.error is None
    assert not kept.metric_n_steps and not kept.metric_analysis
    assert len(kept.get_json_state()) < full / 2


def test_a_ray_that_does_not_answer_about_reservations_ends_no_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent() -> None:
        raise RuntimeError("Failed to connect to GCS")

    monkeypatch.setattr(reservations, "_orphans", silent)
    assert reservations.release_orphans() == 0
