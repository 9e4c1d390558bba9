"""The Gaussian bottleneck of the variational encoders: sampling and its KL term, in float32.

Noise is drawn per row, also where rows share a demonstration set. Shape legend: B rows, U sets, K
slots, Z latent width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trainable.models.encoders.base import DemoSets, EncoderOutput, masked_mean
from trainable.models.transfer import upload
from trainable.random import RowGenerator

CLAMP = 10.0
"""Bound of the log-variance where an encoder clamps it."""


class Latent(NamedTuple):
    """A sample `z` (B, Z) and the terms of its distribution, float32."""

    z: Tensor
    kl_loss: Tensor
    kl_rows: Tensor
    mu: Tensor
    logvar: Tensor

    def output(self, context: Tensor) -> EncoderOutput:
        """The encoder's output: `context`, and z in its dtype as the pooled vector."""
        return EncoderOutput(context, self.z.to(context.dtype), *self[1:])


def kl_to_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp logvar) ‖ N(0, I)) summed over the last axis, float32."""
    mu, logvar = mu.float(), logvar.float()
    return -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(-1)


def sample(mu: Tensor, logvar: Tensor, noise: RowGenerator, *, training: bool) -> Tensor:
    """mu + exp(logvar / 2) · ε in training, mu in evaluation; the first axis is rows."""
    if not training:
        return mu
    epsilon = upload(noise.randn(*mu.shape), mu.device).to(mu.dtype)
    return mu + torch.exp(0.5 * logvar) * epsilon


def per_row(
    sets: DemoSets, mu: Tensor, logvar: Tensor, noise: RowGenerator, *, training: bool
) -> Latent:
    """One Gaussian per set (U, Z). The scalar KL is the mean over rows."""
    mu, logvar = sets.to_rows(mu), sets.to_rows(logvar)
    kl_rows = kl_to_standard_normal(mu, logvar)
    z = sample(mu, logvar, noise, training=training)
    return Latent(z, kl_rows.mean(), kl_rows, mu, logvar)


def per_demo(
    sets: DemoSets, mu: Tensor, logvar: Tensor, noise: RowGenerator, *, training: bool
) -> Latent:
    """One Gaussian per demonstration (U, K, Z); z, mu and logvar are means over a row's.

    The scalar KL is the mean over the demonstrations of the batch, a row's over its own.
    """
    mu, logvar, mask = sets.to_rows(mu), sets.to_rows(logvar), sets.to_rows(sets.mask)
    z = sample(mu, logvar, noise, training=training)
    kl = kl_to_standard_normal(mu, logvar) * mask
    return Latent(
        masked_mean(z, mask),
        kl.sum() / mask.sum().clamp_min(1),
        kl.sum(1) / mask.sum(1).clamp_min(1),
        masked_mean(mu, mask),
        masked_mean(logvar, mask),
    )
