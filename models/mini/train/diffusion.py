"""The noise schedule with which LatentSync is trained and sampled, and the UNet's inputs.

Ho et al., "Denoising Diffusion Probabilistic Models" (2020); Song et al., "Denoising Diffusion Implicit
Models" (2021); Ho & Salimans, "Classifier-Free Diffusion Guidance" (2022).
"""

import torch

STEPS = 1000


def alphas(device='cpu'):
    """Products of alphas, float32 [1000]: scaled-linear betas from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float().to(device)


def timesteps(count):
    """Leading spacing, offset 1, as the pipeline samples: 901, 801 ... 1 for ten."""
    ratio = STEPS // count
    return [i * ratio + 1 for i in reversed(range(count))]


def add_noise(x, noise, t, table):
    """x [B F h w C] at timesteps t [B]."""
    a = table[t].view(-1, 1, 1, 1, 1)
    return a.sqrt() * x + (1 - a).sqrt() * noise


def clean(x, eps, t, table):
    """The estimate of the clean latents from noisy ones and the predicted noise."""
    a = table[t].view(-1, 1, 1, 1, 1)
    return (x - (1 - a).sqrt() * eps) / a.sqrt()


@torch.no_grad()
def sample(predict, noise, cond, tokens, table, steps=10, guidance=1.5):
    """DDIM: predict(x, t, tokens) -> eps; noise [B F h w C], cond [B F h w 9], tokens [B F 50 D]."""
    x = noise
    silence = torch.zeros_like(tokens)
    ratio = STEPS // steps
    for step in timesteps(steps):
        t = torch.full((len(x),), step, device=x.device)
        shown = torch.cat([x, cond], dim=-1)
        eps = predict(shown, t, tokens)
        if guidance > 1:
            deaf = predict(shown, t, silence)
            eps = deaf + guidance * (eps - deaf)
        x0 = clean(x, eps, t, table)
        a = table[max(step - ratio, 0)]
        x = a.sqrt() * x0 + (1 - a).sqrt() * eps
    return x
