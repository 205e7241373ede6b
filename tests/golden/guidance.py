"""Creates guidance.json: the results of diffusers' guiders in float64, for tests/guidance_methods_test.lua.

Needs diffusers and torch from PyPI:

    python tests/golden/guidance.py > tests/golden/guidance.json

Halves are [1 2 3 3 4] by the formula, at three noise levels. APG is asked about the predicted data, a frame at a
time, as its paper writes it; CFG-Zero* and perturbed attention about the predicted noise. CFG++ diffusers has not:
its sampler is written out here from algorithm 2 of arXiv 2406.08070.
"""

import json
import sys

import torch
from diffusers.guiders import ClassifierFreeZeroStarGuidance, PerturbedAttentionGuidance
from diffusers.guiders import adaptive_projected_guidance as apg
from formula import formula

SHAPE = (1, 2, 3, 3, 4)
LEVELS = (0.05, 0.6, 0.97)  # alpha squared

torch.set_default_dtype(torch.float64)


def halves(i):
    return tuple(formula(f"input:{name}.{i}", SHAPE) for name in ("x", "uncond", "cond"))


def flat(list_of_tensors):
    return [t.flatten().tolist() for t in list_of_tensors]


def apg_case(prediction, **options):
    buffer, out = apg.MomentumBuffer(options["momentum"]), []
    for i, level in enumerate(LEVELS):
        x, uncond, cond = halves(i + 1)
        alpha, sigma = level**0.5, (1 - level) ** 0.5

        def data(m):
            return (x - sigma * m) / alpha if prediction == "epsilon" else alpha * x - sigma * m

        guided = apg.normalized_guidance(data(cond), data(uncond), options["scale"] - 1, buffer, options["eta"],
                                         options["norm"], True, norm_dim=(-1, -2, -3))
        out.append((x - alpha * guided) / sigma if prediction == "epsilon" else (alpha * x - guided) / sigma)
    return dict(method="apg", prediction=prediction, **options, out=flat(out))


def zero_case(scale, zero_steps):
    out = []
    for i in range(3):
        _, uncond, cond = halves(i + 1)
        guider = ClassifierFreeZeroStarGuidance(guidance_scale=scale, zero_init_steps=zero_steps)
        guider._step = i
        out.append(guider.forward(cond, uncond).pred)
    return dict(method="zero_star", scale=scale, zero_steps=zero_steps, out=flat(out))


def pag_case(scale, pag):
    out = []
    for i in range(3):
        _, uncond, cond = halves(i + 1)
        perturbed = formula(f"input:perturbed.{i + 1}", SHAPE)
        guider = PerturbedAttentionGuidance(guidance_scale=scale - 1, use_original_formulation=True, perturbed_guidance_scale=pag,
                                            perturbed_guidance_layers=[0], perturbed_guidance_start=0.0, perturbed_guidance_stop=1.0)
        guider._step, guider._num_inference_steps = 1, 3  # inside of the guidance interval
        out.append(guider.forward(cond, uncond if scale > 1 else None, perturbed).pred)
    return dict(method="pag", scale=scale, pag=pag, out=flat(out))


def cfgpp_case(scale):
    """Algorithm 2 with DDIM's levels; both predictions are functions of x."""
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    x = formula("input:x.1", SHAPE)
    for t in range(801, 0, -200):
        a, b = alphas[t], alphas[max(t - 200, 0)]
        uncond, cond = 0.8 * torch.sin(1.7 * x + t / 250), 0.6 * torch.cos(1.1 * x - t / 400)
        guided = uncond + scale * (cond - uncond)
        x = b.sqrt() * (x - (1 - a).sqrt() * guided) / a.sqrt() + (1 - b).sqrt() * uncond
    return dict(method="cfgpp", scale=scale, out=flat([x]))


json.dump(
    [
        apg_case("epsilon", scale=3.0, eta=0.0, norm=0.0, momentum=0.0),
        apg_case("epsilon", scale=3.0, eta=0.3, norm=2.5, momentum=-0.5),
        apg_case("v", scale=7.5, eta=1.0, norm=4.0, momentum=-0.75),
        zero_case(2.0, 0),
        zero_case(5.0, 2),
        pag_case(2.0, 3.0),
        pag_case(1.0, 0.7),
        cfgpp_case(0.6),
        cfgpp_case(1.5),
    ],
    sys.stdout,
    separators=(",", ":"),
)
sys.stdout.write("\n")
