"""Searches beyond the plan: one space per question, each around the control of `overfit`.

A space varies few options; several are searched together by naming them: ``space("halting,lr")``.
What would contradict itself or have no effect is never generated: an encoder's options are active
for the encoders that read them, halting and exploration only where a mode halts.
"""

from __future__ import annotations

from collections.abc import Iterable

from search_spaces.common import DEEP_ENCODER
from search_spaces.domains import Choice, Float, Int
from search_spaces.parameters import Follows, Parameter, Space, When
from trainable.encoder_options import ENCODER_FACTS, VARIATIONAL_ENCODERS
from trainable.errors import ConfigError, nearest

HALTS: When = {"encode_mode": ("reencode", "cached")}
"""`online` has a fixed number of ACT steps and does not explore."""

ETRM_ENCODERS = tuple(name for name, facts in ENCODER_FACTS.items() if not facts.recurrent)
HYBRID = ("hybrid_standard", "hybrid_variational")
LPN = ("lpn_standard", "lpn_variational", "lpn_variational_v2")


def _reading(option: str) -> When:
    """The encoders that read `option`."""
    readers = (name for name in ETRM_ENCODERS if option in ENCODER_FACTS[name].effective)
    return {"encoder_type": tuple(readers)}


ENCODER_PARAMETERS = (
    Parameter("encoder_type", Choice(ETRM_ENCODERS), "Which architecture?"),
    # Depth by family, around the plan's 2 and 4, 4, and 4 and 6.
    Parameter("encoder_num_layers", Int(1, 4), "How deep?", tag="standard",
              when={"encoder_type": ("standard", "variational")}),
    Parameter("encoder_num_layers", Int(2, 6), "How deep?", tag="hybrid",
              when={"encoder_type": HYBRID}),
    Parameter("encoder_num_layers", Int(2, 8), "How deep?", tag="lpn",
              when={"encoder_type": LPN}),
    Parameter("encoder_set_layers", Int(1, 3), "How much work over the demonstrations?",
              when=_reading("encoder_set_layers")),
    Parameter("encoder_norm_style", Choice(("post", "pre")), "Where is it normalised?",
              when=_reading("encoder_norm_style")),
    Parameter("encoder_pooling_method", Choice(("mean", "attention", "weighted", "cls")),
              "How do cells become one vector?", when=_reading("encoder_pooling_method")),
    Parameter("encoder_layer_scale_init", Choice((0.0, 1e-4)), "Do branches start small?",
              when=_reading("encoder_layer_scale_init")),
    Parameter("encoder_qk_norm", Choice((False, True)), "Are queries and keys normalised?",
              when=_reading("encoder_qk_norm")),
    Parameter("lpn_latent_dim", Choice((32, 128, 512)), "How wide is the latent?",
              when=_reading("lpn_latent_dim")),
    Parameter("kl_weight", Float(1e-6, 1e-2, log=True), "How strong is the regularization?",
              when={"encoder_type": tuple(sorted(VARIATIONAL_ENCODERS))}),
)  # fmt: skip

