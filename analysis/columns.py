"""Every column of the tables that `analysis.load` returns: dtype, unit, what NaN means.

A name that ends in ``*`` stands for a family of columns (``eval/*``: whatever the rows hold).
Accuracies are shares between 0 and 1; the text reports show them in percent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["int", "float", "str", "any"]

WINDOW = "over the rows of the trial's last 10 % of steps"


@dataclass(frozen=True)
class Column:
    """One documented column (or, with a trailing ``*``, a family of columns)."""

    name: str
    dtype: Dtype
    unit: str
    nan: str
    meaning: str

    def covers(self, column: str) -> bool:
        """Whether this entry documents `column`."""
        if self.name.endswith("*"):
            return column.startswith(self.name[:-1])
        return column == self.name


_NEVER = "never NaN"
_NO_ROWS = "no row with this metric was written"
_NO_EVAL = "not evaluated (yet), or fewer candidates than k"
_NO_CONTROL = "the trial did not reach its last row, or reads no demonstrations (TRM)"
_NO_CONFIG = "config.json missing or of a version without this option"

_KEY = (
    Column("run", "str", "folder name", _NEVER, "run folder the trial lies in"),
    Column("trial_id", "str", "", _NEVER, "<series>-<ID>-s<seed>"),
    Column("experiment", "str", "", _NEVER, "series/ID"),
    Column("seed", "int", "", _NEVER, "seed of the trial"),
)

TRIALS: tuple[Column, ...] = (
    *_KEY,
    Column("series", "str", "", _NEVER, "series of the experiment"),
    Column("role", "str", "", _NEVER, "arm, or decoder (trained for the arms)"),
    Column("identity", "str", "hex", _NO_CONFIG, "hash of everything that decides the numbers"),
    Column(
        "status",
        "str",
        "",
        _NEVER,
        "pending, running, interrupted, finished, stopped, diverged or failed",
    ),
    Column("reason", "str", "", "none was given", "why the trial stopped, diverged or failed"),
    Column("attempts", "int", "count", _NEVER, "attempts that wrote a file"),
    Column("rows", "int", "count", _NEVER, "rows that are kept"),
    Column("step", "int", "optimizer steps", _NEVER, "steps done (0: none)"),
    Column("total_steps", "float", "optimizer steps", "no attempt started", "steps planned"),
    Column("epoch", "float", "passes over the groups", _NO_ROWS, "epochs done"),
    Column("samples", "float", "rows that began an ACT run", _NO_ROWS, "samples seen"),
    Column("wall_s", "float", "s", _NO_ROWS, "training seconds over all attempts"),
    Column("profile", "str", "", _NO_CONFIG, "laptop, workstation or paper"),
    Column("revision", "str", "", _NO_CONFIG, "revision of the plan"),
    Column("num_aug", "float", "count", _NO_CONFIG, "training augmentations per puzzle"),
    Column("eval_num_aug", "float", "count", _NO_CONFIG, "augmentations voted over"),
    Column("encoder_type", "str", "", _NO_CONFIG, "demonstration encoder"),
    Column("halt_max_steps", "float", "ACT steps", _NO_CONFIG, "most ACT steps of a sample"),
    Column("halt_exploration_prob", "float", "probability", _NO_CONFIG, "forced exploration"),
    Column("parameters", "float", "count", "not recorded", "trainable parameters of the model"),
    Column("accuracy", "float", "share", _NO_ROWS, f"train/accuracy, mean {WINDOW}"),
    Column("exact", "float", "share", _NO_ROWS, f"train/exact_accuracy, mean {WINDOW}"),
    Column("q_halt_accuracy", "float", "share", _NO_ROWS, f"of the Q-head, mean {WINDOW}"),
    Column("q_halt_base_rate", "float", "share", _NO_ROWS, f"of always guessing, mean {WINDOW}"),
    Column("steps", "float", "ACT steps", _NO_ROWS, f"train/steps, mean {WINDOW}"),
    Column("loss", "float", "per row", _NO_ROWS, f"train/loss, mean {WINDOW}"),
    Column("lm_loss", "float", "per row", _NO_ROWS, f"train/lm_loss, mean {WINDOW}"),
    Column("encoder_gradient", "float", "L2 norm", _NO_ROWS, f"grad/encoder_norm, mean {WINDOW}"),
    Column("decoder_gradient", "float", "L2 norm", _NO_ROWS, f"grad/decoder_norm, mean {WINDOW}"),
    Column("token_std", "float", "activation units", _NO_ROWS, f"of the context, mean {WINDOW}"),
    Column("best_accuracy", "float", "share", _NO_ROWS, "highest train/accuracy of a single row"),
    Column(
        "steps_to_80",
        "float",
        "optimizer steps",
        "never reached",
        "first row from which on three rows of train/accuracy are at least 80 %",
    ),
    Column("samples_to_80", "float", "samples", "never reached", "samples seen at steps_to_80"),
    Column("steps_to_90", "float", "optimizer steps", "never reached", "same for 90 %"),
    Column("samples_to_90", "float", "samples", "never reached", "samples seen at steps_to_90"),
    Column("epochs_to_80", "float", "passes over the groups", "never reached", "same in epochs"),
    Column("epochs_to_90", "float", "passes over the groups", "never reached", "same in epochs"),
    Column(
        "stability",
        "float",
        "loss per row",
        "fewer than three rows",
        "std of the differences of successive train/loss values, last third of the steps",
    ),
    Column("eval/*", "float", "share, count for scheduled and num_aug", _NO_EVAL, "last value"),
    Column("eval_raw/*", "float", "as eval/*", "not asked for", "the same with raw weights"),
    Column(
        "control/q_*",
        "float",
        "share",
        _NO_CONTROL,
        "calibration of the Q-head on the training puzzles, last row; see eval/q_* of the curves",
    ),
    Column("control/*", "float", "share", _NO_CONTROL, "demonstration controls, last row"),
    Column("drift/*", "float", "see curves", "no pretrained decoder", "last value"),
    Column("baseline/*", "float", "share", _NO_CONTROL, "trivial baselines, last row"),
    Column("interface/*", "float", "see architecture", "no puzzle table", "last value"),
    Column("result/*", "float", "as recorded", "not recorded", "other numbers of result.json"),
    Column("config/*", "any", "as configured", _NO_CONFIG, "one column per flat option"),
)

_CALIBRATION = (
    "calibration of the Q-head: q_rows/k, share of rows whose halting probability lies in tenth k; "
    "q_right/k, share of them that are right (NaN without any); q_halt_calibration_error, mean "
    "distance of the two, by rows"
)

CURVES: tuple[Column, ...] = (
    *_KEY,
    Column("attempt", "int", "", _NEVER, "attempt that wrote the row"),
    Column("step", "int", "optimizer steps", _NEVER, "steps done"),
    Column("epoch", "float", "passes over the groups", "not written", "epochs done"),
    Column("samples", "float", "rows that began an ACT run", "not written", "samples seen"),
    Column("time", "float", "s since 1970", "not written", "when the row was written"),
    Column("wall_s", "float", "s", "not written", "training seconds over all attempts"),
    Column("reason", "str", "", "the report reached no rung", "why it went on, copied or stopped"),
    *(
        Column(f"{family}/*", "float", unit, "not measured at this row, or not a number", meaning)
        for family, unit, meaning in (
            ("train", "share, loss per row, ACT steps, rate", "mean since the last row"),
            ("eval/q_rows", "share", _CALIBRATION),
            ("eval/q_right", "share", _CALIBRATION),
            ("control/q_rows", "share", _CALIBRATION),
            ("control/q_right", "share", _CALIBRATION),
            (
                "population",
                "count",
                "of a population's member: factor of its rate, copies behind its weights",
            ),
            ("eval", "share, count", "held-out groups"),
            ("eval_raw", "share, count", "held-out groups, raw weights"),
            ("grad", "L2 norm", "before clipping"),
            (
                "encoder",
                "activation units",
                "what the encoder gives: output_mean, _std, _min, _max, _norm, spread, similarity",
            ),
            (
                "decoder",
                "count, weight units",
                "the pretrained decoder against its file: tensors, tensors_equal (within 1e-5), "
                "max_difference, mean_difference; in the first row as it was loaded, with "
                "keys_loaded, keys_missing and ema (1: averaged weights, 0: raw); at evaluations "
                "while it is frozen",
            ),
            (
                "drift",
                "share, weight units",
                "the recursion's raw weights against the pretrained decoder's file, at evaluations "
                "(trained or frozen): relative, length of the difference by that of the file's "
                "weights; max, largest difference of one value",
            ),
            (
                "data",
                "count",
                "checks of a sample of training rows, in the first row: demos_per_row (mean), "
                "identifier_mismatches, augmentation_mismatches (rows that are not what their "
                "identifier says)",
            ),
            ("control", "share", "demonstration controls"),
            ("baseline", "share", "trivial baselines"),
            (
                "interface",
                "activation units",
                "the encoder's contexts (encoder_…) against the decoder's puzzle embeddings "
                "(puzzle_…): norm, mean, std, skew, kurtosis, and frechet, their distance; at "
                "prefix position 0, over all positions with the suffix _all",
            ),
        )
    ),
    Column("*", "any", "as written", "not written", "any further field of a row"),
)

_NO_OUTCOME = "the evaluation did not record it"

TASKS: tuple[Column, ...] = (
    *_KEY,
    Column("task", "str", "", _NEVER, "puzzle id"),
    Column("pairs", "float", "count", _NO_OUTCOME, "queries that were scored"),
    Column("answered_pairs", "float", "count", _NO_OUTCOME, "queries with a candidate"),
    Column(
        "candidates", "float", "count", _NO_OUTCOME, "different answers, summed over its queries"
    ),
    Column(
        "votes", "float", "count", _NO_OUTCOME, "predictions that voted, summed over its queries"
    ),
    Column(
        "best_rank",
        "float",
        "1 = most votes",
        "the true output of a query was never predicted",
        "rank of the true output, the worst over its queries",
    ),
    Column("pass@*", "float", "share of queries", "fewer than k candidates can exist", "solved"),
    Column("*", "any", "as written", "not written", "the evaluation's outcome for this puzzle"),
)

COLUMNS: dict[str, tuple[Column, ...]] = {"trials": TRIALS, "curves": CURVES, "tasks": TASKS}


def fixed(table: str) -> list[Column]:
    """Columns that `table` always has, also when it is empty."""
    return [column for column in COLUMNS[table] if not column.name.endswith("*")]


def describe(table: str, column: str) -> Column:
    """Documentation of a column. Raises KeyError when nothing documents it."""
    for entry in COLUMNS[table]:
        if entry.covers(column):
            return entry
    raise KeyError(f"{table}.{column}")
