"""Ray's notice, where Ray keeps it: a private place, which a new version of Ray may move."""

import dataclasses
from types import SimpleNamespace

import pytest
from ray.train.v2._internal.execution.context import TrainContext
from ray.train.v2._internal.execution.preemption import PreemptionContext
from ray.train.v2._internal.execution.worker_group import worker
from ray.train.v2.api.preemption import PreemptionInfo

from vitscale_launch import preemption
from vitscale_launch.preemption import has_preemption_notice


def test_outside_ray_train_there_is_no_notice() -> None:
    assert not has_preemption_notice()


def test_the_notice_is_what_rays_worker_was_marked_with(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "preemption_context" in {field.name for field in dataclasses.fields(TrainContext)}
    context = SimpleNamespace(preemption_context=PreemptionContext(), get_world_rank=lambda: 0)
    monkeypatch.setattr(preemption, "get_train_context", lambda: context)
    monkeypatch.setattr(worker, "get_train_context", lambda: context)
    assert not has_preemption_notice()
    worker.RayTrainWorker.mark_preempt(SimpleNamespace(), PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"n": [0]}))
    assert has_preemption_notice()