SPACES: dict[str, Space] = {
    space.name: space
    for space in (
        Space(
            "halting", "How many ACT steps are worth their time?",
            (Parameter("halt_max_steps", Choice((4, 8, 16, 32)), "Efficiency, complexity.",
                       when=HALTS),),
            known=("overfit/E1a", "overfit/E3a", "overfit/E3b"),
        ),
        Space(
            "exploration", "Which exploration lets the Q-head learn?",
            (Parameter("halt_exploration_prob", Float(0.0, 0.9), "More diverse, more random.",
                       when=HALTS),),
            known=("overfit/E1a", "overfit/E1b", "overfit/E1c", "overfit/E1d", "overfit/E1e"),
        ),
        Space(
            "mode", "Which training mode, and with how many online steps?",
            (
                Parameter("encode_mode", Choice(("reencode", "cached", "online")), "Which mode?"),
                Parameter("num_act_steps", Choice((2, 4, 8, 16)), "Updates per batch.",
                          when={"encode_mode": ("online",)}),
            ),
            known=("overfit/E1a",),
        ),
        Space(
            "encoder", "Which encoder, how deep, how pooled, how regularized?",
            ENCODER_PARAMETERS,
            follows=(
                Follows({"global_batch_size": 128, "batch_size_reason": DEEP_ENCODER},
                        when={"encoder_type": HYBRID + LPN}),
            ),
            known=("overfit/E1a", "overfit/E2a", "overfit/E2b", "overfit/E2c", "overfit/E2d"),
        ),
        Space(
            "lr", "Which rate, warmed up for how long?",
            (
                Parameter("lr", Float(1e-5, 1e-3, log=True), "Rate of every AdamATan2 group."),
                Parameter("lr_warmup_steps", Choice((500, 1_000, 2_000)), "Early stability."),
            ),
            known=("overfit/E1a", "overfit/E5a_low", "overfit/E5a_high"),
        ),
        Space(
            "encoder_lr", "Does the encoder need a rate of its own?",
            (Parameter("encoder_lr_scale", Float(0.1, 10.0, log=True), "Encoder by decoder."),),
            known=("overfit/E1a",),
        ),
        Space(
            "regularization", "How much decay and clipping?",
            (
                Parameter("weight_decay", Float(1e-3, 1.0, log=True), "Decay of every weight."),
                Parameter("grad_clip_norm", Choice((0.0, 0.5, 1.0, 2.0)), "0: not clipped."),
            ),
            known=("overfit/E1a",),
        ),
        Space(
            "batch", "Frequent or stable updates?",
            (Parameter("global_batch_size", Choice((64, 128, 256, 512)), "Rows per update."),),
            known=("overfit/E1a", "overfit/E5b_small", "overfit/E5b_large"),
        ),
        Space(
            "start", "From which decoder, and frozen for how long?",
            (
                Parameter("pretrained_decoder", Choice((True, False)), "Pretrained or not?"),
                Parameter("freeze_decoder_steps", Choice((0, 250, 1_000)), "Encoder first?",
                          when={"pretrained_decoder": (True,)}),
            ),
            known=("overfit/E1a", "overfit/E4a"),
        ),
    )
}  # fmt: skip


def space(name: str | Iterable[str]) -> Space:
    """A space by name, or several joined: ``space("halting")``, ``space("halting,lr")``.

    The known points of a joined space are those of its members, each with the base's values in the
    other members' options. Raises `ConfigError` for an unknown name (naming the nearest), and for
    spaces that vary the same option or have different bases.
    """
    words = name.split(",") if isinstance(name, str) else list(name)
    words = list(dict.fromkeys(word.strip() for word in words if word.strip()))
    if not words:
        raise ConfigError(f"no space given: choose from {', '.join(SPACES)}")
    for word in words:
        if word not in SPACES:
            raise ConfigError(
                f"unknown space {word!r}{nearest(word, SPACES)}: choose from {', '.join(SPACES)}"
            )
    return join([SPACES[word] for word in words])


def join(spaces: list[Space]) -> Space:
    """One space over the parameters of several; see `space`."""
    if len(spaces) == 1:
        return spaces[0]
    owner: dict[str, str] = {}
    for one in spaces:
        if one.base != spaces[0].base:
            raise ConfigError(f"spaces {spaces[0].name} and {one.name} have different bases")
        for option in {parameter.option for parameter in one.parameters}:
            if option in owner:
                raise ConfigError(
                    f"spaces {owner[option]} and {one.name} both vary {option}: leave one out"
                )
            owner[option] = one.name
    return Space(
        name=",".join(one.name for one in spaces),
        question=" ".join(one.question for one in spaces),
        parameters=_ordered([p for one in spaces for p in one.parameters]),
        base=spaces[0].base,
        follows=tuple(rule for one in spaces for rule in one.follows),
        known=tuple(dict.fromkeys(name for one in spaces for name in one.known)),
    )


def _ordered(parameters: list[Parameter]) -> tuple[Parameter, ...]:
    """The same parameters, each after those that its condition reads."""
    ordered: list[Parameter] = []
    waiting = list(parameters)
    while waiting:
        open_options = {parameter.option for parameter in waiting}
        ready = next(p for p in waiting if not open_options & p.when.keys())
        waiting.remove(ready)
        ordered.append(ready)
    return tuple(ordered)
