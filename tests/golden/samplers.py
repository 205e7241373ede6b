"""Creates samplers.json: the results of k-diffusion's samplers and ComfyUI's ER-SDE in float64, for tests/samplers_test.lua.

    python tests/golden/samplers.py K_DIFFUSION COMFY > tests/golden/samplers.json

K_DIFFUSION is k_diffusion/sampling.py of github.com/crowsonkb/k-diffusion, COMFY a file with ComfyUI's functions
sample_er_sde, sample_res_multistep and sample_gradient_estimation, and restart_sampler of AUTOMATIC1111's program with
noise_sampler(from, to) in place of randn; both are run, none of it is here. The network is that of
schedulers.py; samples are divided by their share of the signal, as these programs have them. Start and fresh noise come from
the project's formula.
"""

import inspect
import json
import math
import sys
import types

import numpy
import torch
from formula import formula

SHAPE = (1, 4, 4)
torch.set_default_dtype(torch.float64)

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
LOGS = (((1 - ALPHAS) / ALPHAS) ** 0.5).log().numpy()
SIGMAS = [14.0, 7.5, 4.1, 2.2, 1.2, 0.6, 0.25, 0.0]


def load(path, name):
    """A file of Python as a module, with what it imports but these samplers do not need left empty."""
    for missing in ("torchdiffeq", "torchsde", "tqdm", "tqdm.auto", "scipy", "scipy.integrate", "comfy"):
        if missing not in sys.modules:
            sys.modules[missing] = types.ModuleType(missing)
    sys.modules["torchdiffeq"].odeint = None
    sys.modules["tqdm.auto"].trange = lambda n, **_: range(n)
    sys.modules["tqdm.auto"].tqdm = None
    sys.modules["scipy"].integrate = sys.modules["scipy.integrate"]
    package = types.ModuleType(name)
    package.__path__ = []
    sys.modules[name] = package
    utils = types.ModuleType(name + ".utils")
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    sys.modules[name + ".utils"] = package.utils = utils
    module = types.ModuleType(name + ".sampling")
    module.__package__ = name
    module.__dict__.update(torch=torch, math=math, trange=lambda n, **_: range(n))
    with open(path) as f:
        exec(compile(f.read(), path, "exec"), module.__dict__)
    return module


class Network:
    """The predicted sample of z = x / alpha."""

    class inner_model:
        class model_patcher:
            @staticmethod
            def get_model_object(_):
                return None

    def __call__(self, z, sigma, **_):
        sigma = float(sigma[0])
        x = z / (sigma * sigma + 1) ** 0.5
        t = float(numpy.interp(math.log(sigma), LOGS, numpy.arange(1000)))
        eps = 0.8 * torch.sin(1.7 * x + t / 250) + 0.1 * x
        return z - sigma * eps


class Noise:
    """Fresh noise by the formula; that of a whole step goes on from its first part's where it begins at the same level."""

    def __init__(self):
        self.drawn, self.before = 0, None

    def __call__(self, a, b):
        a, b = float(a), float(b)
        self.drawn += 1
        fresh = formula(f"input:fresh.{self.drawn}", SHAPE)
        if self.before and self.before[0] == a:
            share = (a - self.before[1]) / (a - b)
            return math.sqrt(share) * self.before[2] + math.sqrt(1 - share) * fresh
        self.before = (a, b, fresh)
        return fresh


def case(spec, function, **options):
    sigmas = torch.tensor(SIGMAS)
    z = formula("input:sched", SHAPE) * SIGMAS[0]
    noise = dict(noise_sampler=Noise()) if "noise_sampler" in inspect.signature(function).parameters else {}
    with torch.no_grad():
        z = function(Network(), z, sigmas, disable=True, **noise, **options)
    if z.dtype != torch.float64 or not torch.isfinite(z).all():
        sys.exit(f"{spec} gives {z.dtype}, {z.flatten()[:3]}")
    return dict(spec=spec, final=z.flatten().tolist())


k, comfy = load(sys.argv[1], "k_diffusion"), load(sys.argv[2], "comfy_k")
comfy.offset_first_sigma_for_snr = lambda sigmas, _: sigmas
comfy.sigma_to_half_log_snr = lambda sigma, _: -sigma.log()
comfy.to_d = k.to_d
comfy.get_ancestral_step = k.get_ancestral_step
comfy.default_noise_sampler = None
comfy.get_sigmas_karras = k.get_sigmas_karras

json.dump(
    dict(
        sigmas=SIGMAS,
        cases=[
            case("dpmpp_2s_ancestral", k.sample_dpmpp_2s_ancestral),
            case("dpmpp_2s_ancestral:eta=0.6,s_noise=0.9", k.sample_dpmpp_2s_ancestral, eta=0.6, s_noise=0.9),
            case("dpmpp_sde", k.sample_dpmpp_sde),
            case("dpmpp_sde:eta=0.6,s_noise=0.9", k.sample_dpmpp_sde, eta=0.6, s_noise=0.9),
            case("kdpm2", k.sample_dpm_2),
            case("kdpm2_ancestral", k.sample_dpm_2_ancestral),
            case("kdpm2_ancestral:eta=0.6,s_noise=0.9", k.sample_dpm_2_ancestral, eta=0.6, s_noise=0.9),
            case("euler_ancestral:eta=0.6,s_noise=0.9", k.sample_euler_ancestral, eta=0.6, s_noise=0.9),
            case("dpmpp_2m_sde:eta=0.6,s_noise=0.9,lower_order_final=false", k.sample_dpmpp_2m_sde, eta=0.6, s_noise=0.9),
            case("dpmpp_2m_sde:solver=heun,lower_order_final=false", k.sample_dpmpp_2m_sde, solver_type="heun"),
            case("er_sde", comfy.sample_er_sde),
            case("er_sde_2:s_noise=0.5", comfy.sample_er_sde, max_stage=2, s_noise=0.5),
            case("er_sde_1", comfy.sample_er_sde, max_stage=1),
            case("gradient_estimation", comfy.sample_gradient_estimation),
            case("gradient_estimation:gamma=1.5", comfy.sample_gradient_estimation, ge_gamma=1.5),
            case("res_multistep", comfy.sample_res_multistep),
            # Its number of levels is our number of steps plus one, and the last level is cut off.
            case("restart:restart_min=0.25,restart_max=2.2,restart_steps=4,restarts=2,s_noise=0.9", comfy.restart_sampler,
                 restart_list={0.25: [5, 2, 2.2]}, s_noise=0.9),
        ],
    ),
    sys.stdout,
    separators=(",", ":"),
)
sys.stdout.write("\n")
