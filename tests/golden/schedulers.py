"""Creates schedulers.json: the results of diffusers' schedulers, for tests/schedulers_test.lua.

Needs diffusers, torch and scipy from PyPI:

    python tests/golden/schedulers.py > tests/golden/schedulers.json

All arithmetic is float64: the schedulers' modules see a `torch` and a `numpy` whose float32 is
float64. The network is eps = 0.8 sin(1.7 x + t / 250) + 0.1 x. Start and fresh noise come from the
project's formula (tests/support/formula.lua), so both sides have the same numbers.
"""

import importlib
import json
import sys

import numpy
import torch
from formula import formula as formula_of

SHAPE = (1, 4, 4)


def formula(name):
    return formula_of(name, SHAPE)


class Doubled:
    """A module whose float32 is float64."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, "float64" if name == "float32" else name)


torch.set_default_dtype(torch.float64)
drawn = 0


def fresh(shape, **_):
    global drawn
    drawn += 1
    return formula(f"input:fresh.{drawn}").reshape(shape)


def scheduler_class(name):
    import diffusers

    cls = getattr(diffusers, name)
    module = importlib.import_module(cls.__module__)
    module.torch, module.np = Doubled(torch), Doubled(numpy)
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = fresh
    return cls


SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def run(class_name, steps, step_options, config, whole):
    global drawn
    drawn = 0
    scheduler = scheduler_class(class_name)(**config)
    # For one case of each class the input is the complete file as diffusers writes it, including
    # -Infinity.
    given = json.dumps(dict(_class_name=class_name, **config))
    if whole:
        given = scheduler.to_json_string()
    scheduler.set_timesteps(steps)
    x = formula("input:sched") * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        eps = 0.8 * torch.sin(1.7 * scaled + t / 250) + 0.1 * scaled
        x = scheduler.step(eps, t, x, **step_options).prev_sample
    if x.dtype != torch.float64 or not torch.isfinite(x).all():
        sys.exit(f"{given} with {steps} steps gives {x.dtype}, {x.flatten()[:3]}")
    return dict(config=given, steps=steps, options=step_options,
                timesteps=[float(t) for t in scheduler.timesteps], final=x.flatten().tolist())


CASES = []


def case(class_name, steps=(6, 16), step_options=None, **config):
    first = not any(class_name in c["config"] for c in CASES)
    for n in steps if isinstance(steps, tuple) else (steps,):
        CASES.append(run(class_name, n, step_options or {}, {**SD, **config}, first))
        first = False


D, M, S = "DDIMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
case(D, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
case(D, 27, timestep_spacing="linspace", clip_sample=False)
case(D, 48, timestep_spacing="trailing", clip_sample=False)
case(D, 6, dict(eta=0.5), clip_sample=False)
case(D, 6, dict(eta=1.0), clip_sample=False, prediction_type="v_prediction")
case(D, 6, clip_sample=False, prediction_type="sample")
case(D, 6)  # clips
case(D, 6, clip_sample=False, thresholding=True, sample_max_value=1.5, dynamic_thresholding_ratio=0.8)
case(D, 6, clip_sample=False, beta_schedule="squaredcos_cap_v2")
case(D, 6, clip_sample=False, beta_schedule="linear", beta_start=0.0001, beta_end=0.02)

for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
    for order in (1, 2, 3):
        for solver in ("midpoint", "heun"):
            case(M, algorithm_type=algorithm, solver_order=order, solver_type=solver)
for order in (1, 2, 3):
    case(M, algorithm_type="dpmsolver", solver_order=order, final_sigmas_type="sigma_min")
    if order < 3:
        for solver in ("midpoint", "heun"):
            case(M, algorithm_type="sde-dpmsolver", solver_order=order, solver_type=solver, final_sigmas_type="sigma_min")
case(M, algorithm_type="dpmsolver", solver_type="heun", final_sigmas_type="sigma_min")
for way in ("karras", "exponential", "beta"):
    case(M, **{f"use_{way}_sigmas": True})
case(M, use_lu_lambdas=True)
case(M, 7, use_karras_sigmas=True, beta_schedule="squaredcos_cap_v2")
case(M, 6, solver_order=3, prediction_type="v_prediction", timestep_spacing="leading", steps_offset=1)
case(M, 6, prediction_type="sample", timestep_spacing="trailing")
case(M, 6, algorithm_type="dpmsolver", prediction_type="sample", final_sigmas_type="sigma_min")
case(M, 6, algorithm_type="dpmsolver", prediction_type="v_prediction", final_sigmas_type="sigma_min")
case(M, 6, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
case(M, 6, lower_order_final=False, final_sigmas_type="sigma_min", solver_order=3)
case(M, 16, euler_at_final=True, final_sigmas_type="sigma_min")
case(M, 6, thresholding=True, sample_max_value=1.5, dynamic_thresholding_ratio=0.8)
case(M, 6, algorithm_type="dpmsolver", thresholding=True, final_sigmas_type="sigma_min")
case(M, 6, lambda_min_clipped=-2.0)

for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
    for order in (1, 2, 3):
        for solver in ("midpoint", "heun"):
            case(S, (6, 7, 8), algorithm_type=algorithm, solver_order=order, solver_type=solver)
for order in (2, 3):
    for solver in ("midpoint", "heun"):
        case(S, (6, 7), algorithm_type="dpmsolver", solver_order=order, solver_type=solver, final_sigmas_type="sigma_min")
case(S, 6, use_karras_sigmas=True)
case(S, 6, use_exponential_sigmas=True, prediction_type="v_prediction")
case(S, 6, thresholding=True, prediction_type="sample")

U = "UniPCMultistepScheduler"
for order in (1, 2, 3, 4):
    case(U, solver_order=order)
case(U, solver_order=3, solver_type="bh1", final_sigmas_type="sigma_min")
case(U, solver_order=3, predict_x0=False, final_sigmas_type="sigma_min")
case(U, 6, predict_x0=False, final_sigmas_type="sigma_min", prediction_type="v_prediction")
case(U, 6, disable_corrector=[0, 2])
case(U, 6, lower_order_final=False, final_sigmas_type="sigma_min", solver_order=3)
case(U, 6, use_karras_sigmas=True, final_sigmas_type="sigma_min", prediction_type="v_prediction")
case(U, 6, use_exponential_sigmas=True)
case(U, 6, use_beta_sigmas=True, prediction_type="sample")
case(U, 6, timestep_spacing="leading", steps_offset=1, thresholding=True)
case(U, 6, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")

E = "DEISMultistepScheduler"
for order in (1, 2, 3):
    case(E, solver_order=order)
case(E, 6, solver_order=3, use_karras_sigmas=True, prediction_type="v_prediction")
case(E, 6, use_exponential_sigmas=True)
case(E, 6, use_beta_sigmas=True, prediction_type="sample")
case(E, 6, timestep_spacing="trailing", thresholding=True)

U = "EulerDiscreteScheduler"
case(U, timestep_spacing="leading", steps_offset=1)
case(U, 6, timestep_spacing="trailing", prediction_type="v_prediction")
case(U, 6, prediction_type="sample")
for way in ("karras", "exponential", "beta"):
    case(U, **{f"use_{way}_sigmas": True})
case(U, 6, use_karras_sigmas=True, sigma_min=0.1, sigma_max=12.0)
case(U, 6, final_sigmas_type="sigma_min")
case(U, 6, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
for prediction in ("epsilon", "v_prediction", "sample"):
    case(U, 6, dict(s_churn=2.0, s_tmin=0.5, s_tmax=10.0, s_noise=1.1), prediction_type=prediction)

A = "EulerAncestralDiscreteScheduler"
case(A)
case(A, 6, prediction_type="v_prediction", timestep_spacing="leading", steps_offset=1)
case(A, 6, timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction")

H = "HeunDiscreteScheduler"
case(H)
case(H, 6, timestep_spacing="leading", steps_offset=1, prediction_type="v_prediction")
case(H, 6, timestep_spacing="trailing", prediction_type="sample")
for way in ("karras", "exponential", "beta"):
    case(H, 6, **{f"use_{way}_sigmas": True})
case(H, 6, clip_sample=True, clip_sample_range=1.5)

L = "LMSDiscreteScheduler"
case(L)
case(L, 6, dict(order=2), timestep_spacing="leading", steps_offset=1)
case(L, 6, prediction_type="v_prediction", timestep_spacing="trailing")
case(L, 6, prediction_type="sample")
for way in ("karras", "exponential", "beta"):
    case(L, 6, **{f"use_{way}_sigmas": True})

P = "PNDMScheduler"
case(P, (1, 2, 6, 16), skip_prk_steps=True, steps_offset=1)
case(P, (4, 6, 16))  # starts with Runge-Kutta
case(P, 6, prediction_type="v_prediction", set_alpha_to_one=True)
case(P, 6, skip_prk_steps=True, timestep_spacing="linspace", prediction_type="v_prediction")
case(P, 6, skip_prk_steps=True, timestep_spacing="trailing")

C = "LCMScheduler"
case(C, (1, 4, 8))
case(C, 4, prediction_type="v_prediction", timestep_scaling=1.0, original_inference_steps=40)
case(C, 4, prediction_type="sample", clip_sample=True)
case(C, 4, thresholding=True, rescale_betas_zero_snr=False)

K = "KDPM2DiscreteScheduler"
case(K, (2, 6, 16))
case(K, 6, timestep_spacing="leading", steps_offset=1)
case(K, 6, timestep_spacing="trailing", prediction_type="v_prediction")
for way in ("karras", "exponential"):
    case(K, 6, **{f"use_{way}_sigmas": True})

A = "SASolverScheduler"
case(A, (2, 6, 16))
case(A, 16, predictor_order=3, corrector_order=4)
case(A, 6, predictor_order=1, corrector_order=3, prediction_type="v_prediction")
case(A, 16, timestep_spacing="leading", steps_offset=1, lower_order_final=True)
for way in ("karras", "exponential"):
    case(A, 6, **{f"use_{way}_sigmas": True})

T = "TCDScheduler"
case(T, (1, 4, 7), dict(eta=0.3))
case(T, 4, dict(eta=0.0), prediction_type="v_prediction")
case(T, 4, dict(eta=1.0), prediction_type="sample")
case(T, 4, dict(eta=0.3), rescale_betas_zero_snr=True, prediction_type="v_prediction")

import diffusers  # noqa: E402

json.dump(dict(diffusers=diffusers.__version__, torch=torch.__version__.split("+")[0], cases=CASES), sys.stdout,
          separators=(",", ":"))
sys.stdout.write("\n")
