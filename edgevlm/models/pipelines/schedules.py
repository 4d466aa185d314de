"""The steps of a pipeline's own scheduler, as constants of a manifest.

diffusers' scheduler is asked for its timesteps and sigmas, so they are the truth; what makes the
next latents of them is in `runtimes/steps`.
"""

from __future__ import annotations

from typing import Any

from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.errors import PlanError
from edgevlm.libraries import first_line
from edgevlm.models.documents import check_config
from edgevlm.models.pipelines.checkpoint import PipelineCheckpoint

CONFIG = "scheduler/scheduler_config.json"
# The sampler of each scheduler, and the options that it computes with, where the config may have
# others: each with the value that is expected.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "FlowMatchEulerDiscreteScheduler": ("euler", {"stochastic_sampling": False}),
    "UniPCMultistepScheduler": (
        "unipc",
        {
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "predict_x0": True,
            "solver_order": 2,
            "solver_type": "bh2",
            "lower_order_final": True,
            "thresholding": False,
            "disable_corrector": [],
            "solver_p": None,
            "final_sigmas_type": "zero",
        },
    ),
}


def schedule_of(checkpoint: PipelineCheckpoint, steps: int) -> Schedule:
    """The schedule of a pipeline for so many steps.

    Raises:
        ModelError: If its config has numbers without a meaning.
        PlanError: If its scheduler is not one of flow matching that has a sampler here.
    """
    config = checkpoint.document(CONFIG)
    check_config(config, CONFIG)
    name = str(config.get("_class_name"))
    if name not in SCHEDULERS:
        raise PlanError(
            f"scheduler '{name[:80]}' has no sampler here: known are those of flow matching,"
            f" {' and '.join(SCHEDULERS)}"
        )
    import diffusers

    sampler, options = SCHEDULERS[name]
    try:
        scheduler: Any = getattr(diffusers, name).from_config(config)
        for option, expected in options.items():
            if (value := scheduler.config[option]) != expected:
                raise PlanError(f"{CONFIG}: {option} is {value!r:.60}, expected {expected!r}")
        scheduler.set_timesteps(steps)
    except PlanError:
        raise
    except Exception as cause:  # options that do not go together raise anything
        raise PlanError(f"{CONFIG} makes no schedule: {first_line(cause)}") from cause
    times = tuple(float(time) for time in scheduler.timesteps)
    return Schedule(sampler, times, tuple(float(sigma) for sigma in scheduler.sigmas))
