"""A plan as text, for people."""

from vitscale.plan.plan import Plan, resolve
from vitscale.run_config import RunConfig, dump_run_config

_GIB = 2**30


def describe_run(config: RunConfig, *, plan: Plan) -> str:
    """What a dry run shows: the configuration as it would lie in the run directory, a line of dashes, the plan."""
    return f"{dump_run_config(resolve(config, plan=plan))}---\n{describe_plan(plan)}"


def describe_plan(plan: Plan) -> str:
    """A few aligned lines: what will happen, predicted memory, and the reason for each choice that was left open."""
    memory = plan.memory
    rows = [
        ("parameters", f"{plan.num_parameters:,}"),
        ("FLOPs", f"{plan.step_flops_per_image / 1e9:,.4g} G per image, forward and backward"),
        ("steps", f"{plan.num_steps:,} of {plan.global_batch} images"),
        ("processes", f"{plan.world_size} x {plan.device}, {plan.precision}, ZeRO stage {plan.zero_stage}"),
        ("batch", f"{plan.world_size} ranks x {plan.micro_batch} images x {plan.accumulation} accumulated"),
        ("recompute", plan.recompute if plan.recompute == "none" else f"{plan.recompute}, every {plan.recompute_every} block(s)"),
        ("order", "as the stream comes" if plan.lanes is None else f"{plan.lanes} lanes"),
        (
            "memory per rank",
            f"{memory.total / _GIB:.2f} GiB predicted of {plan.memory_available_bytes / _GIB:.1f}: weights {memory.weights / _GIB:.2f},"
            f" gradients {memory.gradients / _GIB:.2f}, optimizer {memory.optimizer / _GIB:.2f},"
            f" activations {memory.activations / _GIB:.2f}" + (f"; beside it {memory.host / _GIB:.2f} on the host" if memory.host else ""),
        ),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    if plan.reasons:
        lines += ["decided:", *(f"  {reason}" for reason in plan.reasons)]
    return "\n".join(lines) + "\n"
