"""Ray's notice that a machine of the run is about to be taken away."""

from ray.train.v2._internal.execution.context import get_train_context


def has_preemption_notice() -> bool:
    """Whether this worker has been told that a node of its group will be preempted.

    Ray's public `ray.train.get_preemption_info` makes all workers wait for each other through an actor, at every call.
    The ranks vote about a stop after each step anyway, so what this one knows is enough.
    """
    try:
        context = get_train_context()
    except RuntimeError:  # no Ray Train around this process: nobody gives it notice
        return False
    return context.preemption_context.preemption_info is not None
